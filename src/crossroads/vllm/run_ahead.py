"""A model's tokens, read ahead of whoever takes them.

Most tokens that the large model is asked for are the ones that the small model proposed. So the
small model need not stop where its router fires: it goes on from its own proposal while the large
model answers, and where the two agree nothing was lost. Where they differ, what it wrote in the
meantime is thrown away.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from crossroads.models.vllm_replies import WireToken


class RunAhead:
    """The tokens of one request, in order, as an asynchronous iterator."""

    def __init__(self, tokens: AsyncGenerator[WireToken], most: int) -> None:
        """Start to read. most: how many tokens may wait to be taken before the request is closed.

        The iterator ends after those, as it does where the request ends.
        """
        self._tokens = tokens
        self._most = most
        self._waiting: deque[WireToken] = deque()
        self._news = asyncio.Event()
        self._error: Exception | None = None
        self._reader = asyncio.get_running_loop().create_task(self._read())
        self._reader.add_done_callback(lambda _: self._news.set())

    @property
    def left_over(self) -> int:
        """Tokens that came and were not taken."""
        return len(self._waiting)

    def __aiter__(self) -> AsyncIterator[WireToken]:
        """Return itself."""
        return self

    async def __anext__(self) -> WireToken:
        """Return the next token, once it is there.

        Raises:
            CrossroadsError: the request failed, after the tokens that came before.
        """
        while not self._waiting:
            if self._reader.done():
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._waiting.popleft()

    async def look(self) -> AsyncIterator[WireToken]:
        """Yield the tokens from the next one on as they come, for others to take afterwards."""
        at = 0
        while True:
            while at >= len(self._waiting):
                if self._reader.done():
                    return
                self._news.clear()
                await self._news.wait()
            yield self._waiting[at]
            at += 1

    async def aclose(self) -> None:
        """Close the request; the server drops its row. Twice is harmless."""
        self._reader.cancel()
        await asyncio.wait([self._reader])

    async def _read(self) -> None:
        try:
            async with aclosing(self._tokens) as tokens:
                async for token in tokens:
                    self._waiting.append(token)
                    self._news.set()
                    if len(self._waiting) > self._most:
                        await asyncio.sleep(0)  # tokens that came together wait for nobody yet
                        if len(self._waiting) > self._most:
                            return
        except Exception as error:  # noqa: BLE001  whoever takes the tokens is to hear of it
            self._error = error
