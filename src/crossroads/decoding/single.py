"""One model alone: the baselines, and the large model's responses for labelling.

Written apart from the mixed loop on purpose: law 1 compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from crossroads.decoding.candidates import candidates
from crossroads.decoding.kept import KeptCaches
from crossroads.decoding.reading import Event, Failure, Read, checked, read_rows
from crossroads.decoding.request import Request, RowState
from crossroads.decoding.revision import logprob, tops
from crossroads.decoding.served import generate_served
from crossroads.errors import EngineError
from crossroads.models.base import CausalLM, KVCache, StepOutput, Tokenizer, Want
from crossroads.models.served import ServedLM
from crossroads.sampling import row_generator, sample
from crossroads.types import FinishReason, Role, TokenRecord, Trace


@dataclass(slots=True)
class _Row:
    index: int
    state: RowState
    cache: KVCache
    generator: np.random.Generator
    read: int
    """Tokens that the model had read before the next one is written."""


class SingleLoop:
    """Rows of one model that come and go; `step` takes each of them on by a token.

    A request's threshold, policy and limits on the large model mean nothing here.
    """

    def __init__(
        self,
        model: CausalLM,
        role: Role,
        tokenizer: Tokenizer,
        kept: KeptCaches | None = None,
        *,
        insist: bool = True,
    ) -> None:
        """Start without rows.

        role: chooses the random stream, so that a row sampled here equals the mixed loop's at its
        end of the threshold. kept: as in `MixedLoop`. insist: as in `Want`.
        """
        self._kept = KeptCaches() if kept is None else kept
        self._insist = insist
        self._model = model
        self._role = role
        self._tokenizer = tokenizer
        self._rows: dict[int, _Row] = {}
        self._next_index = 0

    @property
    def active(self) -> int:
        """Rows that are generating."""
        return len(self._rows)

    def add(self, request: Request) -> int:
        """Let a request join; return its row number.

        Raises:
            RequestError: the request cannot be served. EngineError: no room.
        """
        state = RowState(request, [self._model.info], self._tokenizer)
        generator = row_generator(request.sampling.seed, self._role)
        cache = self._kept.take(self._role, self._model, request.prompt_ids)
        row = _Row(self._next_index, state, cache, generator, cache.length)
        self._rows[row.index] = row
        self._next_index += 1
        return row.index

    def cancel(self, index: int) -> Trace:
        """Take a row out at once and return what there is of it; other rows do not notice."""
        return self._leave(self._rows[index], FinishReason.CANCELLED)

    def close(self) -> None:
        """Cancel every row."""
        for index in list(self._rows):
            self.cancel(index)

    def step(self) -> list[Event]:
        """Take every row on by a token, or by a part of what it has to read, if that is long.

        Finished rows leave and free their caches.
        """
        rows = list(self._rows.values())
        if not rows:
            return []
        want = Want(
            top_k=max(row.state.request.logprobs or 1 for row in rows),
            logits=any(row.state.request.sampling.needs_logits for row in rows),
            insist=self._insist,
        )
        lags = [row.state.tokens[row.cache.length :] for row in rows]
        events: list[Event] = []
        for read in read_rows(self._model, rows, [row.cache for row in rows], lags, want):
            if isinstance(read, Failure):
                events.append(self._drop(read))
            else:
                events += self._write(read)
        return events

    def _drop(self, failure: Failure[_Row]) -> Event:
        trace = self._leave(failure.row, FinishReason.ERROR)
        return Event(failure.row.index, None, trace, str(failure.error))

    def _write(self, read: Read[_Row]) -> list[Event]:
        events: list[Event] = []
        for i, row in enumerate(read.rows):
            try:
                record = self._record(row, read.output, i)
            except EngineError as error:  # something that it needs was not told
                events.append(self._drop(Failure(row, error)))
                continue
            row.state.append(record)
            trace = None
            if row.state.finish_reason is not None:
                trace = self._leave(row, row.state.finish_reason)
            events.append(Event(row.index, record, trace))
        return events

    def _record(self, row: _Row, output: StepOutput, place: int) -> TokenRecord:
        lag, row.read = row.cache.length - row.read, row.cache.length
        state, request = row.state, row.state.request
        own = candidates(output, place, request.sampling, state.tokens, len(request.prompt_ids))
        token_id = sample(own.best_id, own.logits_V, request.sampling, row.generator)
        count = request.logprobs
        return TokenRecord(
            position=len(state.records),
            token_id=token_id,
            writer=self._role,
            lag=lag if self._role is Role.LARGE else 0,
            seconds=state.seconds,
            logprob=None if count is None else logprob(output, place, token_id),
            top_logprobs=None if count is None else tops(output, place, count),
        )

    def _leave(self, row: _Row, reason: FinishReason) -> Trace:
        del self._rows[row.index]
        row.state.finish_reason = reason
        if reason is FinishReason.ERROR:
            row.cache.release()
        else:
            self._kept.give_back(self._role, row.cache, row.state.tokens)
        return row.state.trace()


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

    `role` chooses the random stream, as in `SingleLoop`. `on_token` hears of every token, with the
    number of open rows. A model behind servers writes each answer by itself, in one request,
    unless log-probabilities are asked for.

    Raises:
        EngineError: the engine failed.
    """
    limit = min(max_rows, model.info.max_rows)
    if isinstance(model, ServedLM) and all(request.logprobs is None for request in requests):
        yield from generate_served(model, role, tokenizer, requests, limit, on_token)
        return
    loop = SingleLoop(model, role, tokenizer)
    waiting = list(enumerate(requests))[::-1]
    number_of: dict[int, int] = {}
    try:
        while waiting or loop.active:
            while waiting and loop.active < limit:
                number, request = waiting.pop()
                number_of[loop.add(request)] = number
            for event in loop.step():
                checked(event)
                if on_token is not None:
                    on_token(len(number_of))
                if event.trace is not None:
                    yield number_of.pop(event.row), event.trace
    finally:
        loop.close()
