r"""Multiple choice: which letter an answer names.

The letter stands in the last `\boxed{}`, or else in the last statement such as "the answer is
(B)". Letters elsewhere in the text are the options themselves, and count for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from crossroads.errors import DataError
from crossroads.grading.base import Grade
from crossroads.grading.mathematics import last_boxed
from crossroads.grading.text import unwrapped

# `B`, `(B)`, `B.`, `B) 42`
_BOXED = re.compile(r"\(?\s*([A-Za-z])\s*(?:[).:](.*))?", re.DOTALL)
# A second letter in the same box: `(A) and (B)`.
_ANOTHER = re.compile(r"\([A-Za-z]\)|(?:\b(?:and|or)\b|[,/&])\s*\(?[A-Z]\b")
# A lower-case letter only in brackets: "the answer is a bit long" names none.
_STATED = re.compile(
    r"""(?:\b(?i:answer|(?:correct|right|best)\s(?:option|choice)))
        [\s*_]{0,9} (?:(?i:is)\b|:) [\s*_:$"'`]{0,9} (?:(?i:option|choice)\s)?
        [\s*_$"'`]{0,9} (?:\\[a-z]{1,9}\{|\\\()?
        (?:\(([A-Za-z])\)|([A-Z])(?![\w'\u2019]))""",
    re.VERBOSE,
)


def grade_choice(text: str, gold: str, details: Mapping[str, str]) -> Grade:
    """Grade the letter that `text` names; `details["letters"]` are those allowed, as in "ABCD".

    Raises:
        DataError: the letters are none, or the gold answer is not one of them.
    """
    letters = details["letters"].strip().upper()
    if not letters.isalpha() or len(set(letters)) < len(letters):
        raise DataError(
            f"`letters` must be the letters of the options, such as ABCD, got {letters!r}"
        )
    wanted = gold.strip().upper()
    if len(wanted) != 1 or wanted not in letters:
        raise DataError(f"the gold answer {gold!r} is none of the letters {letters}; give one")
    found, reason = _letter(text)
    if found is None:
        return Grade(False, None, reason)
    if found not in letters:
        return Grade(False, None, f"{found} is none of the letters {letters}")
    same = found == wanted
    return Grade(same, found, "the right letter" if same else "another letter")


def _letter(text: str) -> tuple[str | None, str]:
    """Return the letter in upper case, or None and the reason."""
    boxed = last_boxed(text)
    if boxed is not None:
        match = _BOXED.fullmatch(unwrapped(boxed))
        if match and not _ANOTHER.search(match[2] or ""):
            return match[1].upper(), ""
    stated = list(_STATED.finditer(text))
    if stated:
        return (stated[-1][1] or stated[-1][2]).upper(), ""
    if boxed is None:
        return None, 'neither a \\boxed{} nor a statement such as "the answer is (B)"'
    return None, f"the box holds {boxed[:40]!r}, which is not one letter"
