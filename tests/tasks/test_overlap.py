"""Laws of duplicates and contamination: symmetric, blind to order, deaf to boilerplate."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.errors import ConfigError
from crossroads.tasks import overlap
from crossroads.tasks.overlap import Contaminated, contamination, duplicate_groups, problem_text
from crossroads.tasks.reasoning_gym import INSTRUCTION
from crossroads.types import Message, Problem

WORDS = [f"word{i}" for i in range(500)]


def story(seed: int, length: int = 60) -> list[str]:
    return random.Random(seed).choices(WORDS, k=length)


def text(seed: int, length: int = 60) -> str:
    return " ".join(story(seed, length))


def copies_with_one_other_word(seed: int) -> tuple[str, str]:
    """Return two texts of 60 words whose last words differ: 55 of 57 shingles are shared."""
    words = story(seed)
    return " ".join(words), " ".join([*words[:-1], "otherwise"])


# Few different words, so that texts are often equal, alike, or share a common shingle.
TEXTS = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.lists(st.sampled_from("uvw"), max_size=9).map(" ".join),
    max_size=25,
)


@given(TEXTS, st.randoms())
def test_the_order_of_the_texts_does_not_matter(texts, generator) -> None:
    shuffled = list(texts.items())
    generator.shuffle(shuffled)
    assert duplicate_groups(dict(shuffled)) == duplicate_groups(texts)


@given(TEXTS)
def test_groups_are_disjoint_sorted_and_told_by_their_first_id(texts) -> None:
    report = duplicate_groups(texts)
    assert report.group_of.keys() == texts.keys()
    for groups in (report.exact, report.near):
        ids = [text_id for group in groups for text_id in group]
        assert len(ids) == len(set(ids))
        assert list(groups) == sorted(groups)
        for group in groups:
            assert len(group) > 1
            assert list(group) == sorted(group)
    for group in report.near:
        assert {report.group_of[text_id] for text_id in group} == {group[0]}
    for group in report.exact:
        assert len({report.group_of[text_id] for text_id in group}) == 1
    grouped = {text_id for group in report.exact + report.near for text_id in group}
    assert all(report.group_of[text_id] == text_id for text_id in texts.keys() - grouped)


@given(TEXTS, st.sampled_from([0.3, 0.55, 0.8, 1.0]))
def test_the_index_finds_what_comparing_all_pairs_finds(texts, threshold: float) -> None:
    """The law of prefix filtering: no pair is missed, none is made up."""
    report = duplicate_groups(texts, threshold=threshold, shingle_words=2)
    words = {i: t.split() for i, t in texts.items()}
    shingles = {i: frozenset(pairwise(w)) for i, w in words.items()}
    distinct = {tuple(w): shingles[i] for i, w in words.items()}
    count = {
        s: sum(s in own for own in distinct.values()) for own in distinct.values() for s in own
    }
    rare = {i: {s for s in own if count[s] <= 10} for i, own in shingles.items()}
    same = {i: {i} for i in texts}
    for one in texts:
        for other in texts:
            both, either = rare[one] & rare[other], rare[one] | rare[other]
            alike = either and len(both) / len(either) >= threshold
            if (words[one] == words[other] or alike) and same[one] is not same[other]:
                same[one] |= same[other]
                for member in same[other]:
                    same[member] = same[one]
    assert dict(report.group_of) == {i: min(members) for i, members in same.items()}


@given(TEXTS)
def test_a_copy_is_in_the_group_of_its_text(texts) -> None:
    copied = texts | {f"{text_id} copy": f"  {t.upper()}!\n" for text_id, t in texts.items() if t}
    report = duplicate_groups(copied)
    for text_id, t in texts.items():
        if t:
            assert report.group_of[f"{text_id} copy"] == report.group_of[text_id]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is\n 3?", "what is 3", True),
        ("A well-known **fact**.", "a WELL KNOWN fact", True),
        ("Stra\u00dfe", "STRASSE", True),
        ("\uff11 + 1", "1 + 1", True),
        ("4 + 3", "4 - 3", False),
        ("4+3", "4 + 3", True),
        ("4-3", "4 / 3", False),
        ("x * y", "x / y", False),
        ("What is 3?", "What is 4?", False),
        ("\U0001f600", "\U0001f622", False),
        ("\u732b\u3002", "\u732b", True),
    ],
)
def test_normalisation_folds_the_form_and_keeps_the_sums(one: str, other: str, same: bool) -> None:
    exact = duplicate_groups({"a": one, "b": other}).exact
    assert exact == ((("a", "b"),) if same else ())


def test_near_copies_are_found_and_linked_to_exact_ones() -> None:
    one, other = copies_with_one_other_word(1)
    report = duplicate_groups({"d": one, "b": other, "c": one + ".", "z": text(2)})
    assert report.exact == (("c", "d"),)
    assert report.near == (("b", "c", "d"),)
    assert dict(report.group_of) == {"b": "b", "c": "b", "d": "b", "z": "z"}


def test_the_threshold_is_where_it_says() -> None:
    one, other = copies_with_one_other_word(1)
    # 56 shingles each, 55 of them shared.
    assert duplicate_groups({"a": one, "b": other}, threshold=55 / 57).near
    assert not duplicate_groups({"a": one, "b": other}, threshold=55 / 57 + 1e-6).near


def test_a_threshold_that_floats_cannot_hold_misses_no_pair() -> None:
    # 0.55 * 100 is 55.00000000000001, and the two share 55 of 100 words.
    assert 0.55 * 100 > 55
    texts = {"a": " ".join(WORDS[:100]), "b": " ".join(WORDS[:55])}
    assert duplicate_groups(texts, threshold=0.55, shingle_words=1).near == (("a", "b"),)


@pytest.mark.parametrize("many", [2, 10, 11, 40, 1500])
def test_problems_that_share_only_an_instruction_are_no_duplicates(many: int) -> None:
    preamble = "State the final answer to the following arithmetic problem:"
    generator = random.Random(0)
    texts = {
        str(i): f"{preamble} {' + '.join(str(generator.randrange(100, 1000)) for _ in range(4))} ="
        f"\n\n{INSTRUCTION}"
        for i in range(many)
    }
    report = duplicate_groups(texts)
    assert (report.exact, report.near) == ((), ())


def test_boilerplate_never_counts() -> None:
    # However long the instruction: shared by more than ten, it makes nothing alike.
    instruction = text(99, 300)
    few = {str(i): f"{text(i, 12)} {instruction}" for i in range(10)}
    assert duplicate_groups(few).near
    assert not duplicate_groups(few | {"10": f"{text(10, 12)} {instruction}"}).near


def test_boilerplate_does_not_hide_a_near_copy() -> None:
    instruction = text(99, 100)
    texts = {str(i): f"{text(i)} {instruction}" for i in range(20)}
    one, other = copies_with_one_other_word(5)
    texts |= {"one": f"{one} {instruction}", "other": f"{other} {instruction}"}
    assert duplicate_groups(texts).group_of["other"] == duplicate_groups(texts).group_of["one"]


@pytest.mark.parametrize("options", [{"threshold": 0}, {"threshold": 1.1}, {"shingle_words": 0}])
def test_options_without_a_meaning_are_refused(options) -> None:
    with pytest.raises(ConfigError, match="duplicates need a threshold"):
        duplicate_groups({}, **options)


def test_templates_are_not_compared_pair_by_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ten problems of each of 100 stories, too few of each for boilerplate: 4500 pairs share words.
    texts = {
        str(i): " ".join(
            [*story(i % 100, 20), *map(str, random.Random(i).choices(range(9999), k=9))]
        )
        for i in range(1000)
    }
    compared: list[tuple[frozenset[int], frozenset[int]]] = []
    similarity = overlap._jaccard

    def spy(one: frozenset[int], other: frozenset[int]) -> float:
        compared.append((one, other))
        return similarity(one, other)

    monkeypatch.setattr(overlap, "_jaccard", spy)
    assert duplicate_groups(texts).near == ()
    assert len(compared) < 10
    assert duplicate_groups(texts | {"copy": texts["0"] + " more"}).near == (("0", "copy"),)
    assert compared


QUESTION = text(7, 40)
BENCH = {"bench": [text(8, 40), QUESTION]}


@given(st.integers(0, 40), st.integers(0, 40), st.integers(100, 200))
def test_a_question_inside_a_longer_prompt_is_found(before: int, after: int, seed: int) -> None:
    prompt = f"{text(seed, before)}, {QUESTION.upper()}. {text(seed + 200, after)}"
    found = contamination({"p": prompt}, BENCH)
    assert [(f.problem_id, f.benchmark) for f in found] == [("p", "bench")]
    assert found[0].kind == ("ngram" if before + after else "exact")
    assert found[0].shared in QUESTION


@pytest.mark.parametrize(("shared", "found"), [(12, False), (13, True), (14, True)])
def test_thirteen_words_in_common_are_enough_and_twelve_are_not(shared: int, found: bool) -> None:
    prompt = f"{text(300, 20)} {' '.join(QUESTION.split()[5 : 5 + shared])} {text(301, 20)}"
    assert bool(contamination({"p": prompt}, BENCH)) is found
    assert bool(contamination({"p": QUESTION}, {"b": [prompt]})) is found  # and the other way


def test_exact_is_told_from_shared_words_and_comes_first() -> None:
    found = contamination({"b": f"{QUESTION}!", "a": QUESTION + " more", "c": text(9)}, BENCH)
    assert found == (
        Contaminated("a", "bench", "ngram", " ".join(QUESTION.split()[:13])),
        Contaminated("b", "bench", "exact", QUESTION),
    )


@given(st.permutations(range(6)))
def test_the_order_of_problems_and_benchmarks_does_not_matter(order: list[int]) -> None:
    texts = {str(i): QUESTION + text(i, i) for i in range(6)}
    benchmarks = {f"b{i}": [text(50 + i), QUESTION, "short one"][: i + 1] for i in range(6)}
    shuffled = contamination(
        {str(i): texts[str(i)] for i in order}, {f"b{i}": benchmarks[f"b{i}"][::-1] for i in order}
    )
    assert shuffled == contamination(texts, benchmarks)
    assert len(shuffled) == 6 * 5  # all but b0, which lacks the question


@pytest.mark.parametrize(("problems", "found"), [(10, 10), (11, 0)])
def test_words_that_more_than_ten_problems_share_are_boilerplate(problems: int, found: int) -> None:
    prompts = {str(i): f"{text(i + 400, 20)} {QUESTION}" for i in range(problems)}
    assert len(contamination(prompts, BENCH)) == found


@pytest.mark.parametrize(("questions", "found"), [(10, 1), (11, 0)])
def test_words_that_more_than_ten_questions_share_are_boilerplate(
    questions: int, found: int
) -> None:
    instruction = text(3, 20)
    benchmark = {"b": [f"{text(i + 400, 20)} {instruction}" for i in range(questions)]}
    assert len(contamination({"p": f"{text(9)} {instruction}"}, benchmark)) == found


def test_copies_do_not_become_boilerplate_by_their_number() -> None:
    samples = {str(i): f"{QUESTION} {INSTRUCTION}" for i in range(50)}
    assert len(contamination(samples, BENCH)) == 50


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("What is 2 + 2?", True),
        (f"what is 2+2\n\n{INSTRUCTION}", True),
        (f"You are a helpful assistant.\n\nWhat is 2 + 2?\n\n{INSTRUCTION}", True),
        ("He asks: what is 2 + 2? She does not know, and asks the others what they think.", False),
        ("What is 2 - 2?", False),
    ],
)
def test_a_short_question_is_looked_for_whole(prompt: str, found: bool) -> None:
    assert bool(contamination({"p": prompt}, {"b": ["What is 2 + 2?"]})) is found


def test_a_short_question_of_two_paragraphs_is_found() -> None:
    prompt = f"Be brief.\n\nLet x = 2.\n \nWhat is x?\n\n{INSTRUCTION}"
    (found,) = contamination({"p": prompt}, {"b": ["Let x = 2. What is x?"]})
    assert (found.kind, found.shared) == ("exact", "let x = 2 what is x")


def test_nothing_is_found_in_nothing() -> None:
    assert contamination({}, BENCH) == ()
    assert contamination({"p": QUESTION}, {}) == ()
    assert contamination({"p": "", "q": " "}, {"b": ["", "?"]}) == ()


def test_the_text_of_a_problem_is_all_of_its_messages() -> None:
    problem = Problem("p", (Message("system", "s"), Message("user", "u")))
    assert problem_text(problem) == "s\n\nu"
