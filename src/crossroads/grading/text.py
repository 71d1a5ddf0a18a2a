r"""Exact text: the same words in the same order, whatever their case and spacing."""

from __future__ import annotations

import re
from collections.abc import Mapping

from crossroads.errors import DataError
from crossroads.grading.base import Grade
from crossroads.grading.mathematics import last_boxed

_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}")


def grade_text(text: str, gold: str, _details: Mapping[str, str]) -> Grade:
    r"""Grade the last `\boxed{}` of `text`, or its last line that is not empty, as text.

    Raises:
        DataError: the gold answer is empty.
    """
    if not gold.strip():
        raise DataError("the gold answer is empty; give the text that a right answer has")
    boxed = last_boxed(text)
    answer = unwrapped(boxed) if boxed is not None else _last_line(text)
    if not answer:
        reason = "the text is empty" if boxed is None else "the box is empty"
        return Grade(False, None, reason)
    same = _normal(answer) == _normal(gold)
    return Grade(same, answer, "equal as text" if same else "another text")


def unwrapped(boxed: str) -> str:
    r"""Return what a box holds without a `\text{}` or the like around all of it."""
    whole = _TEXT.fullmatch(boxed.strip())
    return (whole[1] if whole else boxed).strip()


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())
