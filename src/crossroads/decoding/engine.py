"""Generation for asyncio: requests that come and go, one loop over a pair on a thread of its own.

The command line and the server both read tokens from `Engine.generate`.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from crossroads.decoding.kept import KeptCaches
from crossroads.decoding.mixed import MixedLoop, MixedModels
from crossroads.decoding.reading import Event, checked
from crossroads.decoding.request import Request, check_request
from crossroads.decoding.served_loop import ServedLoop
from crossroads.decoding.single import SingleLoop
from crossroads.errors import BusyError, ClosedError, CrossroadsError, StoppedError
from crossroads.models.base import CausalLM
from crossroads.models.served import ServedLM
from crossroads.types import ModelInfo, OnLoss, Role

_LOOK_AGAIN = 0.05  # seconds between two looks, where nothing wakes who waits


News = Event | CrossroadsError
"""What a request hears: its tokens, or what went wrong, which is the last thing it hears."""


@dataclass(eq=False, slots=True)
class _Ticket:
    """A request on its way: who hears of it, and its row once it has joined a loop."""

    request: Request
    alone: Role | None
    hear: Callable[[News], None]
    home: asyncio.AbstractEventLoop
    row: int | None = None
    left: bool = False

    def tell(self, item: News) -> None:
        """Hand news over on the request's own event loop, unless that is gone."""
        if not self.left:
            # The loop may close between any check and the call.
            with contextlib.suppress(RuntimeError):
                self.home.call_soon_threadsafe(self.hear, item)


class Submission:
    """A request that an engine has accepted."""

    def __init__(self, ticket: _Ticket, inbox: queue.SimpleQueue[_Ticket | None]) -> None:
        """Belong to a ticket, known to the engine that reads the inbox."""
        self._ticket = ticket
        self._inbox = inbox

    def leave(self) -> None:
        """Stop listening: what still runs of it is cancelled at once. Twice is harmless."""
        if not self._ticket.left:
            self._ticket.left = True
            self._inbox.put(self._ticket)


class Accepted(Protocol):
    """A request that an engine has accepted."""

    def leave(self) -> None:
        """Stop listening: what still runs of it is cancelled at once. Twice is harmless."""


class GenerationEngine(Protocol):
    """What a server needs of an engine: `Engine`, or one whose models are somewhere else."""

    @property
    def models(self) -> MixedModels:
        """What it generates with."""

    @property
    def max_rows(self) -> int:
        """Requests that run at once."""

    @property
    def running(self) -> int:
        """Requests that are generating."""

    @property
    def waiting(self) -> int:
        """Requests that wait for a row."""

    @property
    def closed(self) -> ClosedError | None:
        """Why no request is taken any more; None while they are."""

    def rows_of(self, role: Role) -> int:
        """Return how many of the running requests this model takes part in."""

    def submit(
        self, request: Request, hear: Callable[[News], None], *, alone: Role | None = None
    ) -> Accepted:
        """Accept a request; see `Engine.submit`."""

    @property
    def discarded_ahead(self) -> int | None:
        """Small tokens that were written ahead of the large model in vain; None: it never does."""

    async def drain(self, seconds: float) -> int:
        """Take no more requests, let those that are here end for so long, then close."""

    async def close(self) -> None:
        """Cancel what is running. Twice is harmless."""


def heard(news: News) -> Event:
    """Return an event that brings a token.

    Raises:
        CrossroadsError: the news is an error.
    """
    if isinstance(news, CrossroadsError):
        raise news
    return checked(news)


async def events_of(
    engine: GenerationEngine, request: Request, alone: Role | None = None
) -> AsyncGenerator[Event]:
    """Yield a request's events up to the one with its trace; closing the iterator cancels it.

    Raises:
        CrossroadsError: the engine does not take it, or fails at it.
    """
    news: asyncio.Queue[News] = asyncio.Queue()
    accepted = engine.submit(request, news.put_nowait, alone=alone)
    try:
        while True:
            event = heard(await news.get())
            yield event
            if event.trace is not None:
                return
    finally:
        accepted.leave()


class Engine:
    """Continuous batching over one pair. Not to be used from several event loops' threads at once.

    A request joins as soon as there is room, at any token of the others, and leaves when it ends,
    when its iterator is closed or its task is cancelled. No row's tokens depend on the others.
    """

    def __init__(
        self,
        models: MixedModels,
        *,
        max_rows: int = 8,
        max_waiting: int | None = None,
        overlap: bool = False,
        keep: int = 0,
        on_loss: OnLoss = OnLoss.FAIL,
    ) -> None:
        """Start the thread.

        max_rows: requests that run at once; the others wait their turn. max_waiting: how many may
        wait; None: all. overlap: see `MixedLoop`. keep: of how many rows that have ended the caches
        are kept for rows that begin alike; the models need room for them besides max_rows.
        on_loss: see `MixedLoop`; rows of the large model alone end with an error without delay
        unless it is `fail`, since all rows here would wait with them.
        """
        insist = on_loss is OnLoss.FAIL
        self._models = models
        sizes = (models.small.info.max_rows, models.large.info.max_rows)
        self._max_rows = min(max_rows, *sizes)
        self._max_waiting = max_waiting
        self._kept = KeptCaches(keep)
        self._mixed = MixedLoop(models, overlap=overlap, kept=self._kept, on_loss=on_loss)
        self._loops: dict[Role | None, MixedLoop | SingleLoop | ServedLoop] = {
            None: self._mixed,
            Role.SMALL: self._alone(Role.SMALL, models.small, insist=True),
            Role.LARGE: self._alone(Role.LARGE, models.large, insist=insist),
        }
        self._inbox: queue.SimpleQueue[_Ticket | None] = queue.SimpleQueue()
        self._waiting: deque[_Ticket] = deque()
        self._rows: dict[tuple[Role | None, int], _Ticket] = {}
        self._open: set[_Ticket] = set()  # accepted and not yet ended, whoever waits for them
        self._closed: ClosedError | None = None
        self._thread = threading.Thread(target=self._serve, name="crossroads", daemon=True)
        self._thread.start()

    def _alone(self, role: Role, model: CausalLM, *, insist: bool) -> SingleLoop | ServedLoop:
        tokenizer = self._models.tokenizer
        if isinstance(model, ServedLM):
            return ServedLoop(model, role, tokenizer, self._kept, insist=insist)
        return SingleLoop(model, role, tokenizer, self._kept, insist=insist)

    @property
    def models(self) -> MixedModels:
        """What it generates with."""
        return self._models

    @property
    def max_rows(self) -> int:
        """Requests that run at once."""
        return self._max_rows

    @property
    def running(self) -> int:
        """Requests that are generating."""
        return len(self._rows)

    @property
    def waiting(self) -> int:
        """Requests that wait for a row."""
        return max(0, len(self._open) - len(self._rows))

    def rows_of(self, role: Role) -> int:
        """Return how many of the running requests have a cache of this model."""
        return sum(alone in (None, role) for alone, _ in list(self._rows))

    @property
    def closed(self) -> ClosedError | None:
        """Why no request is taken any more; None while they are."""
        return self._closed

    @property
    def discarded_ahead(self) -> None:
        """Nothing: the small model waits for the large one."""
        return None

    async def generate(
        self, request: Request, *, alone: Role | None = None
    ) -> AsyncIterator[Event]:
        """Yield the request's tokens as they become certain; the last one brings the trace.

        Closing the iterator cancels the request. alone: let this model answer by itself, as fast
        as it can; the other is not asked and the request's routing means nothing.

        Raises:
            RequestError: the request cannot be served; nothing was started.
            BusyError: too many wait already; nothing was started.
            ClosedError: the engine is closed or was while this request ran.
            EngineError: a model failed at this row.
        """
        async with aclosing(events_of(self, request, alone)) as events:
            async for event in events:
                yield event

    def submit(
        self, request: Request, hear: Callable[[News], None], *, alone: Role | None = None
    ) -> Submission:
        """Accept a request; `hear` is called on this event loop with each of its news.

        The last news brings the trace, or is an error. Whoever submits has to `leave` in the end.

        Raises:
            RequestError, BusyError, ClosedError: as `generate`; nothing was started.
        """
        check_request(request, self._infos(alone))
        if self._max_waiting is not None and len(self._open) >= self._max_rows + self._max_waiting:
            raise BusyError(
                f"{self.running} requests run and {self.waiting} wait, which is all that this "
                "server takes; try again later"
            )
        ticket = _Ticket(request, alone, hear, asyncio.get_running_loop())
        self._open.add(ticket)
        self._inbox.put(ticket)
        if self._closed is not None:  # looked at last: the thread says so before its last look
            ticket.left = True
            self._open.discard(ticket)
            raise self._closed
        return Submission(ticket, self._inbox)

    def _infos(self, alone: Role | None) -> list[ModelInfo]:
        models = {Role.SMALL: self._models.small, Role.LARGE: self._models.large}
        return [model.info for role, model in models.items() if alone in (None, role)]

    async def drain(self, seconds: float) -> int:
        """Take no more requests, let those that are here end for so long, then close.

        Returns how many were cut off.
        """
        if self._closed is None:
            self._closed = ClosedError("the server is shutting down; send the request elsewhere")
        end = time.monotonic() + seconds
        while self._open and time.monotonic() < end and self._thread.is_alive():
            await asyncio.sleep(_LOOK_AGAIN)
        cut_off = len(self._open)
        await self.close()
        return cut_off

    async def close(self) -> None:
        """Cancel what is running and end the thread. Twice is harmless."""
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    async def __aenter__(self) -> Engine:
        """Return the engine."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        await self.close()

    # The thread

    def _serve(self) -> None:
        reason: ClosedError = ClosedError("the engine was closed")
        try:
            while self._take_mail():
                self._admit()
                self._step()
        except Exception as error:  # noqa: BLE001  a thread that died in silence would hang them all
            reason = StoppedError(f"the engine stopped: {error}")
        self._closed = reason
        while not self._inbox.empty():
            self._waiting.extend(filter(None, [self._inbox.get()]))
        for ticket in (*self._waiting, *self._rows.values()):
            ticket.tell(reason)
        self._rows.clear()
        self._open.clear()
        for loop in self._loops.values():
            loop.close()
        self._kept.close()

    def _take_mail(self) -> bool:
        """Take new requests and cancellations, and wait for one where nothing else is to be done.

        Returns whether to go on.
        """
        while True:
            try:
                ticket = self._inbox.get(block=not (self._rows or self._waiting))
            except queue.Empty:
                return True
            if ticket is None:
                return False
            if not ticket.left:
                self._waiting.append(ticket)
            else:
                self._forget(ticket)

    def _forget(self, ticket: _Ticket) -> None:
        """Take a request out whose caller has gone; nothing to do if it has ended."""
        self._open.discard(ticket)
        if ticket.row is not None and self._rows.pop((ticket.alone, ticket.row), None) is not None:
            self._loops[ticket.alone].cancel(ticket.row)

    def _admit(self) -> None:
        while self._waiting and len(self._rows) < self._max_rows:
            ticket = self._waiting.popleft()
            if ticket.left:
                continue
            try:
                ticket.row = self._loops[ticket.alone].add(ticket.request)
            except CrossroadsError as error:
                self._open.discard(ticket)
                ticket.tell(error)
            else:
                self._rows[ticket.alone, ticket.row] = ticket

    def _step(self) -> None:
        for alone, loop in self._loops.items():
            if not loop.active:
                continue
            if isinstance(loop, ServedLoop) and not loop.reads:
                # Whoever waits for a server must not hold up other rows, or new ones for long.
                events = loop.step(_LOOK_AGAIN if loop.active == len(self._rows) else 0.0)
            else:
                if alone is Role.LARGE:
                    self._mixed.wait()  # one reader at a time
                events = loop.step()
            for event in events:
                self._deliver(alone, event)

    def _deliver(self, alone: Role | None, event: Event) -> None:
        ticket = self._rows.get((alone, event.row))
        if ticket is None:
            return
        if event.trace is not None:
            del self._rows[alone, event.row]
            self._open.discard(ticket)
        ticket.tell(event)
