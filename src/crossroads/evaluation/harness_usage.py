"""Who wrote how much, task by task, while the harness asks for one batch after another."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from crossroads.types import Trace, Usage


class UsageTally:
    """Sums of the traces' own counts; nothing here counts tokens."""

    def __init__(self) -> None:
        """Start at nothing."""
        self._usage: defaultdict[str, Usage] = defaultdict(Usage)
        self._answers: Counter[str] = Counter()
        self._scored: Counter[str] = Counter()

    def answer(self, task: str, trace: Trace) -> None:
        """Count one answer."""
        self._usage[task] += trace.usage
        self._answers[task] += 1

    def scored(self, tasks: Sequence[str]) -> None:
        """Count given texts whose log-probability was asked for, by the tasks that asked."""
        self._scored.update(tasks)

    def report(self) -> dict[str, Any]:
        """Return the counts over all tasks and, under `tasks`, of each, as plain JSON values."""
        tasks = sorted({*self._answers, *self._scored})
        return {**self._counts(tasks), "tasks": {task: self._counts([task]) for task in tasks}}

    def _counts(self, tasks: Sequence[str]) -> dict[str, Any]:
        usage = sum((self._usage[task] for task in tasks), Usage())
        return {
            "answers": sum(self._answers[task] for task in tasks),
            "scored_texts": sum(self._scored[task] for task in tasks),
            "generated_tokens": usage.generated_tokens,
            "large_fraction": usage.large_fraction,
            **asdict(usage),
        }
