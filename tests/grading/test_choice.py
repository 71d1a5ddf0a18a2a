"""One letter among those allowed, or unparsed with a reason."""

from __future__ import annotations

import pytest

from crossroads.errors import DataError
from crossroads.grading.base import Grade
from crossroads.grading.choice import grade_choice

ABCD = {"letters": "ABCD"}


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{B}",
        r"\boxed{b}",
        r"\boxed{(B)}",
        r"\boxed{\text{B}}",
        r"\boxed{\text{(B)}}",
        r"\boxed{\mathbf{B}}",
        r"\boxed{B. A long way}",
        r"\boxed{B) 42}",
        r"\boxed{A} no: \boxed{B}",
        r"The answer is A. \boxed{B}",
        "The answer is (B).",
        "the answer is (b)",
        "The correct answer is: B",
        "The correct option is B, because A is wrong.",
        "Answer: B",
        "**Answer:** B",
        "**Final answer: B**",
        "The answer is **(B)**",
        "The answer is option B",
        r"The answer is \(B\)",
        r"The answer is $\text{B}$.",
        "ANSWER: B",
        "Answer:\nB",
        "The answer is A. Wait, no. The answer is B.",
        r"The answer is B: \boxed{42}",
    ],
)
def test_an_answer_that_names_b(text: str) -> None:
    assert grade_choice(text, "B", ABCD) == Grade(True, "B", "the right letter")
    assert grade_choice(text, "c", ABCD) == Grade(False, "B", "another letter")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "neither"),
        ("(A) one (B) two", "neither"),
        ("B", "neither"),
        ("The answer is a long one.", "neither"),
        ("The answer is Bern.", "neither"),
        ("The answer is A's.", "neither"),
        ("The answer is not B.", "neither"),
        (r"\boxed{42}", "'42', which is not one letter"),
        (r"\boxed{}", "'', which is not one letter"),
        (r"\boxed{A, B}", "not one letter"),
        (r"\boxed{(A) and (B)}", "not one letter"),
        (r"\boxed{A. or B.}", "not one letter"),
        (r"\boxed{B", "neither"),
        (r"\boxed{E}", "E is none of the letters ABCD"),
        ("The answer is E.", "E is none of the letters ABCD"),
        (r"The answer is B, so \boxed{E}", "E is none of"),
    ],
)
def test_anything_else_is_unparsed_with_a_reason(text: str, reason: str) -> None:
    found = grade_choice(text, "B", ABCD)
    assert found.unparsed
    assert not found.correct
    assert reason in found.reason


def test_the_letters_are_those_of_the_problem() -> None:
    assert grade_choice(r"\boxed{E}", "E", {"letters": "abcde"}).correct


@pytest.mark.parametrize(
    ("gold", "letters", "message"),
    [
        ("E", "ABCD", "'E' is none of the letters ABCD"),
        ("AB", "ABCD", "'AB' is none"),
        ("", "ABCD", "'' is none"),
        ("A", "", "such as ABCD, got ''"),
        ("A", "A,B", "such as ABCD"),
        ("A", "AAB", "such as ABCD"),
    ],
)
def test_a_problem_that_cannot_be_right_is_refused(gold: str, letters: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        grade_choice(r"\boxed{A}", gold, {"letters": letters})


def test_hostile_spacing_takes_no_time() -> None:
    text = "answer" + " * " * 100_000 + "answer is" + " " * 100_000 + "\\boxed{(" + " " * 100_000
    assert grade_choice(text, "B", ABCD).unparsed
