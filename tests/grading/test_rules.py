"""The registry, and what all rules have in common."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from crossroads.errors import ConfigError, DataError, EngineError
from crossroads.grading.base import Grade
from crossroads.grading.rules import RULES, grade_by_rule, rule_by_name

PROMPT = 'def double(x):\n    """Return twice x."""\n'
TESTS = "def check(candidate):\n    assert candidate(2) == 4\n"
DETAILS = {
    "math": {},
    "choice": {"letters": "ABCD"},
    "code": {"entry_point": "double", "prompt": PROMPT},
    "text": {},
}
GOLD = {"math": "12", "choice": "B", "code": TESTS, "text": "New York"}
RIGHT = {
    "math": r"\boxed{12}",
    "choice": r"\boxed{B}",
    "code": "```\ndef double(x): return 2 * x\n```",
    "text": r"\boxed{New York}",
}
WRONG = {
    "math": r"\boxed{13}",
    "choice": r"\boxed{C}",
    "code": "```\ndef double(x): return x\n```",
    "text": r"\boxed{Boston}",
}


def graded(name: str, text: str) -> Grade:
    return grade_by_rule(name, text, GOLD[name], DETAILS[name])


def test_every_rule_is_tested_here_and_known_by_its_own_name() -> None:
    assert list(RULES) == list(DETAILS)
    for name, rule in RULES.items():
        assert rule_by_name(name) is rule
        assert rule.name == name
        assert rule.about.endswith(".")
        assert set(rule.details) == set(DETAILS[name])


@pytest.mark.parametrize("name", RULES)
@pytest.mark.usefixtures("sandbox")
def test_right_wrong_and_nothing_are_three_grades(name: str) -> None:
    assert graded(name, RIGHT[name]).correct
    wrong = graded(name, WRONG[name])
    assert (wrong.correct, wrong.unparsed) == (False, False)
    nothing = graded(name, "")
    assert (nothing.correct, nothing.unparsed) == (False, True)
    assert nothing.reason


@pytest.mark.parametrize("name", RULES)
@pytest.mark.usefixtures("sandbox")
def test_what_a_model_thinks_is_no_answer(name: str) -> None:
    assert graded(name, f"<think>{WRONG[name]}</think>\n{RIGHT[name]}").correct
    assert not graded(name, f"{RIGHT[name]}</think>\n{WRONG[name]}").correct
    assert graded(name, f"{WRONG[name]}\n</think>\n</think>{RIGHT[name]}").correct
    assert graded(name, f"<think>{RIGHT[name]}</think>").unparsed


@pytest.mark.usefixtures("sandbox")
def test_any_thread_grades_alike() -> None:
    jobs = [(name, text[name]) for name in RULES for text in (RIGHT, WRONG)] * 2
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda job: graded(*job), jobs))
    assert found == [graded(*job) for job in jobs]


@pytest.mark.parametrize("name", ["choice", "code"])
def test_a_missing_detail_is_named(name: str) -> None:
    for key in RULES[name].details:
        details = {other: "x" for other in RULES[name].details if other != key}
        with pytest.raises(DataError, match=f"{key} is missing"):
            grade_by_rule(name, "", GOLD[name], details)


def test_an_unknown_rule_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no grading rule 'maths'; did you mean 'math'"):
        rule_by_name("maths")
    with pytest.raises(ConfigError, match="known: math, choice, code, text"):
        grade_by_rule("xyz", "", "", {})


def test_a_rule_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "math_verify", None)
    for name, message in {"math": "pip install", "code": "bubblewrap"}.items():
        with pytest.raises(EngineError, match=message):
            RULES[name].check()
    RULES["choice"].check()
    RULES["text"].check()
