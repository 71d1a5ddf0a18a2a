"""Routing by hindsight: the large model is looked at everywhere and writes only where it must.

No router can do this, for it costs the large model's reading of every token. It shows what a
perfect one would reach: at each position where the small model's proposal is not the large
model's own, the likelihood judge decides at once whether the proposal is divergent, and only then
the large model's token is taken. Greedy, like the labels (R2R, arXiv 2505.21600, section 3.1).

Shapes: N rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from crossroads.decoding.request import Request, RowState
from crossroads.errors import RequestError
from crossroads.models.base import KVCache, Want
from crossroads.models.pairs import Pair
from crossroads.types import Cause, Role, TokenRecord, Trace

ORACLE_RATIO = 0.1
"""The likelihood judge's own default: divergent below a tenth of the likeliest probability."""


@dataclass(frozen=True, slots=True)
class _Row:
    state: RowState
    small: KVCache
    large: KVCache

    def release(self) -> None:
        self.small.release()
        self.large.release()


def generate_oracle(
    pair: Pair,
    requests: Sequence[Request],
    *,
    ratio: float = ORACLE_RATIO,
    max_rows: int = 8,
    on_token: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, Trace]]:
    """Yield (index of the request, its trace) as rows finish.

    A record's score is 1 where the proposal was divergent and 0 elsewhere; its lag counts the
    tokens since the large model's last, as if it had been asked at its own tokens alone.

    Raises:
        RequestError: a request that samples: a judgement of a drawn token means nothing.
    """
    if any(not request.sampling.greedy for request in requests):
        raise RequestError("the oracle is greedy, like the labels; set the temperature to 0")
    waiting = list(enumerate(requests))[::-1]
    rows: dict[int, _Row] = {}
    limit = min(max_rows, pair.small.info.max_rows, pair.large.info.max_rows)
    models = [pair.small.info, pair.large.info]
    try:
        while waiting or rows:
            while waiting and len(rows) < limit:
                number, request = waiting.pop()
                state = RowState(request, models, pair.tokenizer)
                rows[number] = _Row(state, pair.small.new_cache(), pair.large.new_cache())
            for number, record in _step(pair, rows, math.log(ratio)):
                row = rows[number]
                row.state.append(record)
                if on_token is not None:
                    on_token(len(rows))
                if row.state.finish_reason is not None:
                    del rows[number]
                    row.release()
                    yield number, row.state.trace()
    finally:
        for row in rows.values():
            row.release()


def _step(pair: Pair, rows: dict[int, _Row], bound: float) -> list[tuple[int, TokenRecord]]:
    """Return the next token of every row."""
    some = list(rows.values())
    unread = [row.state.tokens[row.small.length :] for row in some]
    small = pair.small.extend([row.small for row in some], unread, Want())
    large = pair.large.extend([row.large for row in some], unread, Want(logits=True))
    assert large.logits_NV is not None
    found = []
    for i, (number, row) in enumerate(rows.items()):
        proposed, own = int(small.top_ids_NK[i, 0]), int(large.top_ids_NK[i, 0])
        gap = float(large.logits_NV[i, proposed] - large.logits_NV[i, own])
        divergent = proposed != own and gap < bound
        record = TokenRecord(
            position=len(row.state.records),
            token_id=own if divergent else proposed,
            writer=Role.LARGE if divergent else Role.SMALL,
            proposed_id=proposed,
            score=float(divergent),
            entropy=float(small.entropy_N[i]),
            lag=_lag(row.state) if divergent else 0,
            seconds=row.state.seconds,
            cause=Cause.ROUTER if divergent else None,
        )
        found.append((number, record))
    return found


def _lag(state: RowState) -> int:
    """Return how many tokens the large model would have to read, had it only written its own."""
    for since, record in enumerate(reversed(state.records)):
        if record.writer is Role.LARGE:
            return since + 1
    return len(state.tokens)
