"""Replies to clients that may go away at any moment, or read slowly, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Result = TypeVar("Result")

DONE = b"data: [DONE]\n\n"


class ClientGoneError(Exception):
    """The client has closed the connection; nobody reads what we would say."""


def server_event(value: dict[str, Any]) -> bytes:
    """Return a value as one server-sent event."""
    return b"data: " + dump(value) + b"\n\n"


def dump(value: Any) -> bytes:
    """Return compact JSON; refuses what JSON has no words for (NaN, infinity)."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode()


async def while_connected(receive: Receive, work: Awaitable[Result]) -> Result:
    """Return the result of `work`, which is cancelled once the client goes away.

    The request's body must have been read.

    Raises:
        ClientGoneError: it has gone.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """A stream of server-sent events; `events` yields their bytes.

    It ends early if the client goes away or reads nothing for `patience` seconds. `close` is called
    at its end, however it comes.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes], *, patience: float, close: Callable[[], None]
    ) -> None:
        """Prepare; the status is 200 whatever comes."""
        self.status_code = 200
        self.background = None
        self._events = events
        self._patience = patience
        self._close = close
        # A proxy that buffers would turn the stream into one late reply.
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            with contextlib.suppress(ClientGoneError, OSError, TimeoutError):
                await while_connected(receive, self._send_all(send))
        finally:
            self._close()

    async def _send_all(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async with contextlib.aclosing(self._events) as events:
            async for chunk in events:
                async with asyncio.timeout(self._patience):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
