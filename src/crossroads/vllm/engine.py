"""The orchestrator: the small model runs until its router fires, the large one writes a token.

Both run in vLLM servers, each of which batches the rows that are with it; a row is a coroutine
here that goes back and forth between them. The prefix caches of the servers make a return cheap.
It has the interface of `decoding.engine.Engine`, so that the same server stands in front of both.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from crossroads.decoding.engine import News, events_of
from crossroads.decoding.mixed import MixedModels
from crossroads.decoding.reading import Event
from crossroads.decoding.request import Request, check_request
from crossroads.errors import BusyError, ClosedError, CrossroadsError, EngineError
from crossroads.models.remote_client import VllmClient
from crossroads.models.remote_wire import NEVER, ReservedIds, reserve
from crossroads.types import ModelInfo, OnLoss, Role
from crossroads.vllm.asking import Asking, check_served
from crossroads.vllm.row import Answer, RemoteRow

MOST_PLACES = 32
"""Places of one lag that the large model is asked about at a time."""


@dataclass(frozen=True, slots=True)
class Servers:
    """Where both models are. large_has_plugin: whether it draws as we do when it samples."""

    small: VllmClient
    large: VllmClient
    large_has_plugin: bool
    on_loss: OnLoss = OnLoss.FAIL


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
    ) -> None:
        """Start without rows.

        Raises:
            PairError: the vocabulary has no ids to spare.
        """
        self._models = models
        self._servers = servers
        self._max_rows = max_rows
        self._max_waiting = max_waiting
        self._reserved: ReservedIds = reserve(models.tokenizer, models.small.info.vocab_size)
        infos = self._infos(None)
        self._eos_ids = sorted({token for info in infos for token in info.eos_ids})
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
                    await self._mixed(row, hear)
                else:
                    await self._alone(row, alone, hear)
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

    async def _mixed(self, row: RemoteRow, hear: Callable[[News], None]) -> None:
        """Take a row to its end."""
        while not row.finished:
            await self._small_writes(row, hear)
            if row.waits:
                await self._large_answers(row)
                _tell(row, hear)

    async def _small_writes(self, row: RemoteRow, hear: Callable[[News], None]) -> None:
        """Let the small model write until the row ends or waits for the large one."""
        stretch = row.stretch()
        asking = Asking(
            lambda: row.order(Role.SMALL, stretch.threshold),
            row.request,
            self._reserved,
            plugin=True,
            stop=(self._reserved.hand_over, *self._eos_ids),
        )
        tokens = self._servers.small.write(
            row.state.tokens, stretch.max_tokens, asking.options, row.request.prompt_ids
        )
        before = len(row.state.records)
        async with aclosing(tokens):
            async for token in tokens:
                row.consider(asking.step(token))
                _tell(row, hear)
                if row.finished or row.waits:
                    return
        if len(row.state.records) == before:
            raise _silent(self._servers.small)

    async def _large_answers(self, row: RemoteRow) -> None:
        """Ask the large model for what the row waits for; nothing changes before it has answered.

        Its places are asked together, so many at a time: most rows are refused early, if at all.
        """
        # What is promised to be the large model's cannot do without it; other rows that may are
        # not to wait for it at each of their tokens.
        insist = self._servers.on_loss is OnLoss.FAIL or row.request.lossless
        client, plugin = self._servers.large, self._servers.large_has_plugin
        asking = Asking(lambda: row.order(Role.LARGE, NEVER), row.request, self._reserved, plugin)
        answers: list[Answer] = []
        while len(answers) < len(row.places) and row.refused(answers) is None:
            places = row.places[len(answers) : len(answers) + MOST_PLACES]
            prompts = [row.state.tokens[:place] for place in places]
            options = asking.options(0)
            try:
                tokens = await client.next(prompts, options, row.request.prompt_ids, insist=insist)
            except EngineError:
                if insist:
                    raise
                row.go_on()
                return
            answers += map(asking.answer, tokens)
        row.settle(answers)

    async def _alone(self, row: RemoteRow, role: Role, hear: Callable[[News], None]) -> None:
        """Let one model write a row to its end."""
        client = self._servers.small if role is Role.SMALL else self._servers.large
        asking = Asking(
            lambda: row.order(role, NEVER),
            row.request,
            self._reserved,
            plugin=role is Role.SMALL or self._servers.large_has_plugin,
            stop=tuple(self._eos_ids),
        )
        tokens = client.write(row.state.tokens, row.left, asking.options, row.request.prompt_ids)
        async with aclosing(tokens):
            async for token in tokens:
                row.wrote_alone(asking.answer(token), role)
                _tell(row, hear, alone=True)
                if row.finished:
                    return
        raise _silent(client)  # it ended, and the answer has not

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


def _tell(row: RemoteRow, hear: Callable[[News], None], *, alone: bool = False) -> None:
    """Tell what has become certain of a row; its last token comes with the trace."""
    news = row.news()
    for record in news:
        last = row.finished and record is news[-1]
        hear(Event(0, record, row.trace(alone=alone) if last else None))


def _silent(client: VllmClient) -> EngineError:
    return EngineError(f"the server of {client.model} ended an answer before its end")
