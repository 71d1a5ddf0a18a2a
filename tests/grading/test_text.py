"""Exact text: case and spacing are nothing, every other character counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.errors import DataError
from crossroads.grading.text import grade_text


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{New York}",
        r"\boxed{\text{New York}}",
        r"\boxed{Boston} \boxed{ new  YORK }",
        "\\boxed{New York}\nThat is all.",
        "It is\n\nNew York\n\n",
        "new york",
    ],
)
def test_the_last_box_or_else_the_last_line_counts(text: str) -> None:
    assert grade_text(text, "New York", {}).correct
    assert grade_text(text, "NEW\tyork", {}).correct
    found = grade_text(text, "New York.", {})
    assert not found.correct
    assert not found.unparsed


@pytest.mark.parametrize("text", ["", " \n\t\n", r"\boxed{}", r"New York \boxed{\text{ }}"])
def test_no_text_is_unparsed(text: str) -> None:
    found = grade_text(text, "New York", {})
    assert found.unparsed
    assert found.reason


@given(st.lists(st.text("abcÄß01.,", min_size=1), min_size=1))
def test_words_are_equal_to_themselves_and_to_no_longer_text(words: list[str]) -> None:
    gold = " ".join(words)
    assert grade_text(f"  {'   '.join(words)} ".upper(), gold, {}).correct
    assert not grade_text(f"{gold} more", gold, {}).correct


def test_an_empty_gold_answer_is_refused() -> None:
    with pytest.raises(DataError, match="gold answer is empty"):
        grade_text("x", " ", {})
