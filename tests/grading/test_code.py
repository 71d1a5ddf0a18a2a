"""Which part of an answer is its program, and what the grade says of how that ended."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from crossroads.errors import DataError
from crossroads.grading import code as module
from crossroads.grading.base import Grade
from crossroads.grading.code import grade_code
from crossroads.grading.sandbox import Ending, Limits, Run

PROMPT = '''from math import floor


def helper(x):
    return floor(x)


@staticmethod
def double(x: float) -> int:
    """Return twice the floor.

    ```
    >>> double(2.5)
    4
    ```
    """
'''
HEAD = PROMPT[: PROMPT.index("@staticmethod")]
TESTS = "def check(candidate):\n    assert candidate(2.5) == 4\n    assert candidate(0) == 0\n"
DETAILS = {"entry_point": "double", "prompt": PROMPT}
RIGHT = "def double(x):\n    return 2 * helper(x)\n"


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Stand in for the sandbox: keep the parts that it is given; every program passes."""
    kept: dict[str, str] = {}

    def run(parts: Mapping[str, str]) -> Run:
        kept.update(parts)
        return Run(Ending.PASSED)

    monkeypatch.setattr(module, "run_program", run)
    return kept


def ending(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setattr(module, "run_program", lambda _parts: run)


# The answer's program


@pytest.mark.parametrize(
    "text",
    [
        f"```python\n{RIGHT}```",
        f"```\n{RIGHT}```\nThat is it.",
        f"~~~py\n{RIGHT}~~~",
        f"````python\n{RIGHT}````",
        f"Sure:\r\n```python\r\n{RIGHT.replace(chr(10), chr(13) + chr(10))}```\r\n",
        f"```python\ndef double(x): pass\n```\nBetter:\n```python\n{RIGHT}```",
        f"```python\n{RIGHT}```\nTry it:\n```python\nprint(double(1))\n```\n```\n2\n```",
        f"```python\n{RIGHT}",  # the fence was never closed
        "1. So:\n   ```python\n"
        + "".join(f"   {line}\n" for line in RIGHT.splitlines())
        + "   ```\n",
        RIGHT,
    ],
)
def test_the_last_block_that_defines_the_function_is_the_program(
    text: str, parts: dict[str, str]
) -> None:
    assert grade_code(text, TESTS, DETAILS) == Grade(True, RIGHT, "all tests passed")
    assert parts == {"prompt": HEAD, "answer": RIGHT, "tests": f"{TESTS}\n\ncheck(double)\n"}


@pytest.mark.parametrize(
    "program",
    [
        f"{PROMPT}    return 2 * helper(x)\n",  # with a fence in its docstring
        "async def double(x):\n    return x\n",
        "import functools\n\n@functools.cache\ndef double(x):\n    return x\n",
        "double = lambda x: x\n",
        "double: object = lambda x: x\n",
        "class double:\n    pass\n",
    ],
)
def test_a_function_is_defined_in_many_ways(program: str, parts: dict[str, str]) -> None:
    text = f"```\n{program}```\n```\ndoubles = double(1) == 2\ndouble == 2\n```"
    assert grade_code(text, TESTS, DETAILS).parsed == program


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ("    return 2 * helper(x)\n", "    return 2 * helper(x)\n"),
        ("\n    y = helper(x)\n    return y + y", "\n    y = helper(x)\n    return y + y"),
        ("```python\n    return 2 * helper(x)\n```", "    return 2 * helper(x)\n"),
        ("```python\ny = helper(x)\nreturn 2 * y\n```", "    y = helper(x)\n    return 2 * y\n"),
    ],
)
def test_a_body_goes_on_where_the_prompt_ends(text: str, body: str, parts: dict[str, str]) -> None:
    assert grade_code(text, TESTS, DETAILS).correct
    assert parts["prompt"] == ""
    assert parts["answer"] == f"{PROMPT.rstrip()}\n{body}"
    compile(parts["answer"], "answer", "exec")


def test_another_block_is_run_as_it_is(parts: dict[str, str]) -> None:
    grade_code("```\nfirst = 1\n```\n```\nsecond = 2\n```", TESTS, DETAILS)
    assert (parts["prompt"], parts["answer"]) == (HEAD, "second = 2\n")


@pytest.mark.parametrize("text", ["", "I cannot do that.", "```python\n\n```", "double(x) is easy"])
def test_no_code_is_unparsed(text: str, parts: dict[str, str]) -> None:
    found = grade_code(text, TESTS, DETAILS)
    assert found.unparsed
    assert "no code" in found.reason
    assert not parts  # and nothing was run


def test_prose_around_a_bare_program_is_unparsed(monkeypatch: pytest.MonkeyPatch) -> None:
    ending(monkeypatch, Run(Ending.INVALID, "SyntaxError: invalid syntax", "answer"))
    found = grade_code(f"Here it is:\n{RIGHT}", TESTS, DETAILS)
    assert found.unparsed
    assert "SyntaxError" in found.reason
    fenced = grade_code(f"```\nHere it is:\n{RIGHT}```", TESTS, DETAILS)
    assert not fenced.unparsed
    assert fenced.reason == "does not compile: SyntaxError: invalid syntax"


# The tests


@pytest.mark.parametrize(
    ("gold", "added"),
    [
        (TESTS, "\n\ncheck(double)\n"),
        (f"{TESTS}\ncheck(double)", ""),
        (f"{TESTS}\nif __name__ == '__main__':\n    check(double)", "\n\ncheck(double)\n"),
        ("assert double(1) == 2", ""),
    ],
)
def test_the_tests_are_always_called(gold: str, added: str, parts: dict[str, str]) -> None:
    grade_code(RIGHT, gold, DETAILS)
    assert parts["tests"] == gold + added


@pytest.mark.parametrize(
    ("details", "gold", "message"),
    [
        ({"entry_point": "f()"}, TESTS, "name of a function"),
        ({"entry_point": "halve"}, TESTS, "no `def halve`"),
        ({}, " \n", "no tests for 'double'"),
    ],
)
def test_a_problem_that_cannot_work_is_refused(
    details: dict[str, str], gold: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        grade_code(RIGHT, gold, DETAILS | details)


@pytest.mark.parametrize(
    "run",
    [
        Run(Ending.FAILED, "ModuleNotFoundError: numpy", "prompt"),
        Run(Ending.INVALID, "SyntaxError: no", "prompt"),
        Run(Ending.INVALID, "SyntaxError: no", "tests"),
    ],
)
def test_a_problem_whose_own_code_fails_is_no_wrong_answer(
    monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    ending(monkeypatch, run)
    with pytest.raises(DataError, match=f"own {run.part} cannot be run"):
        grade_code(RIGHT, TESTS, DETAILS)


def test_without_a_prompt_the_answer_stands_alone(parts: dict[str, str]) -> None:
    assert grade_code(RIGHT, TESTS, {"entry_point": "double", "prompt": ""}).correct
    assert parts["prompt"] == ""


# The grade


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (Run(Ending.FAILED, "AssertionError", "tests"), "failed: AssertionError"),
        (Run(Ending.TIMEOUT, "not done after 10 s"), "timed out: not done after 10 s"),
        (Run(Ending.MEMORY), "out of memory"),
        (Run(Ending.KILLED, "ended by SIGSEGV"), "killed: ended by SIGSEGV"),
    ],
)
def test_every_other_end_is_wrong_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, run: Run, reason: str
) -> None:
    ending(monkeypatch, run)
    assert grade_code(RIGHT, TESTS, DETAILS) == Grade(False, RIGHT, reason)


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"```python\n{RIGHT}```", "all tests passed"),
        ("    return helper(x) * 2", "all tests passed"),
        ("```\nreturn helper(x) * 2\n```", "all tests passed"),
        ("```\nfrom __future__ import annotations\n" + RIGHT + "```", "all tests passed"),
        (
            "def double(x): return 2 * x",
            "failed: AssertionError (at `assert candidate(2.5) == 4`)",
        ),
        ("def double(x): return 1 / x", "failed: AssertionError"),
        ("```\ndef double(x):\n  return 2 *\n```", "does not compile: SyntaxError"),
        ("```\nx = 1\n```", "failed: NameError: name 'double' is not defined"),
        ("def double(x):\n    while True: pass", "timed out"),
        ("def double(x): return [x] * 10**9", "out of memory"),
        ("def double(x): exit()", "failed: "),
        ("def double(x):\n    import os; os.kill(os.getpid(), 9)", "killed: ended by SIGKILL"),
    ],
)
def test_real_programs(text: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.run_program
    limits = Limits(cpu_seconds=1)
    monkeypatch.setattr(module, "run_program", lambda parts: real(parts, limits))
    prompt = PROMPT.replace("@staticmethod\n", "")
    found = grade_code(text, TESTS, {"entry_point": "double", "prompt": prompt})
    assert found.correct == (reason == "all tests passed")
    assert not found.unparsed
    assert found.reason.startswith(reason)
