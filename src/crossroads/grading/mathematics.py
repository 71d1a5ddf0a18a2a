r"""Numbers and formulas: an answer against the gold answer, as mathematics.

The answer is what stands in the last complete `\boxed{}`, which the tasks ask for. Nothing else
counts: the last number of a text that was cut off is an intermediate result, and now and then it
equals the gold answer by accident. An answer without a box, or with a box that cannot be read, is
*unparsed*: it is not correct, and reports count it apart from the wrong ones.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from fractions import Fraction
from typing import Any

from crossroads.errors import EngineError
from crossroads.grading.base import Grade

_BOX = re.compile(r"\\f?boxed\s*\{")
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)")
_GROUPED = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_FRACTION = re.compile(r"([-+]?)\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}")
_COMMAND = re.compile(r"\\[a-zA-Z]+|\b(?:sqrt|sin|cos|tan|log|ln|exp|pi)\b")
_WORDS_OR_CLOCKS = re.compile(r"[a-zA-Z]{2,}|[:'\"]")
_OPERATORS = re.compile(r"[\\^*+=()]|\b[a-zA-Z]\b")
_MAX_ANSWER = 300  # characters; longer boxes hold whole derivations, not an answer
_COMPARISON_SECONDS = 5
# A fresh interpreter imports sympy before it compares.
_PROCESS_SECONDS = 60


def grade(answer_text: str, gold: str) -> Grade:
    r"""Grade the last `\boxed{}` of `answer_text` against `gold`.

    Plain numbers are compared exactly, texts without case and spacing, and everything else as
    mathematics. Works in any thread; outside of the main one, mathematics takes a process of its
    own because its time limit needs signals.

    Raises:
        EngineError: the answer must be compared as mathematics and math-verify is not installed.
    """
    answer = last_boxed(answer_text)
    if answer is None:
        return Grade(False, None, "no complete \\boxed{}")
    if not answer:
        return Grade(False, None, "the box is empty")
    if len(answer) > _MAX_ANSWER:
        return Grade(False, None, f"the box holds {len(answer)} characters, too many for an answer")
    return _grade_plainly(answer, gold) or _grade_mathematics(answer, gold)


def _grade_plainly(answer: str, gold: str) -> Grade | None:
    """Grade texts and plain numbers; None if it takes mathematics."""
    if _plain(answer) == _plain(gold):
        return Grade(True, answer, "equal as text")
    found, wanted = _number(answer), _number(gold)
    if found is not None and wanted is not None:
        same = found == wanted
        return Grade(same, answer, "equal as numbers" if same else "another number")
    if not _is_mathematics(gold):
        return Grade(False, answer, "another text")
    if wanted is not None and ":" in answer:
        return Grade(False, answer, "a time or a ratio instead of a number")
    return None


def check_mathematics() -> None:
    """Check that answers can be compared as mathematics.

    Raises:
        EngineError: math-verify is not installed.
    """
    _import_math_verify()


def last_boxed(text: str) -> str | None:
    r"""Return what the last complete `\boxed{}` holds, braces balanced; None without one."""
    for match in reversed(list(_BOX.finditer(text))):
        depth = 1
        for index in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[index], 0)
            if depth == 0:
                return text[match.end() : index].strip()
    return None


def _plain(text: str) -> str:
    """Return `text` without case, spacing, dollar signs, text commands and a final full stop."""
    text = _TEXT.sub(r"\1", text).replace("\\ ", " ").replace("$", "")
    return " ".join(text.casefold().split()).removesuffix(".").strip()


def _number(text: str) -> Fraction | None:
    r"""Return a plain number, `1,234`, `1/2` or `\frac{1}{2}` exactly; None for anything else."""
    text = _FRACTION.sub(r"\1\2/\3", text).replace("\\$", "").replace("{,}", ",").replace("\\!", "")
    text = re.sub(r"^([-+]) +", r"\1", _plain(text).replace("\u2212", "-"))
    top, slash, bottom = (part.strip() for part in text.partition("/"))
    if _GROUPED.fullmatch(top):
        top = top.replace(",", "")
    if not _NUMBER.fullmatch(top):
        return None
    if not slash:
        return Fraction(top)
    if not re.fullmatch(r"\d+", bottom) or int(bottom) == 0:
        return None
    return Fraction(top) / int(bottom)


def _is_mathematics(gold: str) -> bool:
    """Return whether `gold` is more than text that a parser happens to accept.

    In doubt it is text: read as arithmetic, 00:34:27 would equal 00:34:28, as quotients of zero,
    and 2022-10-28 would equal 2022-11-27, as differences.
    """
    if all(_number(part) is not None for part in gold.split(",")):
        return True
    bare = _COMMAND.sub(" ", gold)
    if _WORDS_OR_CLOCKS.search(bare):
        return False
    return bare != gold or bool(_OPERATORS.search(bare))


def _grade_mathematics(answer: str, gold: str) -> Grade:
    if threading.current_thread() is threading.main_thread():
        outcome = compare(answer, gold)
    else:
        outcome = _compare_in_process(answer, gold)
    reasons = {
        "equal": Grade(True, answer, "equal as mathematics"),
        "different": Grade(False, answer, "another value"),
        "unreadable": Grade(False, None, "the box cannot be read as mathematics"),
        "timeout": Grade(False, None, "comparing took too long"),
    }
    return reasons[outcome]


def compare(answer: str, gold: str) -> str:
    """Return `equal`, `different`, `unreadable` or `timeout`.

    Only in the main thread: the time limit is a signal.

    Raises:
        EngineError: math-verify is not installed.
    """
    parse, verify, timeout = _import_math_verify()
    limits = {"parsing_timeout": _COMPARISON_SECONDS, "raise_on_error": True}
    try:
        gold_parsed = parse(f"\\boxed{{{gold}}}", fallback_mode="no_fallback", **limits)
        parsed = parse(f"\\boxed{{{answer}}}", fallback_mode="no_fallback", **limits)
        if not gold_parsed:  # looked like mathematics and is not, and the texts differ
            return "different"
        if not parsed:
            return "unreadable"
        same = verify(gold_parsed, parsed, timeout_seconds=_COMPARISON_SECONDS, raise_on_error=True)
    except timeout:
        return "timeout"
    except Exception:  # noqa: BLE001  parsers of model output fail in ways that nobody lists
        return "unreadable"
    return "equal" if same else "different"


def _compare_in_process(answer: str, gold: str) -> str:
    """Run `compare` in the main thread of another interpreter."""
    _import_math_verify()  # a missing package must not look like an unreadable answer
    try:
        done = subprocess.run(
            [sys.executable, "-m", "crossroads.grading"],
            input=json.dumps([answer, gold]),
            capture_output=True,
            text=True,
            check=True,
            timeout=_PROCESS_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return "timeout"
    except subprocess.CalledProcessError:
        return "unreadable"
    return done.stdout.strip()


def _import_math_verify() -> tuple[Any, Any, type[BaseException]]:
    try:
        from math_verify import parse, verify  # noqa: PLC0415  imports sympy, which takes a second
        from math_verify.errors import TimeoutException  # noqa: PLC0415
    except ImportError as error:
        raise EngineError(
            "answers that are not plain numbers need the package math-verify; "
            'install it with `pip install "crossroads-lm[evaluate]"`'
        ) from error
    return parse, verify, TimeoutException
