"""Generation for asyncio: requests that come and go, one mixed loop on a thread of its own.

The command line and the server both read tokens from `Engine.generate`.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType

from crossroads.decoding.mixed import Event, MixedLoop, MixedModels
from crossroads.decoding.request import Request, check_request
from crossroads.errors import CrossroadsError, EngineError


@dataclass(eq=False, slots=True)
class _Ticket:
    """A request on its way: where its events go, and its row once it has joined."""

    request: Request
    home: asyncio.AbstractEventLoop
    events: asyncio.Queue[Event | CrossroadsError] = field(default_factory=asyncio.Queue)
    row: int | None = None
    left: bool = False

    def tell(self, item: Event | CrossroadsError) -> None:
        """Hand an event over to the request's own event loop, unless that is gone."""
        if not self.left and not self.home.is_closed():
            self.home.call_soon_threadsafe(self.events.put_nowait, item)


class Engine:
    """Continuous batching over one pair. Not to be used from several event loops' threads at once.

    A request joins as soon as there is room, at any token of the others, and leaves when it ends,
    when its iterator is closed or its task is cancelled. No row's tokens depend on the others.
    """

    def __init__(self, models: MixedModels, *, max_rows: int = 8, overlap: bool = False) -> None:
        """Start the thread. max_rows: requests that run at once; the others wait their turn."""
        self._models = models
        self._max_rows = max_rows
        self._loop = MixedLoop(models, overlap=overlap)
        self._inbox: queue.SimpleQueue[_Ticket | None] = queue.SimpleQueue()
        self._waiting: deque[_Ticket] = deque()
        self._running: dict[int, _Ticket] = {}
        self._closed: EngineError | None = None
        self._thread = threading.Thread(target=self._serve, name="crossroads", daemon=True)
        self._thread.start()

    @property
    def models(self) -> MixedModels:
        """What it generates with."""
        return self._models

    async def generate(self, request: Request) -> AsyncIterator[Event]:
        """Yield the request's tokens as they become certain; the last one brings the trace.

        Closing the iterator cancels the request.

        Raises:
            RequestError: the request cannot be served; nothing was started.
            EngineError: a model failed at this row, or the engine is closed.
        """
        check_request(request, [self._models.small.info, self._models.large.info])
        ticket = _Ticket(request, asyncio.get_running_loop())
        self._inbox.put(ticket)
        if self._closed is not None:  # looked at last: the thread reads its mail after it says so
            raise self._closed
        try:
            while True:
                item = await ticket.events.get()
                if isinstance(item, CrossroadsError):
                    raise item
                if item.error is not None:
                    raise EngineError(item.error)
                yield item
                if item.trace is not None:
                    return
        finally:
            ticket.left = True
            self._inbox.put(ticket)

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
        reason = EngineError("the engine was closed")
        try:
            while self._take_mail():
                self._admit()
                for event in self._loop.step():
                    self._deliver(event)
        except Exception as error:  # noqa: BLE001  a thread that died in silence would hang them all
            reason = EngineError(f"the engine stopped: {error}")
        self._closed = reason
        while not self._inbox.empty():
            self._waiting.extend(filter(None, [self._inbox.get()]))
        for ticket in (*self._waiting, *self._running.values()):
            ticket.tell(reason)
        self._loop.close()

    def _take_mail(self) -> bool:
        """Take new requests and cancellations, and wait for one where nothing else is to be done.

        Returns whether to go on.
        """
        while True:
            try:
                ticket = self._inbox.get(block=not (self._loop.active or self._waiting))
            except queue.Empty:
                return True
            if ticket is None:
                return False
            if not ticket.left:
                self._waiting.append(ticket)
            elif ticket.row is not None and self._running.pop(ticket.row, None) is not None:
                self._loop.cancel(ticket.row)

    def _admit(self) -> None:
        while self._waiting and self._loop.active < self._max_rows and self._loop.room > 0:
            ticket = self._waiting.popleft()
            if ticket.left:
                continue
            try:
                ticket.row = self._loop.add(ticket.request)
            except CrossroadsError as error:
                ticket.tell(error)
            else:
                self._running[ticket.row] = ticket

    def _deliver(self, event: Event) -> None:
        ticket = self._running.get(event.row)
        if ticket is None:
            return
        if event.trace is not None:
            del self._running[event.row]
        ticket.tell(event)
