"""Tasks: where problems to answer come from. A task is one file and one row of `TASKS`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from crossroads.errors import ConfigError
from crossroads.tasks.datasets import load_dataset_problems
from crossroads.tasks.gsm8k import load_gsm8k
from crossroads.tasks.jsonl import read_problems
from crossroads.tasks.reasoning_gym import generate_problems
from crossroads.types import Problem

__all__ = ["TASKS", "TaskFactory", "generate_problems", "load_problems", "read_problems"]

TaskFactory = Callable[[str, int, int], list[Problem]]


def _from_file(path: str, count: int, _seed: int) -> list[Problem]:
    """Return the first `count` problems of a file; the seed has nothing to decide."""
    return read_problems(Path(path))[:count]


TASKS: dict[str, TaskFactory] = {
    "datasets": load_dataset_problems,
    "gsm8k": load_gsm8k,
    "jsonl": _from_file,
    "reasoning_gym": generate_problems,
}


def load_problems(task: str, count: int, seed: int) -> list[Problem]:
    """Return at most `count` problems of a task such as `reasoning_gym:gsm_symbolic`.

    Args:
        task: `NAME:WHAT`; what follows the colon is a data set, or the path of a file.
        count: how many problems.
        seed: which ones, where they are generated.

    Raises:
        ConfigError: no such task.
    """
    name, colon, what = task.partition(":")
    if name not in TASKS or not colon or not what:
        known = ", ".join(f"{known}:..." for known in sorted(TASKS))
        raise ConfigError(f"there is no task {task!r}; give one of {known}")
    return TASKS[name](what, count, seed)
