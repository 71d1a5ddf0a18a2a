"""The orchestrator: the small model runs until its router fires, the large one writes a token.

Both run in vLLM servers, each of which batches the rows that are with it; a row is a coroutine
here that goes back and forth between them. The prefix caches of the servers make a return cheap.
It has the interface of `decoding.engine.Engine`, so that the same server stands in front of both.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

from crossroads.decoding.engine import News, events_of
from crossroads.decoding.mixed import MixedModels
from crossroads.decoding.reading import Event
from crossroads.decoding.request import Request, check_request
from crossroads.errors import BusyError, ClosedError, CrossroadsError, EngineError
from crossroads.models.remote_wire import ReservedIds, reserve
from crossroads.types import ModelInfo, Role
from crossroads.vllm.asking import check_served
from crossroads.vllm.between import Ahead, BetweenServers, Servers
from crossroads.vllm.row import RemoteRow


class _Submission:
    """A request that was accepted; see `decoding.engine.Submission`."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self._task = task

    def leave(self) -> None:
        """Cancel what still runs of it: its connections close, and the servers drop its rows."""
        self._task.cancel()


class VllmEngine:
    """Rows over two kinds of vLLM servers. To be used on one event loop."""

    def __init__(
        self,
        models: MixedModels,
        servers: Servers,
        *,
        max_rows: int = 64,
        max_waiting: int | None = None,
        ahead: Ahead = Ahead(),  # noqa: B008
    ) -> None:
        """Start without rows.

        max_rows, max_waiting: as in `Engine`. ahead: how far to go before the large model answers.

        Raises:
            PairError: the vocabulary has no ids to spare.
        """
        self._models = models
        self._servers = servers
        self._max_rows = max_rows
        self._max_waiting = max_waiting
        self._reserved: ReservedIds = reserve(models.tokenizer, models.small.info.vocab_size)
        infos = self._infos(None)
        eos_ids = sorted({token for info in infos for token in info.eos_ids})
        self._between = BetweenServers(servers, self._reserved, eos_ids, ahead)
        self._free = asyncio.Semaphore(max_rows)
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: dict[asyncio.Task[None], Role | None] = {}
        self._closed: ClosedError | None = None

    @property
    def models(self) -> MixedModels:
        """What it generates with; the models only tell what they are."""
        return self._models

    @property
    def max_rows(self) -> int:
        """Requests that run at once."""
        return self._max_rows

    @property
    def running(self) -> int:
        """Requests that are generating."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests that wait for a row."""
        return max(0, len(self._tasks) - len(self._running))

    def rows_of(self, role: Role) -> int:
        """Return how many of the running requests this model takes part in."""
        return sum(alone in (None, role) for alone in self._running.values())

    @property
    def discarded_ahead(self) -> int:
        """Small tokens that came ahead of the large model's answer and were not used."""
        return self._between.discarded_ahead

    @property
    def closed(self) -> ClosedError | None:
        """Why no request is taken any more; None while they are."""
        return self._closed

    async def generate(
        self, request: Request, *, alone: Role | None = None
    ) -> AsyncIterator[Event]:
        """Yield the request's tokens; see `decoding.engine.Engine.generate`."""
        async with aclosing(events_of(self, request, alone)) as events:
            async for event in events:
                yield event

    def submit(
        self, request: Request, hear: Callable[[News], None], *, alone: Role | None = None
    ) -> _Submission:
        """Accept a request; see `decoding.engine.Engine.submit`."""
        check_request(request, self._infos(alone))
        if alone is None:
            check_served(request, large_has_plugin=self._servers.large_has_plugin)
        if self._closed is not None:
            raise self._closed
        if self._max_waiting is not None and len(self._tasks) >= self._max_rows + self._max_waiting:
            raise BusyError(
                f"{self.running} requests run and {self.waiting} wait, which is all that this "
                "server takes; try again later"
            )
        task = asyncio.get_running_loop().create_task(self._row(request, hear, alone))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return _Submission(task)

    def _infos(self, alone: Role | None) -> list[ModelInfo]:
        models = {Role.SMALL: self._models.small, Role.LARGE: self._models.large}
        return [model.info for role, model in models.items() if alone in (None, role)]

    async def _row(
        self, request: Request, hear: Callable[[News], None], alone: Role | None
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            async with self._free:
                self._running[task] = alone
                row = RemoteRow(
                    request,
                    self._infos(alone),
                    self._models.tokenizer,
                    self._models.threshold,
                    self._reserved,
                )
                if alone is None:
                    await self._between.mixed(row, hear)
                else:
                    await self._between.alone(row, alone, hear)
        except CrossroadsError as error:
            hear(error)
        except asyncio.CancelledError:
            if self._closed is not None:  # nobody who left listens
                hear(self._closed)
            raise
        except Exception as error:  # noqa: BLE001  whoever waits must hear of it
            hear(EngineError(f"the orchestrator failed: {error}"))
        finally:
            self._running.pop(task, None)

    async def drain(self, seconds: float) -> int:
        """Take no more requests, let those that are here end for so long, then close.

        Returns how many were cut off.
        """
        if self._closed is None:
            self._closed = ClosedError("the server is shutting down; send the request elsewhere")
        cut_off = 0
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=seconds)
            cut_off = len(late)
        await self.close()
        return cut_off

    async def close(self) -> None:
        """Cancel what runs and close the connections. Twice is harmless."""
        if self._closed is None:
            self._closed = ClosedError("the engine was closed")
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._servers.small.close()
        await self._servers.large.close()
