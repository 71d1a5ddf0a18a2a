"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): word problems whose answers end in `#### 72`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from crossroads.errors import DataError
from crossroads.tasks.datasets import DatasetOptions, dataset_problems
from crossroads.tasks.reasoning_gym import INSTRUCTION
from crossroads.types import Message, Problem

_HUB_SPLITS = ("train", "test")


def load_gsm8k(what: str, count: int, _seed: int) -> list[Problem]:
    """Return the first `count` problems of a hub split or a JSONL file, in order.

    Ids are `gsm8k-<split or stem>-<row>`, rows from 0. The seed has nothing to decide.

    Args:
        what: `train`, `test`, or the path of a file with `question` and `answer` on each line.
        count: how many problems.
        _seed: not used; every task takes one.

    Raises:
        DataError: the problems cannot be read, or an answer has no `####`.
        EngineError: a hub split is wanted and `datasets` is not installed.
    """
    if count < 1:
        raise DataError(f"asked gsm8k for {count} problems; ask for at least one")
    return _from_hub(what, count) if what in _HUB_SPLITS else _from_file(Path(what), count)


def _from_hub(split: str, count: int) -> list[Problem]:
    options = DatasetOptions(
        path="openai/gsm8k",
        name="main",
        split=split,
        prompt="question",
        answer="answer",
        instruction=INSTRUCTION,
    )
    return [
        replace(
            problem,
            id=f"gsm8k-{split}-{row}",
            answer=_gold(problem.answer or "", f"{options.path} row {row}"),
        )
        for row, problem in enumerate(dataset_problems(options, count))
    ]


def _from_file(path: Path, count: int) -> list[Problem]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(f"cannot read the problems {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the problems {path} are not UTF-8 text: {error}") from error
    problems: list[Problem] = []
    for number, line in enumerate(lines, start=1):
        if line.strip() and len(problems) < count:
            problem_id = f"gsm8k-{path.stem}-{len(problems)}"
            problems.append(_problem(line, problem_id, f"{path} line {number}"))
    if not problems:
        raise DataError(f"{path} has no problems; write one JSON object per line")
    return problems


def _problem(line: str, problem_id: str, where: str) -> Problem:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}") from error
    fields = value if isinstance(value, dict) else {}
    question, answer = fields.get("question"), fields.get("answer")
    if not isinstance(question, str) or not question.strip() or not isinstance(answer, str):
        raise DataError(f"{where} needs `question` and `answer`, both of them text")
    return Problem(
        id=problem_id,
        messages=(Message("user", f"{question}\n\n{INSTRUCTION}"),),
        answer=_gold(answer, where),
        domain="gsm8k",
    )


def _gold(answer: str, where: str) -> str:
    """Return what follows the last `####`, without thousands commas."""
    _, mark, gold = answer.rpartition("####")
    gold = gold.strip().replace(",", "")
    if not mark or not gold:
        raise DataError(f"{where}: the answer must end in `#### 72`, got {answer[-40:]!r}")
    return gold
