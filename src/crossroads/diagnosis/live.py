"""Scores of real generations: what the router did on the path that both models wrote."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossroads.artifacts import ResumableLog, read_json
from crossroads.errors import DataError
from crossroads.types import Role, Trace

TRACES = "traces.jsonl"


@dataclass(frozen=True, slots=True)
class Live:
    """Scored tokens of some traces.

    score_N: the router's. large_N: whether the large model wrote the token. trace_N: which trace
    it is in, the cluster. thresholds: those that the traces ran at. prompt_tokens: of all traces.
    unscored: generated tokens that no router scored.
    """

    source: Path
    score_N: np.ndarray
    large_N: np.ndarray
    trace_N: np.ndarray
    thresholds: tuple[float, ...]
    traces: int
    prompt_tokens: int
    unscored: int

    @property
    def generated(self) -> int:
        """Generated tokens, scored or not."""
        return len(self.score_N) + self.unscored


def read_live(path: Path, router: str | None = None) -> Live:
    """Return the scored tokens of a trace file, or of every `traces.jsonl` in a folder.

    An evaluation folder holds the traces of several systems; with `router`, only those whose
    config names that router are read, if any does.

    Raises:
        DataError: no trace with scores there.
    """
    chosen = list(_traces(path, router)) if router is not None else []
    traces = chosen or list(_traces(path, None))
    scored = [
        (number, record)
        for number, trace in enumerate(traces)
        for record in trace.records
        if record.score is not None
    ]
    if not scored:
        raise DataError(
            f"no trace with router scores at {path}; give a folder with {TRACES} of an evaluation "
            "with the router, or a file that `crossroads generate --trace` wrote"
        )
    return Live(
        source=path,
        score_N=np.array([record.score for _, record in scored], np.float32),
        large_N=np.array([record.writer is Role.LARGE for _, record in scored]),
        trace_N=np.array([number for number, _ in scored]),
        thresholds=tuple(sorted({t.threshold for t in traces if t.threshold is not None})),
        traces=len(traces),
        prompt_tokens=sum(len(trace.prompt_ids) for trace in traces),
        unscored=sum(len(trace.records) for trace in traces) - len(scored),
    )


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
