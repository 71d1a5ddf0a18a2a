"""What every loop does alike: read rows together, fail them apart, and tell of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from crossroads.errors import EngineError
from crossroads.models.base import CausalLM, KVCache, StepOutput, Want
from crossroads.models.token_cache import TokenModel
from crossroads.types import TokenRecord, Trace

AT_ONCE = 512
"""Tokens of one row that are read in one call: others wait for them. Whole graphs of llama.cpp."""

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
    """Rows that a model read together, and its output."""

    rows: Sequence[RowT]
    output: StepOutput


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
    """Extend rows together; if the engine fails at that, row by row, so that the others go on.

    A row that has much to read is missing in the answer until the call that reads the last of it:
    every call reads a part of the first such row, so that no other row waits for longer than that
    takes. Where the parts end depends on the row alone. Servers read in parts by themselves.
    """
    counts, texts = want.counts(tokens), list(tokens)

    def together(places: Sequence[int], want: Want) -> list[Read[RowT] | Failure[RowT]]:
        mine = [rows[i] for i in places]
        try:
            read = model.extend([caches[i] for i in places], [texts[i] for i in places], want)
        except EngineError as error:
            if len(places) == 1:
                return [Failure(mine[0], error)]
        else:
            return [Read(mine, read)]
        return [
            found for i in places for found in together([i], replace(want, positions=(counts[i],)))
        ]

    long = [
        i
        for i, (text, count) in enumerate(zip(tokens, counts, strict=True))
        if len(text) - count > AT_ONCE and not isinstance(model, TokenModel)
    ]
    if not long:
        return together(range(len(rows)), want)
    texts[long[0]] = tokens[long[0]][:AT_ONCE]
    part = together(long[:1], Want(insist=want.insist))
    failures: list[Read[RowT] | Failure[RowT]] = [f for f in part if isinstance(f, Failure)]
    short = [i for i in range(len(rows)) if i not in long]
    if not short:
        return failures
    return failures + together(short, replace(want, positions=tuple(counts[i] for i in short)))
