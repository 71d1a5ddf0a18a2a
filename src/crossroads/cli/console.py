"""What every verb prints with: two consoles, and a progress that is honest on any terminal."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from types import TracebackType

from rich import filesize
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.table import Column
from rich.text import Text

PLAIN_INTERVAL_SECONDS = 15.0
# Before this share of a stage and this many seconds, an estimate would be a guess.
_ESTIMATE_AFTER_SHARE = 0.02
_ESTIMATE_AFTER_SECONDS = 2.0
_AT_ONCE_SECONDS = 0.5
"""What is reported sooner was done by an earlier run, and says nothing of the rate."""


def console() -> Console:
    """Return a console on standard output, for results."""
    return Console(highlight=False, emoji=False, quiet=_follows())


def stderr() -> Console:
    """Return a console on standard error, for progress, notes and errors."""
    return Console(stderr=True, highlight=False, emoji=False, quiet=_follows())


def _follows() -> bool:
    """Return whether this is one of several processes and not the first, which speaks for all."""
    return os.environ.get("RANK", "0") != "0"


def amount(value: float, unit: str) -> str:
    """Return a number of units as people read it: `1.1 GB`, `340 tokens`."""
    if unit == "B":
        return filesize.decimal(int(value))
    return f"{value:,.0f} {unit}".strip()


def duration(seconds: float) -> str:
    """Return seconds as `42 s`, `3 min 05 s` or `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def remaining(done: float, total: float, seconds: float, before: float = 0.0) -> float | None:
    """Return the seconds left at the mean rate so far; None while that would be a guess.

    before: how much of what is done an earlier run did.
    """
    own, whole = done - before, total - before
    if seconds < _ESTIMATE_AFTER_SECONDS or own < whole * _ESTIMATE_AFTER_SHARE or own <= 0:
        return None
    return seconds * max(total - done, 0.0) / own


class _Amount(ProgressColumn):
    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        total = amount(task.total or 0, unit)
        return Text(f"{amount(task.completed, unit)} of {total}", style="progress.download")


class _Left(ProgressColumn):
    def render(self, task: Task) -> Text:
        if task.finished:
            return Text("")
        before = task.fields["before"]
        left = remaining(task.completed, task.total or 0, task.elapsed or 0, before)
        return Text("" if left is None else f"{duration(left)} left", style="progress.remaining")


class RichProgress:
    """A `Progress` for people: a bar on a terminal, a plain line now and then elsewhere.

    A stage that is started while another one runs ends that one. Use it as a context manager, so
    that the terminal is put right when an error passes through.
    """

    def __init__(
        self, out: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Draw on `out`, standard error unless given."""
        self.console = out or stderr()
        self._clock = clock
        self._name = ""
        self._unit = ""
        self._words = ""
        self._total = 0.0
        self._done = 0.0
        self._before = 0.0
        self._started = 0.0
        self._spoken = 0.0
        self._active = False
        self._task: TaskID | None = None
        self._bar: Progress | None = None
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn(
                    "{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1)
                ),
                BarColumn(bar_width=16),
                _Amount(table_column=Column(no_wrap=True)),
                _Left(table_column=Column(no_wrap=True)),
                console=self.console,
                expand=True,
            )

    def __enter__(self) -> RichProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._active = False
        if self._bar is not None:
            self._bar.stop()

    def note(self, message: str) -> None:
        """Print one line without tearing the bar."""
        self.console.print(message, markup=False, soft_wrap=True)

    def start(self, name: str, total: float, unit: str) -> None:
        """Begin a stage of `total` units."""
        if self._active:
            self.finish()
        self._name, self._total, self._unit = name, total, unit
        self._words = ""
        self._done, self._before, self._active = 0.0, 0.0, True
        self._started = self._spoken = self._clock()
        if self._bar is not None:
            self._task = self._bar.add_task(name, total=total, unit=unit, before=0.0)
        else:
            self.note(f"{name}: {amount(total, unit)}")

    def advance(self, amount: float = 1.0) -> None:
        """Report `amount` more units of the current stage."""
        self._done += amount
        if self._clock() - self._started < _AT_ONCE_SECONDS:
            self._before = self._done
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=amount, before=self._before)
        elif self._clock() - self._spoken >= PLAIN_INTERVAL_SECONDS:
            self._spoken = self._clock()
            self.note(self._line())

    def describe(self, text: str) -> None:
        """Show a few words beside the current stage."""
        self._words = text
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=f"{self._name}: {text}")

    def finish(self) -> None:
        """End the current stage. A stage that stopped short is shown as far as it came."""
        if not self._active:
            return
        self._active = False
        seconds = self._clock() - self._started
        if self._bar is not None and self._task is not None:
            self._bar.stop_task(self._task)
            self._bar.refresh()
        else:
            self.note(f"{self._name}: {amount(self._done, self._unit)} in {duration(seconds)}")

    def _line(self) -> str:
        share = self._done / self._total if self._total else 0.0
        line = (
            f"{self._name}: {amount(self._done, self._unit)} of "
            f"{amount(self._total, self._unit)} ({share:.0%})"
        )
        if self._words:
            line = f"{line}, {self._words}"
        seconds = self._clock() - self._started
        left = remaining(self._done, self._total, seconds, self._before)
        return line if left is None else f"{line}, {duration(left)} left"
