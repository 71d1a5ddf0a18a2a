"""Programs in the manner of HumanEval (arXiv 2107.03374): does the answer pass the tests?

A problem is the head of a function, with its docstring and whatever stands before it (imports,
helper functions); its gold answer is a test program, which defines `check(candidate)` or is a list
of assertions. The answer's code is run in a sandbox, never otherwise.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from crossroads.errors import DataError
from crossroads.grading.base import Grade
from crossroads.grading.sandbox import Ending, Run, run_program

_FENCED = re.compile(
    r"^(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})[^\n`]*\n"
    r"(?P<code>.*?)(?:^(?P=indent)(?P=fence)[ \t]*$|\Z)",
    re.MULTILINE | re.DOTALL,
)
_CHECK = re.compile(r"^def check\b", re.MULTILINE)
_CHECKED = re.compile(r"^check\(", re.MULTILINE)
_RETURN = re.compile(r"^return\b", re.MULTILINE)  # outside of a function, no program has that


@dataclass(frozen=True, slots=True)
class _Code:
    """What an answer has of code; not `fenced` where the whole text is taken for it."""

    source: str
    fenced: bool


def grade_code(text: str, gold: str, details: Mapping[str, str]) -> Grade:
    """Run the code in `text` and then the tests `gold`, in a sandbox and within its limits.

    The code is the last fenced block that defines `details["entry_point"]`, or else the last block,
    or else all of the text. What `details["prompt"]` has before the definition of the entry point
    runs first; code that is only a function's body goes on where the prompt ends. Where the tests
    define `check` and do not call it themselves, it is called with the entry point.

    Raises:
        DataError: the problem itself does not work: no such function in its prompt, tests that do
            not compile, or a prompt that fails before the answer's turn.
        EngineError: there is no sandbox here.
    """
    entry_point, prompt = details["entry_point"].strip(), details["prompt"]
    _check_problem(entry_point, prompt, gold)
    code = _find_code(text.replace("\r\n", "\n"), entry_point)
    if code is None:
        return Grade(False, None, "no code: neither a fenced block nor a program")
    parts = {
        "prompt": prompt[: _head_start(prompt, entry_point)],
        "answer": code.source,
        "tests": _tests(gold, entry_point),
    }
    body = None if _defines(code.source, entry_point) else _body(code.source)
    if body is not None and prompt.strip():
        parts |= {"prompt": "", "answer": f"{prompt.rstrip()}\n{body}"}
    return _grade(code, run_program(parts))


def _check_problem(entry_point: str, prompt: str, gold: str) -> None:
    if not entry_point.isidentifier():
        raise DataError(f"`entry_point` must be the name of a function, got {entry_point!r}")
    if prompt.strip() and not _head(entry_point).search(prompt):
        raise DataError(
            f"the prompt of {entry_point!r} has no `def {entry_point}`; give the function's head, "
            "or an empty prompt"
        )
    if not gold.strip():
        raise DataError(f"there are no tests for {entry_point!r}; without any, all would pass")


def _head(entry_point: str) -> re.Pattern[str]:
    """Return what matches the definition of a function, decorators included."""
    return re.compile(rf"^(?:@[^\n]*\n)*(?:async[ ]+)?def[ ]+{entry_point}\b", re.MULTILINE)


def _head_start(prompt: str, entry_point: str) -> int:
    return max((match.start() for match in _head(entry_point).finditer(prompt)), default=0)


def _defines(code: str, entry_point: str) -> bool:
    # Not parsed here: the parser of an interpreter can be crashed by what it reads.
    name = re.escape(entry_point)
    other = re.compile(rf"^(?:class[ ]+{name}\b|{name}[ ]*(?::[^=\n]*)?=(?!=))", re.MULTILINE)
    return bool(_head(entry_point).search(code) or other.search(code))


def _find_code(text: str, entry_point: str) -> _Code | None:
    blocks = [_block(match) for match in _FENCED.finditer(text)]
    blocks = [block for block in blocks if block.strip()]
    if blocks:
        defining = [block for block in blocks if _defines(block, entry_point)]
        return _Code((defining or blocks)[-1], fenced=True)
    if _defines(text, entry_point) or _is_indented(text):
        return _Code(text, fenced=False)
    return None


def _block(match: re.Match[str]) -> str:
    """Return a block's code, without the indentation of its fence (a list in Markdown)."""
    indent = match["indent"]
    return "".join(line.removeprefix(indent) for line in match["code"].splitlines(keepends=True))


def _is_indented(code: str) -> bool:
    first = next((line for line in code.splitlines() if line.strip()), "")
    return first[:1].isspace()


def _body(code: str) -> str | None:
    """Return code that can only be a function's body, indented; None for any other code."""
    if _is_indented(code):
        return code
    return textwrap.indent(code, "    ") if _RETURN.search(code) else None


def _tests(gold: str, entry_point: str) -> str:
    called = not _CHECK.search(gold) or _CHECKED.search(gold)
    return gold if called else f"{gold}\n\ncheck({entry_point})\n"


def _grade(code: _Code, run: Run) -> Grade:
    broken = run.ending in (Ending.INVALID, Ending.FAILED) and run.part == "prompt"
    if broken or (run.ending is Ending.INVALID and run.part == "tests"):
        raise DataError(
            f"the problem's own {run.part} cannot be run ({run.error}); correct it, or leave the "
            "problem out (packages such as numpy are not in the sandbox)"
        )
    if run.ending is Ending.INVALID and not code.fenced:
        return Grade(False, None, f"no fenced block, and the text is no program: {run.error}")
    reasons = {
        Ending.PASSED: "all tests passed",
        Ending.FAILED: f"failed: {run.error}",
        Ending.INVALID: f"does not compile: {run.error}",
        Ending.TIMEOUT: f"timed out: {run.error}",
        Ending.MEMORY: "out of memory",
        Ending.KILLED: f"killed: {run.error}",
    }
    return Grade(run.ending is Ending.PASSED, code.source, reasons[run.ending])
