import json
import sys

import pytest

from crossroads.errors import ConfigError, DataError, EngineError
from crossroads.tasks import generate_problems, load_problems, read_problems
from crossroads.tasks.reasoning_gym import INSTRUCTION, LEVELS
from crossroads.types import Message

pytest.importorskip("reasoning_gym")


def questions(problems):
    return [problem.messages[0].content for problem in problems]


@pytest.mark.parametrize("dataset", ["gsm_symbolic", "chain_sum", *LEVELS])
def test_generated_problems_are_complete_and_reproducible(dataset):
    problems = generate_problems(dataset, 8, seed=3)
    assert problems == generate_problems(dataset, 8, seed=3)
    assert generate_problems(dataset, 3, seed=3) == problems[:3]
    assert len({p.id for p in problems}) == len(set(questions(problems))) == 8
    for problem in problems:
        assert problem.id.startswith(f"{dataset}-3-")
        assert problem.domain == dataset
        assert problem.answer
        assert len(problem.messages) == 1
        assert problem.messages[0].content.endswith(INSTRUCTION)


def test_neighbouring_seeds_share_no_stream():
    # The generator seeds problem i with seed + i; passed on as it is, 19 of 20 would be shared.
    wide = {"min_terms": 6, "max_terms": 6, "min_digits": 4}
    first = questions(generate_problems("chain_sum", 20, seed=0, settings=wide))
    second = questions(generate_problems("chain_sum", 20, seed=1, settings=wide))
    assert not set(first) & set(second)


def test_repeated_questions_are_dropped():
    tiny = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    problems = generate_problems("chain_sum", 60, seed=0, settings=tiny)
    assert len(set(questions(problems))) == 60
    # Dropped ones leave gaps: the id tells the place in the stream, not the place in the list.
    assert problems[-1].id != "chain_sum-0-59"


def test_excluded_questions_do_not_come_again():
    tiny = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    first = generate_problems("chain_sum", 60, seed=0, settings=tiny)
    second = generate_problems("chain_sum", 40, seed=1, settings=tiny, exclude=first)
    assert not set(questions(first)) & set(questions(second))


def test_an_exhausted_data_set_says_so():
    tiny = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    with pytest.raises(DataError, match="different problems"):
        generate_problems("chain_sum", 1000, seed=0, settings=tiny)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gsm_symbolik", 1, 0), "known: gsm_symbolic"),
        (("zzzzzz", 1, 0), "known: ab, acre"),
        (("chain_sum", 0, 0), "at least one"),
        (("chain_sum", 1, 0, {"terms": 3}), "refuses the settings"),
        (("chain_sum", 1, 0, {"min_terms": 9}), "refuses the settings"),
    ],
)
def test_bad_requests_are_refused_by_name(arguments, message):
    with pytest.raises(DataError, match=message):
        generate_problems(*arguments)


def test_a_missing_package_tells_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(EngineError, match="pip install"):
        generate_problems("chain_sum", 1, seed=0)


def test_tasks_are_loaded_by_name(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text('{"id": 1, "prompt": "a"}\n{"id": 2, "prompt": "b"}\n', encoding="utf-8")
    assert [p.id for p in load_problems(f"jsonl:{path}", 1, 0)] == ["1"]
    generated = load_problems("reasoning_gym:gsm_symbolic", 2, 5)
    assert generated == generate_problems("gsm_symbolic", 2, 5)


@pytest.mark.parametrize("task", ["gsm_symbolic", "nothing:x", "jsonl:", ""])
def test_an_unknown_task_lists_the_known_ones(task):
    with pytest.raises(ConfigError, match=r"jsonl:\.\.\., reasoning_gym:\.\.\."):
        load_problems(task, 1, 0)


def test_a_file_of_problems(tmp_path):
    path = tmp_path / "problems.jsonl"
    lines = [
        {"id": "a", "prompt": "1 + 1?", "answer": 2, "domain": "sums"},
        {
            "id": 7,
            "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        },
    ]
    text = "\ufeff" + "\r\n\r\n".join(json.dumps(line) for line in lines) + "\r\n"
    path.write_text(text, encoding="utf-8", newline="")
    first, second = read_problems(path)
    assert (first.answer, first.domain, first.messages) == (
        "2",
        "sums",
        (Message("user", "1 + 1?"),),
    )
    assert (second.id, second.answer, second.domain) == ("7", None, "default")
    assert second.messages == (Message("system", "s"), Message("user", "u"))


GOOD = '{"id": "a", "prompt": "p"}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object but a list"),
        ('{"prompt": "p"}', "has no `id`"),
        ('{"id": "", "prompt": "p"}', "`id` is empty"),
        ('{"id": true, "prompt": "p"}', "`id` must be text, got true or false"),
        ('{"id": "b"}', "needs either `prompt` or `messages`, it has neither"),
        ('{"id": "b", "prompt": "p", "messages": []}', "it has both"),
        ('{"id": "b", "prompt": "  "}', "`prompt` is empty"),
        ('{"id": "b", "prompt": 3}', "`prompt` must be text, got a number"),
        ('{"id": "b", "messages": []}', "at least one message"),
        ('{"id": "b", "messages": ["hi"]}', "needs `role` and `content`"),
        ('{"id": "b", "messages": [{"role": "user", "content": null}]}', "`content` must be text"),
        ('{"id": "b", "prompt": "p", "answer": [1]}', "`answer` must be text or a number"),
        ('{"id": "b", "prompt": "p", "domain": null}', "`domain` must be text, got null"),
        (GOOD, "repeats the id 'a' of line 1"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(tmp_path, line, message):
    path = tmp_path / "problems.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 3") as caught:
        read_problems(path)
    assert message in str(caught.value)


def test_files_that_hold_no_problems(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n", encoding="utf-8")
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(b'{"id": "\xe9"}')
    for path, message in [
        (empty, "has no problems"),
        (latin, "not UTF-8"),
        (tmp_path / "missing.jsonl", "no problems at"),
        (tmp_path, "cannot read"),
    ]:
        with pytest.raises(DataError, match=message):
            read_problems(path)
