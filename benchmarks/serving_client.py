"""A lean HTTP client for the benchmarks of serving: it must not be what they measure.

One connection per request, server-sent events as they come, and a time for each. Seconds are of
time.perf_counter.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

CHAT = "/v1/chat/completions"
_LONGEST_LINE = 2**24

TOPICS = ("bank accounts", "a chess clock", "matrices", "a library", "binary trees", "calendars")


@dataclass
class Reply:
    """What came back. status: 0 if the connection ended before one. done: [DONE], or a whole body.

    connected: whether the server's system took the connection.
    times: of each event that told something of an answer. bodies: what the events held, or the one
    body of a reply that does not stream.
    """

    started: float = field(default_factory=time.perf_counter)
    connected: bool = False
    status: int = 0
    done: bool = False
    error: bool = False
    hung: bool = False
    ended: float = 0.0
    times: list[float] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens of the answer, as the server counts them; the events, if it does not tell."""
        told = next((body["usage"] for body in self.bodies[::-1] if body.get("usage")), None)
        return len(self.times) if told is None else int(told["completion_tokens"])

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.times[0] - self.started

    @property
    def gaps(self) -> list[float]:
        """Seconds between events that told something."""
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]

    @property
    def seconds(self) -> float:
        """Seconds from sending to the end."""
        return self.ended - self.started

    @property
    def outcome(self) -> str:
        """How it ended, in a word; "cut" and "no reply" are neither answers nor errors."""
        if self.hung:
            return "hung"
        if self.status >= 400:
            return f"status {self.status}"
        if self.error:
            return "error event"
        if self.done:
            return "answered"
        if self.status:
            return "cut"
        return "no reply" if self.connected else "not connected"


def chat(seed: int, max_tokens: int, model: str = "mixed", **more: Any) -> dict[str, Any]:
    """Return a streaming chat whose answer is long enough; prompts of seeds differ."""
    generator = random.Random(seed)
    about = generator.choice(TOPICS)
    prompt = f"Write a long Python module about {about}, variant {generator.randrange(10_000)}."
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        **more,
    }


@contextlib.asynccontextmanager
async def posted(
    url: str, body: dict[str, Any] | bytes, path: str = CHAT, *, buffer: int | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Yield a connection on which a request was sent; it is closed at the end, read or not.

    buffer: bytes that the system may hold for a client that does not read.
    """
    where = urlsplit(url)
    sock = socket.socket()
    if buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        # The sender's buffer grows with it, which is 64 kB on loopback.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (where.hostname, where.port))
    except BaseException:
        sock.close()
        raise
    limit = buffer or _LONGEST_LINE
    reader, writer = await asyncio.open_connection(sock=sock, limit=limit)
    try:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + content)
        await writer.drain()
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def post(
    url: str, body: dict[str, Any] | bytes, path: str = CHAT, *, leave_after: int | None = None
) -> Reply:
    """Return the reply; leave_after: go away after so many lines."""
    reply = Reply()
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        async with posted(url, body, path) as (reader, _):
            reply.connected = True
            await _head(reader, reply)
            async for line in _lines(reader):
                _take(line, reply)
                if leave_after is not None:
                    leave_after -= 1
                    if leave_after <= 0:
                        break
    reply.ended = time.perf_counter()
    return reply


async def _head(reader: asyncio.StreamReader, reply: Reply) -> None:
    status = await reader.readline()
    while (await reader.readline()).strip():
        pass
    reply.status = int(status.split()[1]) if status else 0


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield lines that hold something; the sizes of chunks are lines of digits, and harmless."""
    while line := await reader.readline():
        if line.startswith((b"data: ", b"{")):
            yield line


def _take(line: bytes, reply: Reply) -> None:
    now = time.perf_counter()
    if line.startswith(b"data: [DONE]"):
        reply.done = True
        return
    try:
        value = json.loads(line.removeprefix(b"data: "))
    except ValueError:
        return  # the connection ended within it
    reply.bodies.append(value)
    if "error" in value:
        reply.error = True
    elif not line.startswith(b"data: "):
        reply.done = True
    elif any(_tells(choice) for choice in value["choices"]):
        reply.times.append(now)


def _tells(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta", {})
    said = delta.get("content") or delta.get("reasoning_content") or choice.get("text")
    return bool(said or choice.get("trace"))
