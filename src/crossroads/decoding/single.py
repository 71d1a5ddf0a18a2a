"""One model alone: the baselines, and the large model's responses for labelling.

Written apart from the mixed loop on purpose: law 1 compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from crossroads.decoding.request import Request, RowState
from crossroads.models.base import CausalLM, KVCache, Tokenizer, Want
from crossroads.sampling import row_generator, sample
from crossroads.types import Role, TokenRecord, Trace


def generate_alone(
    model: CausalLM,
    role: Role,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    *,
    max_rows: int = 8,
    on_token: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, Trace]]:
    """Yield (index of the request, its trace) as rows finish, `max_rows` at a time.

    `role` chooses the random stream, so that a row sampled here equals the mixed loop's at its
    end of the threshold. `on_token` hears of every token, with the number of open rows.
    """
    waiting = list(enumerate(requests))[::-1]
    rows: dict[int, tuple[RowState, KVCache, np.random.Generator]] = {}
    limit = min(max_rows, model.info.max_rows)
    try:
        while waiting or rows:
            while waiting and len(rows) < limit:
                number, request = waiting.pop()
                state = RowState(request, [model.info], tokenizer)
                generator = row_generator(request.sampling.seed, role)
                rows[number] = (state, model.new_cache(), generator)
            states = [state for state, _, _ in rows.values()]
            caches = [cache for _, cache, _ in rows.values()]
            want = Want(logits=any(not s.request.sampling.greedy for s in states))
            lags = [state.tokens[cache.length :] for state, cache, _ in rows.values()]
            output = model.extend(caches, lags, want)
            for i, (number, (state, cache, generator)) in enumerate(list(rows.items())):
                logits_V = None if output.logits_NV is None else output.logits_NV[i]
                best = int(output.top_ids_NK[i, 0])
                token = sample(best, logits_V, state.request.sampling, generator)
                lag = len(lags[i]) if role is Role.LARGE else 0
                record = TokenRecord(
                    len(state.records), token, role, lag=lag, seconds=state.seconds
                )
                state.append(record)
                if on_token is not None:
                    on_token(len(rows))
                if state.finish_reason is not None:
                    del rows[number]
                    cache.release()
                    yield number, state.trace()
    finally:
        for _, cache, _ in rows.values():
            cache.release()
