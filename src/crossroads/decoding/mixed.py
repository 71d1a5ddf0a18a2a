"""The mixed loop: the small model proposes every token, the large model writes some of them.

For every row and step: the small model reads the row's last accepted token and proposes the next;
the router scores the proposal; where the score reaches the row's threshold the large model reads
everything that it has not seen of the row (its lag) in one call and writes the token instead. The
small model's cache never needs repair: a replaced token is simply what it reads next. (R2R,
arXiv 2505.21600, section 3.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from crossroads.decoding.request import Request, RowState
from crossroads.models.base import CausalLM, KVCache, StepOutput, Tokenizer, Want
from crossroads.routing.features import (
    TOP_K,
    FeatureInputs,
    compute,
    needs_embedding,
    needs_hidden,
    needs_history,
)
from crossroads.routing.history import RowHistory, surprise
from crossroads.routing.policy import check_threshold, sends_to_large
from crossroads.routing.routers.base import Router
from crossroads.sampling import row_generator, sample
from crossroads.types import Role, TokenRecord, Trace


@dataclass(frozen=True, slots=True)
class MixedModels:
    """What the loop works with. `threshold` is for requests that bring none of their own."""

    small: CausalLM
    large: CausalLM
    router: Router
    tokenizer: Tokenizer
    threshold: float


@dataclass(frozen=True, slots=True)
class Event:
    """One token of one row; `trace` comes with the row's last token."""

    row: int
    record: TokenRecord
    trace: Trace | None


@dataclass(frozen=True, slots=True)
class _Proposal:
    token_id: int
    score: float
    entropy: float


class _Row:
    """One request in the loop: its state, a cache per model, a generator per role."""

    def __init__(self, index: int, request: Request, models: MixedModels) -> None:
        infos = (models.small.info, models.large.info)
        self.index = index
        self.state = RowState(request, infos, models.tokenizer)
        given = request.threshold
        self.threshold = check_threshold(models.threshold if given is None else given)
        self.history = RowHistory()
        self.generators = {role: row_generator(request.sampling.seed, role) for role in Role}
        self.small: KVCache = models.small.new_cache()
        try:
            self.large: KVCache = models.large.new_cache()
        except BaseException:
            self.small.release()
            raise

    def unread(self, cache: KVCache) -> list[int]:
        """Return the tokens of the row that `cache` has not seen: its lag."""
        return self.state.tokens[cache.length :]

    def draw(self, role: Role, output: StepOutput) -> int:
        """Return the token that the model in `role` writes next, from one row's last output."""
        logits_V = None if output.logits_NV is None else output.logits_NV[-1]
        best = int(output.top_ids_NK[-1, 0])
        return sample(best, logits_V, self.state.request.sampling, self.generators[role])

    def release(self) -> None:
        self.small.release()
        self.large.release()


class MixedLoop:
    """Rows that come and go, one token per row and `step`."""

    def __init__(self, models: MixedModels) -> None:
        """Start without rows."""
        self.models = models
        self._rows: dict[int, _Row] = {}
        self._next_index = 0
        inputs = models.router.inputs
        self._wants_hidden = needs_hidden(inputs)
        self._embed = models.small.embed if needs_embedding(inputs) else None
        self._looks_back = needs_history(inputs)

    @property
    def active(self) -> int:
        """Rows that are generating."""
        return len(self._rows)

    @property
    def room(self) -> int:
        """Rows that can still join."""
        return min(self.models.small.info.max_rows, self.models.large.info.max_rows) - self.active

    def add(self, request: Request) -> int:
        """Let a request join; return its row number.

        Raises:
            RequestError: the request cannot be served. EngineError: no room.
        """
        row = _Row(self._next_index, request, self.models)
        self._rows[row.index] = row
        self._next_index += 1
        return row.index

    def cancel(self, index: int) -> Trace:
        """Take a row out at once and return what it wrote; other rows do not notice."""
        row = self._rows.pop(index)
        row.release()
        return row.state.trace(row.threshold)

    def close(self) -> None:
        """Cancel every row."""
        for index in list(self._rows):
            self.cancel(index)

    def step(self) -> list[Event]:
        """Write one token in every row.

        Effects: each row grows by one token; finished rows leave and free their caches.
        """
        rows = list(self._rows.values())
        if not rows:
            return []
        output, proposals = self._propose(rows)
        asked = [
            (row, proposal)
            for row, proposal in zip(rows, proposals, strict=True)
            if sends_to_large(proposal.score, row.threshold)
        ]
        lags = {row.index: len(row.unread(row.large)) for row, _ in asked}
        written = self._ask_large([row for row, _ in asked])
        if self._looks_back:
            self._remember(rows, output, proposals, written)
        return [
            self._accept(row, proposal, written.get(row.index), lags.get(row.index, 0))
            for row, proposal in zip(rows, proposals, strict=True)
        ]

    def _propose(self, rows: Sequence[_Row]) -> tuple[StepOutput, list[_Proposal]]:
        """Return the small model's outputs and its proposal for each row, scored."""
        want = Want(top_k=TOP_K, hidden=self._wants_hidden, logits=_needs_logits(rows))
        output = self.models.small.extend(
            [row.small for row in rows], [row.unread(row.small) for row in rows], want
        )
        tokens = [row.draw(Role.SMALL, output.row(i)) for i, row in enumerate(rows)]
        inputs = FeatureInputs(
            step=output,
            proposed_N=torch.tensor(tokens),
            position_N=torch.tensor([len(row.state.tokens) for row in rows]),
            embed=self._embed,
            history_NJ2=(
                torch.stack([row.history.tensor() for row in rows]) if self._looks_back else None
            ),
        )
        router = self.models.router
        scores = router.score(compute(router.inputs, inputs)).tolist()
        entropies = output.entropy_N.tolist()
        values = zip(tokens, scores, entropies, strict=True)
        return output, [_Proposal(*value) for value in values]

    def _remember(
        self,
        rows: Sequence[_Row],
        output: StepOutput,
        proposals: Sequence[_Proposal],
        written: dict[int, int],
    ) -> None:
        """Add this step to the rows' histories."""
        accepted = [
            written.get(row.index, proposal.token_id)
            for row, proposal in zip(rows, proposals, strict=True)
        ]
        surprises = surprise(output, torch.tensor(accepted)).tolist()
        for row, proposal, value in zip(rows, proposals, surprises, strict=True):
            row.history.append(proposal.entropy, value)

    def _ask_large(self, rows: Sequence[_Row]) -> dict[int, int]:
        """Return the large model's token for each of the rows, by row number."""
        if not rows:
            return {}
        output = self.models.large.extend(
            [row.large for row in rows],
            [row.unread(row.large) for row in rows],
            Want(logits=_needs_logits(rows)),
        )
        return {row.index: row.draw(Role.LARGE, output.row(i)) for i, row in enumerate(rows)}

    def _accept(self, row: _Row, proposal: _Proposal, written: int | None, lag: int) -> Event:
        record = TokenRecord(
            position=len(row.state.records),
            token_id=proposal.token_id if written is None else written,
            writer=Role.SMALL if written is None else Role.LARGE,
            proposed_id=proposal.token_id,
            score=proposal.score,
            entropy=proposal.entropy,
            lag=lag,
            seconds=row.state.seconds,
        )
        row.state.append(record)
        if row.state.finish_reason is None:
            return Event(row.index, record, None)
        del self._rows[row.index]
        row.release()
        return Event(row.index, record, row.state.trace(row.threshold))


def _needs_logits(rows: Sequence[_Row]) -> bool:
    return any(not row.state.request.sampling.greedy for row in rows)


def stream(models: MixedModels, request: Request) -> Iterator[Event]:
    """Yield one request's tokens as they are written. Closing the iterator frees the row."""
    loop = MixedLoop(models)
    loop.add(request)
    try:
        while loop.active:
            yield from loop.step()
    finally:
        loop.close()


def generate(
    models: MixedModels,
    requests: Sequence[Request],
    *,
    max_rows: int = 8,
    on_token: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, Trace]]:
    """Yield (index of the request, its trace) as rows finish, `max_rows` at a time.

    A waiting request joins as soon as a row is free. Rows do not influence each other. `on_token`
    hears of every token, with the number of open rows.
    """
    loop = MixedLoop(models)
    waiting = list(enumerate(requests))[::-1]
    number_of: dict[int, int] = {}
    try:
        while waiting or loop.active:
            while waiting and loop.active < max_rows and loop.room > 0:
                number, request = waiting.pop()
                number_of[loop.add(request)] = number
            for event in loop.step():
                if on_token is not None:
                    on_token(len(number_of))
                if event.trace is not None:
                    yield number_of.pop(event.row), event.trace
    finally:
        loop.close()
