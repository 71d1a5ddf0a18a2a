"""Scores of real generations: what the router did on the path that both models wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossroads.artifacts import ResumableLog, read_json
from crossroads.errors import DataError
from crossroads.types import Role, Trace, Usage

TRACES = "traces.jsonl"


@dataclass(frozen=True, slots=True)
class Live:
    """Scored tokens of some traces.

    score_N: the router's. large_N: whether the large model wrote the token. trace_N: which trace
    it is in, the cluster.
    """

    source: Path
    traces: tuple[Trace, ...]
    score_N: np.ndarray
    large_N: np.ndarray
    trace_N: np.ndarray

    @classmethod
    def of(cls, traces: Sequence[Trace], source: Path) -> Live:
        """Return the tokens of traces that have a score.

        Raises:
            DataError: none has.
        """
        scored = [
            (number, record)
            for number, trace in enumerate(traces)
            for record in trace.records
            if record.score is not None
        ]
        if not scored:
            raise DataError(
                f"no trace with router scores at {source}; give a folder with {TRACES} of an "
                "evaluation with the router, or a file that `crossroads generate --trace` wrote"
            )
        return cls(
            source,
            tuple(traces),
            np.array([record.score for _, record in scored], np.float32),
            np.array([record.writer is Role.LARGE for _, record in scored]),
            np.array([number for number, _ in scored]),
        )

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Those that the traces ran at, ascending."""
        return tuple(sorted({t.threshold for t in self.traces if t.threshold is not None}))

    @property
    def usage(self) -> Usage:
        """Counts of all traces, scored tokens or not."""
        return sum((trace.usage for trace in self.traces), Usage())

    def at_threshold(self, threshold: float) -> Live:
        """Return the traces that ran at one of `thresholds`."""
        return Live.of([t for t in self.traces if t.threshold == threshold], self.source)


def read_live(path: Path, router: str | None = None) -> Live:
    """Return the scored tokens of a trace file, or of every `traces.jsonl` in a folder.

    An evaluation folder holds the traces of several systems; with `router`, only those whose
    config names that router are read, if any does.

    Raises:
        DataError: no trace with scores there.
    """
    chosen = list(_traces(path, router)) if router is not None else []
    return Live.of(chosen or list(_traces(path, None)), path)


def _traces(path: Path, router: str | None) -> Iterator[Trace]:
    if path.is_dir():
        for file in sorted(path.rglob(TRACES)):
            if router is None or _router_of(file.parent) == router:
                yield from _lines(file)
    elif path.suffix == ".jsonl":
        yield from _lines(path)
    else:
        yield _trace(read_json(path, "trace"), path)


def _lines(path: Path) -> Iterator[Trace]:
    for record in ResumableLog(path):
        yield _trace(record.get("trace", record), path)


def _trace(value: Any, path: Path) -> Trace:
    try:
        return Trace.from_json(value)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} holds something that is not a trace ({error!r})") from error


def _router_of(folder: Path) -> str | None:
    config = folder / "config.json"
    if not config.exists():
        return None
    found = read_json(config, "configuration of the traces").get("router")
    return None if found is None else str(found)
