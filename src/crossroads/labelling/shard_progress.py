"""The progress of several workers as one: every stage is one bar, its units those of all workers.

Nothing here imports a model: the process that collects the reports stays small.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from crossroads.types import Progress

_INTERVAL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class StageReport:
    """How far one worker is in one stage."""

    name: str
    unit: str
    total: float
    done: float = 0.0
    ended: bool = False


Report = tuple[StageReport, ...]
"""The stages that a worker has begun, in order; workers of a run have the same stages."""


class ReportingProgress:
    """A worker's `Progress`: sends a report now and then, and whenever a stage begins or ends."""

    def __init__(
        self, send: Callable[[Report], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Report to `send`."""
        self._send = send
        self._clock = clock
        self._stages: list[StageReport] = []
        self._sent = clock()

    def start(self, name: str, total: float, unit: str) -> None:
        """Begin a stage."""
        self._stages.append(StageReport(name, unit, total))
        self._tell()

    def advance(self, amount: float = 1.0) -> None:
        """Count `amount` units."""
        self._stages[-1] = replace(self._stages[-1], done=self._stages[-1].done + amount)
        if self._clock() - self._sent >= _INTERVAL_SECONDS:
            self._tell()

    def describe(self, text: str) -> None:
        """Forget the words: those of several workers would not fit one line."""

    def finish(self) -> None:
        """End the stage."""
        self._stages[-1] = replace(self._stages[-1], ended=True)
        self._tell()

    def _tell(self) -> None:
        self._sent = self._clock()
        self._send(tuple(self._stages))


class Reports:
    """The newest report of each worker; they tell it, the driver reads it."""

    def __init__(self) -> None:
        """Begin without any."""
        self._newest: dict[int, Report] = {}

    def tell(self, worker: int, report: Report) -> None:
        """Replace a worker's report."""
        self._newest[worker] = report

    def read(self) -> dict[int, Report]:
        """Return all of them, by worker."""
        return self._newest


class Board:
    """Shows the reports of all workers on one `Progress`.

    A stage is shown once every worker has begun it, so that its total is known; what quick workers
    have done by then counts at once.
    """

    def __init__(self, progress: Progress, workers: int) -> None:
        """Show on `progress`, from the moment when the workers are started."""
        self._progress = progress
        self._reports: dict[int, Report] = dict.fromkeys(range(workers), ())
        self._stage = 0
        self._shown = 0.0
        self._started = False
        self._ready = 0
        progress.start("workers load both models", workers, "workers")

    def show(self, reports: Mapping[int, Report]) -> None:
        """Bring the display up to date with the newest report of each worker."""
        self._reports |= reports
        self._show_ready(sum(bool(report) for report in self._reports.values()))
        while self._show_stage():
            self._stage += 1
            self._started = False

    def close(self) -> None:
        """All workers have ended their work."""
        self._show_ready(len(self._reports))

    def _show_ready(self, ready: int) -> None:
        if ready > self._ready:
            self._progress.advance(ready - self._ready)
            self._ready = ready
            if ready == len(self._reports):
                self._progress.finish()

    def _show_stage(self) -> bool:
        """Show the current stage; return whether all workers have ended it."""
        if any(len(report) <= self._stage for report in self._reports.values()):
            return False
        stages = [report[self._stage] for report in self._reports.values()]
        if not self._started:
            total = sum(stage.total for stage in stages)
            self._progress.start(stages[0].name, total, stages[0].unit)
            self._started, self._shown = True, 0.0
        done = sum(stage.done for stage in stages)
        if done > self._shown:
            self._progress.advance(done - self._shown)
            self._shown = done
        if not all(stage.ended for stage in stages):
            return False
        self._progress.finish()
        return True
