"""The mixed loop: the small model proposes every token, the large model writes some of them.

For every row and step: the small model reads the row's last token and proposes the next; the
router scores the proposal; where the row's policy says so the large model reads everything that it
has not seen of the row (its lag) in one call and writes the token instead (R2R, arXiv 2505.21600,
section 3). The small model's cache needs no repair: a replaced token is simply what it reads next.
A row may also let the large model take back what it finds in its lag (`decoding.revision`).

Shapes: N positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from crossroads.decoding.kept import KeptCaches
from crossroads.decoding.reading import Event, Failure, Read, checked, read_rows
from crossroads.decoding.request import Request
from crossroads.decoding.revision import needs_logits, top_k
from crossroads.decoding.row import Proposal, Row
from crossroads.errors import EngineError, UnreachableError
from crossroads.models.base import CausalLM, Tokenizer, Want
from crossroads.routing.features import (
    TOP_K,
    FeatureInputs,
    compute,
    needs_embedding,
    needs_hidden,
    needs_history,
)
from crossroads.routing.routers.base import Router
from crossroads.types import FinishReason, OnLoss, Trace


@dataclass(frozen=True, slots=True)
class MixedModels:
    """What the loop works with. `threshold` is for requests that bring none of their own."""

    small: CausalLM
    large: CausalLM
    router: Router
    tokenizer: Tokenizer
    threshold: float


class MixedLoop:
    """Rows that come and go; `step` takes each of them on by a token."""

    def __init__(
        self,
        models: MixedModels,
        *,
        overlap: bool = False,
        kept: KeptCaches | None = None,
        on_loss: OnLoss = OnLoss.FAIL,
    ) -> None:
        """Start without rows.

        kept: where caches come from and go to; None: rows share nothing.

        overlap: let other rows go on while the large model reads, on a thread of its own. It pays
        where the two models do not share their arithmetic (a server, two devices); two engines
        that both want all cores of one CPU only get into each other's way. No row's tokens depend
        on it.

        on_loss: what rows do when no server of the large model answers. A row that goes on with the
        small model does not wait for the servers at each of its tokens, and is routed again once
        one is back. Lossless rows end with an error in any case: they promise its distribution.
        """
        self.models = models
        self._on_loss = on_loss
        self._kept = kept
        self._rows: dict[int, Row] = {}
        self._next_index = 0
        inputs = models.router.inputs
        self._wants_hidden = needs_hidden(inputs)
        self._embed = models.small.embed if needs_embedding(inputs) else None
        self._looks_back = needs_history(inputs)
        self._helper = ThreadPoolExecutor(1, "large") if overlap else None
        self._flight: Future[list[Read[Row] | Failure[Row]]] | None = None

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
        models = self.models
        row = Row(
            self._next_index,
            request,
            (models.small, models.large),
            models.tokenizer,
            models.threshold,
            looks_back=self._looks_back,
            kept=self._kept,
        )
        self._rows[row.index] = row
        self._next_index += 1
        return row.index

    def cancel(self, index: int) -> Trace:
        """Take a row out at once and return what is certain of it; other rows do not notice."""
        row = self._rows[index]
        if row.waits:
            self.wait()  # its cache may be being read
        del self._rows[index]
        row.leave(FinishReason.CANCELLED)
        return row.trace()

    def close(self) -> None:
        """Cancel every row."""
        for index in list(self._rows):
            self.cancel(index)
        if self._helper is not None:
            self._helper.shutdown()

    def step(self) -> list[Event]:
        """Take every row that does not wait for the large model on by a token.

        Effects: without `overlap` no row waits from one step to the next, so each grows by a
        token, or is cut back by a revision; but a row of which a model has much to read takes a
        step for each part of it. Finished rows leave and free their caches.
        """
        events: list[Event] = []
        ready = [row for row in self._rows.values() if not row.waits]
        if self._flight is not None and (not ready or self._flight.done()):
            events += self._land()
            ready = [row for row in self._rows.values() if not row.waits]
        events += self._propose(ready)
        if self._flight is None:
            self._ask([row for row in self._rows.values() if row.waits])
        if self._helper is None and self._flight is not None:
            events += self._land()
        return events

    def _propose(self, rows: Sequence[Row]) -> list[Event]:
        """Let the small model propose a token in each of the rows, and the rows consider it."""
        if not rows:
            return []
        events: list[Event] = []
        logits = any(row.request.sampling.needs_logits for row in rows)
        want = Want(top_k=TOP_K, hidden=self._wants_hidden, logits=logits)
        tokens = [row.unread(row.small) for row in rows]
        for read in read_rows(self.models.small, rows, [row.small for row in rows], tokens, want):
            if isinstance(read, Failure):
                events.append(self._drop(read))
                continue
            proposals = [row.propose(read.output.row(i)) for i, row in enumerate(read.rows)]
            scores = self._score(read, proposals)
            entropies = read.output.entropy_N.tolist()
            values = zip(read.rows, proposals, scores, entropies, strict=True)
            for row, proposal, score, entropy in values:
                row.consider(proposal, score, entropy)
                events += self._tell(row)
        return events

    def _score(self, read: Read[Row], proposals: Sequence[Proposal]) -> list[float]:
        histories = [row.history.tensor() for row in read.rows if row.history is not None]
        inputs = FeatureInputs(
            step=read.output,
            proposed_N=torch.tensor([proposal.drawn.token_id for proposal in proposals]),
            position_N=torch.tensor([len(row.state.tokens) for row in read.rows]),
            embed=self._embed,
            history_NJ2=torch.stack(histories) if histories else None,
        )
        router = self.models.router
        scores: list[float] = router.score(compute(router.inputs, inputs)).tolist()
        return scores

    def _ask(self, rows: Sequence[Row]) -> None:
        """Let the large model read the lags of the rows, each in one call unless it is long."""
        if not rows:
            return
        counts = tuple(row.outputs for row in rows)
        want = Want(
            positions="last" if set(counts) == {1} else counts,
            top_k=max(top_k(row.request) for row in rows),
            logits=any(needs_logits(row.request) for row in rows),
            insist=self._on_loss is OnLoss.FAIL,
        )
        caches, lags = [row.large for row in rows], [row.to_read for row in rows]

        def read() -> list[Read[Row] | Failure[Row]]:
            return read_rows(self.models.large, rows, caches, lags, want)

        if self._helper is None:
            answers = read()  # first: a future that nothing completes would be waited for
            self._flight = Future()
            self._flight.set_result(answers)
        else:
            self._flight = self._helper.submit(read)

    def _land(self) -> list[Event]:
        """Give the rows what the large model answered."""
        assert self._flight is not None
        reads, self._flight = self._flight.result(), None
        events: list[Event] = []
        for read in reads:
            if isinstance(read, Failure):
                if read.row.waits:
                    events += self._go_without(read)
                continue
            for i, row in enumerate(read.rows):
                if not row.waits:
                    continue  # it was cancelled on the way
                try:
                    row.settle(read.output.row(i))
                except EngineError as error:  # something that it needs was not told
                    events.append(self._drop(Failure(row, error)))
                else:
                    events += self._tell(row)
        return events

    def wait(self) -> None:
        """Wait until the large model has read what it is reading, if it reads beside us."""
        if self._flight is not None:
            self._flight.exception()

    def _tell(self, row: Row) -> list[Event]:
        """Return what is new of a row; it leaves if it has ended."""
        events = [Event(row.index, record) for record in row.news()]
        if row.finished:
            del self._rows[row.index]
            row.release()
            events[-1] = Event(row.index, events[-1].record, row.trace())
        return events

    def _go_without(self, failure: Failure[Row]) -> list[Event]:
        """Let a row go on without the large model if it may, else end it."""
        row, lost = failure.row, isinstance(failure.error, UnreachableError)
        if not lost or self._on_loss is OnLoss.FAIL or row.request.lossless:
            return [self._drop(failure)]
        row.settle_alone()
        return self._tell(row)

    def _drop(self, failure: Failure[Row]) -> Event:
        row = failure.row
        del self._rows[row.index]
        row.leave(FinishReason.ERROR)
        return Event(row.index, None, row.trace(), str(failure.error))


def stream(models: MixedModels, request: Request) -> Iterator[Event]:
    """Yield one request's tokens as they become certain. Closing the iterator frees the row.

    Raises:
        EngineError: an engine failed.
    """
    loop = MixedLoop(models)
    loop.add(request)
    try:
        while loop.active:
            for event in loop.step():
                yield checked(event)
    finally:
        loop.close()


def generate(
    models: MixedModels,
    requests: Sequence[Request],
    *,
    max_rows: int = 8,
    on_token: Callable[[int], None] | None = None,
    overlap: bool = False,
    on_loss: OnLoss = OnLoss.FAIL,
) -> Iterator[tuple[int, Trace]]:
    """Yield (index of the request, its trace) as rows finish, `max_rows` at a time.

    A waiting request joins as soon as a row is free. Rows do not influence each other. `on_token`
    hears of every token, with the number of open rows. `overlap`, `on_loss`: see `MixedLoop`.

    Raises:
        EngineError: an engine failed.
    """
    loop = MixedLoop(models, overlap=overlap, on_loss=on_loss)
    waiting = list(enumerate(requests))[::-1]
    number_of: dict[int, int] = {}
    try:
        while waiting or loop.active:
            while waiting and loop.active < max_rows and loop.room > 0:
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
