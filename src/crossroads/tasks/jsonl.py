"""Problems from a file with one JSON object per line.

A line has `prompt` (text of one user message) or `messages` (`[{"role": ..., "content": ...}]`),
an `id` that no other line has, and, if wanted, `answer` and `domain`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossroads.artifacts import write_text
from crossroads.errors import DataError
from crossroads.types import Message, Problem


def read_problems(path: Path) -> list[Problem]:
    """Return the problems of a JSONL file in order; blank lines are skipped.

    Raises:
        DataError: the file cannot be read or has no problems, or a line is not a problem.
    """
    problems: list[Problem] = []
    line_of: dict[str, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        problem = _problem(line, where)
        if problem.id in line_of:
            raise DataError(
                f"{where} repeats the id {problem.id!r} of line {line_of[problem.id]}; "
                "give every problem its own"
            )
        line_of[problem.id] = number
        problems.append(problem)
    if not problems:
        raise DataError(f"{path} has no problems; write one JSON object per line")
    return problems


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError as error:
        raise DataError(f"no problems at {path}") from error
    except OSError as error:
        raise DataError(f"cannot read the problems {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the problems {path} are not UTF-8 text: {error}") from error


def _problem(line: str, where: str) -> Problem:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{where} is not a JSON object but {_kind(value)}")
    if "id" not in value:
        raise DataError(f"{where} has no `id`; give every problem its own")
    answer = value.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
        raise DataError(f"{where}: `answer` must be text or a number, got {_kind(answer)}")
    return Problem(
        id=_identity(value["id"], where),
        messages=_messages(value, where),
        answer=None if answer is None else str(answer),
        domain=_text(value.get("domain", "default"), "domain", where),
    )


def _identity(value: Any, where: str) -> str:
    """Return the id as text; whole numbers are taken as ids too."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(value, "id", where)


def _messages(value: dict[str, Any], where: str) -> tuple[Message, ...]:
    if ("prompt" in value) == ("messages" in value):
        found = "both" if "prompt" in value else "neither"
        raise DataError(f"{where} needs either `prompt` or `messages`, it has {found}")
    if "prompt" in value:
        return (Message("user", _text(value["prompt"], "prompt", where)),)
    messages = value["messages"]
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: `messages` must be a list with at least one message")
    return tuple(_message(message, where) for message in messages)


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict) or "role" not in value or "content" not in value:
        raise DataError(f"{where}: each message needs `role` and `content`")
    return Message(_text(value["role"], "role", where), _text(value["content"], "content", where))


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: `{name}` must be text, got {_kind(value)}")
    if not value.strip():
        raise DataError(f"{where}: `{name}` is empty")
    return value


def _kind(value: Any) -> str:
    """Return what JSON calls the type of `value`."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")


def write_problems(path: Path, problems: Sequence[Problem]) -> None:
    """Write problems as `read_problems` reads them, atomically."""
    lines = []
    for problem in problems:
        value: dict[str, Any] = {
            "id": problem.id,
            "messages": [{"role": m.role, "content": m.content} for m in problem.messages],
            "domain": problem.domain,
        }
        if problem.answer is not None:
            value["answer"] = problem.answer
        lines.append(json.dumps(value, ensure_ascii=False))
    write_text(path, "".join(f"{line}\n" for line in lines))
