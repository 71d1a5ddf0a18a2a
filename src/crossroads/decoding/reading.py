"""What every loop does alike: read rows together, fail them apart, and tell of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from crossroads.errors import EngineError
from crossroads.models.base import CausalLM, KVCache, StepOutput, Want
from crossroads.types import TokenRecord, Trace

RowT = TypeVar("RowT")


@dataclass(frozen=True, slots=True)
class Event:
    """One token of one row; `trace` comes with the row's last token.

    A row that fails ends with an event without a token that carries `error`, one sentence.
    """

    row: int
    record: TokenRecord | None
    trace: Trace | None = None
    error: str | None = None


def checked(event: Event) -> Event:
    """Return the event.

    Raises:
        EngineError: it tells of a failure.
    """
    if event.error is not None:
        raise EngineError(event.error)
    return event


@dataclass(frozen=True, slots=True)
class Read(Generic[RowT]):
    """Rows that a model read together, its output, and how many tokens of each it read."""

    rows: Sequence[RowT]
    output: StepOutput
    lags: Sequence[int]


@dataclass(frozen=True, slots=True)
class Failure(Generic[RowT]):
    """A row at which the engine failed."""

    row: RowT
    error: EngineError


def read_rows(
    model: CausalLM,
    rows: Sequence[RowT],
    caches: Sequence[KVCache],
    tokens: Sequence[Sequence[int]],
    want: Want,
) -> list[Read[RowT] | Failure[RowT]]:
    """Extend rows together; if the engine fails at that, row by row, so that the others go on."""
    try:
        lags = [len(part) for part in tokens]
        return [Read(rows, model.extend(caches, tokens, want), lags)]
    except EngineError as error:
        if len(rows) == 1:
            return [Failure(rows[0], error)]
    counts = want.counts(tokens)
    return [
        found
        for row, cache, part, count in zip(rows, caches, tokens, counts, strict=True)
        for found in read_rows(model, [row], [cache], [part], replace(want, positions=(count,)))
    ]
