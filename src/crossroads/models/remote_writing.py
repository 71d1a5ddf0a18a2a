"""Passages that vLLM servers write: a streamed request each, on the event loop of their model."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from crossroads.errors import CrossroadsError, EngineError
from crossroads.models.remote_client import VllmClient
from crossroads.models.remote_drawing import Options
from crossroads.models.served import Passage, Written
from crossroads.models.vllm_replies import WireToken


@dataclass(frozen=True, slots=True)
class Drawing:
    """How a passage's tokens are asked for, and what each of them has to pass.

    check: raises an EngineError for a token that was not drawn as asked.
    """

    options: Options
    check: Callable[[WireToken], object] | None = None


class Submit(Protocol):
    """Starts work on an event loop, from any thread."""

    def __call__(self, work: Coroutine[Any, Any, None]) -> Future[None]:
        """Return its future; cancelling that cancels the work."""


@dataclass(frozen=True, slots=True)
class _News:
    number: int
    token_id: int = 0
    error: CrossroadsError | None = None


class RemoteWriting:
    """Open requests and what has come of them; see `served.Writing`."""

    def __init__(
        self,
        client: VllmClient,
        submit: Submit,
        drawing: Callable[[Passage], Drawing],
        *,
        insist: bool = True,
    ) -> None:
        """Start without passages. drawing: how a passage is asked for. insist: as in `Want`."""
        self._insist = insist
        self._client = client
        self._submit = submit
        self._drawing = drawing
        self._news: queue.SimpleQueue[_News] = queue.SimpleQueue()
        self._open: dict[int, Future[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._begun = 0

    def begin(self, passage: Passage) -> int:
        """Send a passage's request; see `Writing.begin`."""
        drawing = self._drawing(passage)
        number, self._begun = self._begun, self._begun + 1
        self._open[number] = self._submit(self._write(number, passage, drawing))
        return number

    def next(self, seconds: float | None = None) -> Written | None:
        """Wait for a token; see `Writing.next`."""
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            try:
                left = None if until is None else max(0.0, until - time.monotonic())
                news = self._news.get(timeout=left)
            except queue.Empty:
                return None
            if news.number not in self._open:
                continue
            if news.error is not None:
                self.stop(news.number)
                return Written(news.number, None, EngineError(str(news.error)))
            return Written(news.number, news.token_id)

    def stop(self, number: int) -> None:
        """Close a passage's connection, by which the server learns of it."""
        self._open.pop(number).cancel()

    def close(self) -> None:
        """Close every connection; see `Writing.close`."""
        for number in list(self._open):
            self.stop(number)
        if self._tasks:
            self._submit(self._end()).result()

    async def _end(self) -> None:
        own = asyncio.current_task()
        await asyncio.gather(*(self._tasks - {own}), return_exceptions=True)

    async def _write(self, number: int, passage: Passage, drawing: Drawing) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        error: CrossroadsError = EngineError(
            f"the server of {self._client.model} ended an answer before its end"
        )
        try:
            tokens = self._client.write(
                passage.token_ids,
                passage.max_tokens,
                drawing.options,
                passage.row,
                insist=self._insist,
                seconds=self._client.patience.text,
            )
            async with aclosing(tokens):
                async for token in tokens:
                    if drawing.check is not None:
                        drawing.check(token)
                    self._news.put(_News(number, token.token_id))
        except CrossroadsError as found:
            error = found
        except asyncio.CancelledError:
            error = EngineError(f"the connection to {self._client.model} was closed")
            raise
        except Exception as found:  # noqa: BLE001  whoever waits must hear of it
            error = EngineError(f"asking the server of {self._client.model} failed: {found}")
        finally:
            self._news.put(_News(number, error=error))
