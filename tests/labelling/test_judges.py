"""The judges that need no other program: what they call divergent, and how they combine."""

from __future__ import annotations

import dataclasses
import itertools
import math
import zlib

import pytest
from cases import case
from hypothesis import given
from hypothesis import strategies as st

from crossroads.errors import ConfigError
from crossroads.labelling.judges import JUDGES, judge_by_name, parse_judge
from crossroads.labelling.judges.base import JudgeContext, Verdict
from crossroads.labelling.judges.convergence import ConvergenceJudge, quantities
from crossroads.labelling.judges.likelihood import LikelihoodJudge
from crossroads.labelling.judges.outcome import OutcomeJudge
from crossroads.labelling.records import Case, Mismatch, Response, Span
from crossroads.labelling.verdicts import COMBINATIONS, combine
from crossroads.types import FinishReason, Message, Problem
from laws.pairs import scripted_pair


def verdict(judge, one: Case) -> Verdict:
    ((judgement),) = judge.judge([one])
    assert judgement.case_id == one.id
    return judgement.verdict


def with_logprobs(small: float, best: float) -> Case:
    return case(mismatch=Mismatch(3, 10, 11, best, small, best))


@pytest.mark.parametrize(
    ("share", "ratio", "divergent"), [(0.09, 0.1, True), (0.11, 0.1, False), (0.4, 0.5, True)]
)
def test_likelihood_is_the_ratio_of_probabilities(share, ratio, divergent) -> None:
    one = with_logprobs(math.log(0.5 * share), math.log(0.5))
    assert verdict(LikelihoodJudge(ratio), one).divergent is divergent


def test_likelihood_of_an_impossible_number_is_a_failure() -> None:
    assert verdict(LikelihoodJudge(), with_logprobs(math.nan, -1.0)).divergent is None


def words(text: str) -> Span:
    """Return a span with one token per word, the same id for the same word."""
    return Span(tuple(zlib.crc32(word.encode()) for word in text.split()), text)


def continued(reference: str, *continuations: str) -> Case:
    futures = tuple(words(text) for text in continuations)
    return dataclasses.replace(case(), reference=words(reference), continuations=futures)


@pytest.mark.parametrize(
    ("reference", "continuation", "by", "divergent"),
    [
        ("So we add 3 and 4.", "so, we add 3 and 4", "text", False),
        ("So we add 3 and 4.", "Then we sum 3 and 4.", "text", True),
        ("So we add 3 and 4.", "Then we sum 4 and 3.", "quantities", False),
        ("It is 3 + 4.", "It is 3 - 4.", "text", True),
        ("That is $1,200.50.", "It makes 1200.5 dollars.", "quantities", False),
        ("So we add 3 and 4.", "So we add 3 and 5.", "quantities", True),
        ("So we add 3 and 3.", "So we add 3.", "quantities", True),
        ("We start now.", "We begin now.", "quantities", True),
        ("Now we add 3 and 4.", "Then we add 3 and 4.", "token", False),
        ("2 times we add.", "3 times we add.", "token", True),
        ("Now we add 3 and 4.", "We go home.", "token+text+quantities", True),
    ],
)
def test_convergence(reference, continuation, by, divergent) -> None:
    found = verdict(ConvergenceJudge(by=by), continued(reference, continuation))
    assert found.divergent is divergent
    assert found.probability == float(divergent)


@given(st.text(min_size=1, max_size=40))
def test_the_reference_itself_always_converges(text: str) -> None:
    one = continued(text, text)
    assert verdict(ConvergenceJudge(), one).divergent is False


def test_the_share_of_continuations_is_the_probability() -> None:
    one = continued("We add 3.", "We add 3.", "We add 9.", "We add 8.", "We add 7.")
    assert verdict(ConvergenceJudge(), one) == Verdict(True, 0.75, "rejoins by text")


def test_convergence_without_continuations_is_a_failure() -> None:
    assert verdict(ConvergenceJudge(), case(continuations=())).divergent is None


def test_quantities_ignore_how_numbers_are_written() -> None:
    assert quantities("1,000 and 2.50, 3.") == quantities("1000.0; 2.5 3")
    assert quantities("12") != quantities("1 2")


def answered(pair, question: str, answer: str | None) -> Case:
    """Return a case at the first token of the scripted large model's own answer."""
    from crossroads.decoding.request import Request
    from crossroads.decoding.single import generate_alone
    from crossroads.types import Role

    problem = Problem("p", (Message("user", question),), answer)
    request = Request(tuple(pair.tokenizer.render(problem.messages)), max_tokens=300)
    ((_, trace),) = generate_alone(pair.large, Role.LARGE, pair.tokenizer, [request])
    response = Response(
        "p", 0, "d", trace.prompt_ids, trace.token_ids, FinishReason.EOS, trace.text
    )
    return case(problem=problem, response=response, mismatch=Mismatch(0, 5, 7, -1.0, -2.0, -1.0))


def test_outcome_is_divergent_iff_the_success_changes(monkeypatch) -> None:
    pair = scripted_pair()
    one = answered(pair, "QUESTION 1", "gold")
    from crossroads.grading import Grade
    from crossroads.labelling.judges import outcome

    for before, after in itertools.product([True, False], repeat=2):
        grades = {one.response.text: before}
        monkeypatch.setattr(
            outcome, "grade", lambda text, _: Grade(grades.get(text, after), text, "")  # noqa: B023
        )  # fmt: skip
        found = verdict(OutcomeJudge(pair, 4, max_tokens=300), one)
        assert found.divergent is (before != after)
        assert found.probability == float(before != after)


def test_outcome_of_several_samples_is_a_share(monkeypatch) -> None:
    pair = scripted_pair()
    one = answered(pair, "QUESTION 1", "gold")
    from crossroads.grading import Grade
    from crossroads.labelling.judges import outcome

    texts: list[str] = []

    def grade(text: str, _gold: str) -> Grade:
        if text != one.response.text and text not in texts:
            texts.append(text)
        return Grade(text == one.response.text or texts.index(text) != 0, text, "")

    monkeypatch.setattr(outcome, "grade", grade)
    judge = OutcomeJudge(pair, 8, samples=4, temperature=1.0, max_tokens=2000)
    found = verdict(judge, one)
    assert len(texts) == 4, "samples must differ"
    assert (found.divergent, found.probability) == (False, 0.25)
    assert pair.large.alive == 0


def test_outcome_without_an_answer_or_within_its_limit_is_told() -> None:
    pair = scripted_pair()
    found = verdict(OutcomeJudge(pair, 4), answered(pair, "QUESTION 1", None))
    assert found == Verdict(None, None, "the problem has no answer to grade against")
    cut = verdict(OutcomeJudge(pair, 4, max_tokens=3), answered(pair, "QUESTION 1", "1"))
    assert cut.reason.endswith("1 cut at the limit")


VERDICTS = [Verdict(True), Verdict(False), Verdict(None, None, "down")]


@given(st.lists(st.sampled_from(VERDICTS), min_size=2, max_size=6))
def test_a_failure_never_counts_as_a_verdict(verdicts: list[Verdict]) -> None:
    for rule in COMBINATIONS:
        found = combine(rule, verdicts).divergent
        failed = [i for i, v in enumerate(verdicts) if v.divergent is None]
        worlds = set()
        for answers in itertools.product([True, False], repeat=len(failed)):
            filled = list(verdicts)
            for i, answer in zip(failed, answers, strict=True):
                filled[i] = Verdict(answer)
            worlds.add(combine(rule, filled).divergent)
        # Decided if and only if no answer of the failed judges could have changed it.
        assert found == (worlds.pop() if len(worlds) == 1 else None), rule


@given(st.lists(st.booleans(), min_size=1, max_size=7))
def test_combinations_are_what_their_names_say(answers: list[bool]) -> None:
    verdicts = [Verdict(answer) for answer in answers]
    assert combine("any", verdicts).divergent is any(answers)
    assert combine("all", verdicts).divergent is all(answers)
    assert combine("vote", verdicts).divergent is (2 * sum(answers) > len(answers))


def test_the_probability_is_the_mean_of_those_that_judged() -> None:
    mixed = [Verdict(True, 0.9), Verdict(False), Verdict(None, None, "x")]
    assert combine("any", mixed).probability == pytest.approx(0.45)
    assert combine("all", [Verdict(None, 0.0, "x"), Verdict(True)]).reason == "x"


def test_an_unknown_combination_is_refused() -> None:
    with pytest.raises(ConfigError, match="known: any, all, vote"):
        combine("most", VERDICTS)


def test_judges_are_found_by_name_and_mistakes_are_sentences() -> None:
    assert judge_by_name("likelihood", ratio=0.3).settings == {"ratio": 0.3}
    assert parse_judge("llm:url=http://x:1/v1,model=a/b,structured=true,timeout=2.5") == (
        "llm", {"url": "http://x:1/v1", "model": "a/b", "structured": True, "timeout": 2.5}
    )  # fmt: skip
    for wrong, message in (
        ("oracle", f"known: {', '.join(JUDGES)}"),
        ("likelihood:ratio=7", "must be in"),
        ("likelihood:bound=1", "unexpected keyword argument 'bound'"),
        ("likelihood:ratio", "is not KEY=VALUE"),
        ("convergence:by=luck", "joins some of token, text, quantities"),
        ("outcome", "needs a loaded pair"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(wrong)
    for wrong in ({"samples": 3}, {"samples": 0}):
        with pytest.raises(ConfigError, match="outcome judge's"):
            judge_by_name("outcome", JudgeContext(scripted_pair()), **wrong)


def build(text: str):
    name, settings = parse_judge(text)
    return judge_by_name(name, JudgeContext(), **settings)
