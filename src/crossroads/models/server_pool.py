"""Servers that serve the same model, and which of them a request goes to.

A request is a function of its tokens and its order, so it can be sent again whenever an answer
does not come, also to another server: no token is ever written twice, because only what came back
counts. All requests of one row go to the same server while it lives, where the row's keys and
values still lie.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

import httpx2

from crossroads.errors import ConfigError, UnreachableError

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for a server, in seconds.

    connect: for a connection. token: for the next token. down: how long a server that failed is
    left alone. give_up: how long a request is tried again before it fails. text: for the next token
    or the reading of one of many texts, which wait for each other at the server.
    """

    connect: float = 5.0
    token: float = 60.0
    down: float = 5.0
    give_up: float = 120.0
    text: float = 600.0


class ServerFaultError(Exception):
    """A server that does not do what it should, for now."""


FAULTS = (httpx2.HTTPError, ServerFaultError, ValueError, KeyError)
"""What is tried again, on another server if there is one."""


def words(error: BaseException) -> str:
    """Return what an error says, or its name where it says nothing."""
    return str(error) or type(error).__name__


@dataclass(slots=True)
class Server:
    """One server, and what is known of its health."""

    url: str
    down_until: float = 0.0
    watched: bool = False
    pause: float = 0.0

    def answered(self) -> None:
        """Take note that it works."""
        self.pause = 0.0


@dataclass(slots=True)
class ServerPool:
    """Servers of one model, by URL. To be used on one event loop; `close` it in the end."""

    urls: Sequence[str]
    patience: Patience
    api_key: str | None = None
    servers: list[Server] = field(init=False)
    _http: httpx2.AsyncClient | None = field(init=False, default=None)
    _watches: set[asyncio.Task[None]] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        """Check the addresses.

        Raises:
            ConfigError: none, or one that is no http address.
        """
        if not self.urls:
            raise ConfigError("give the address of at least one server")
        for url in self.urls:
            if not url.startswith(("http://", "https://")):
                raise ConfigError(f"a server's address begins with http://, got {url!r}")
        self.servers = [Server(url.rstrip("/").removesuffix("/v1")) for url in self.urls]

    @property
    def available(self) -> bool:
        """Whether a server is not known to be down."""
        return any(server.down_until <= time.monotonic() for server in self.servers)

    async def again(
        self,
        row: Sequence[int],
        ask: Callable[[Server], Awaitable[Result]],
        *,
        model: str | None,
        insist: bool = True,
    ) -> Result:
        """Return the answer of the first server that gives one.

        row: what chooses the server; the same for all requests of a row. model: for the error.
        insist: try again as long as `patience` says; False: each server that is not known to be
        down once.

        Raises:
            UnreachableError: no server answers in time.
        """
        attempts = self.attempts(model, insist=insist)
        while True:
            server = self.choose(row, attempts)
            try:
                reply = await ask(server)
            except FAULTS as error:
                await attempts.failed(server, error)
            else:
                server.answered()
                return reply

    def attempts(self, model: str | None, *, insist: bool) -> Attempts:
        """Begin to count the attempts of one request.

        Raises:
            UnreachableError: one must not insist, and no server is up.
        """
        if not insist and not self.available:
            raise UnreachableError(f"no server of {model} is up")
        return Attempts(self, model, insist=insist)

    def choose(self, row: Sequence[int], attempts: Attempts) -> Server:
        """Return the server for a row: its own if that is up, else the next by the same rule."""
        now = time.monotonic()
        key = repr(tuple(row)).encode()

        def rank(server: Server) -> tuple[bool, int, bytes]:
            weight = hashlib.blake2b(key, key=server.url.encode()[:64], digest_size=8).digest()
            return server.down_until > now, attempts.failures[server.url], weight

        return min(self.servers, key=rank)

    def watch(self, server: Server) -> None:
        """Leave a server alone until it answers again, which is asked from time to time.

        Who does not insist would else wait for a server that takes connections and stands still,
        again and again. One that says that it is there and fails is left alone for longer and
        longer, up to `patience.give_up`.
        """
        server.down_until = math.inf
        if not server.watched:
            server.watched = True
            server.pause = min(max(self.patience.down, 2 * server.pause), self.patience.give_up)
            task = asyncio.get_running_loop().create_task(self._watch(server))
            self._watches.add(task)
            task.add_done_callback(self._watches.discard)

    async def _watch(self, server: Server) -> None:
        url, wait = f"{server.url}/v1/models", self.patience.connect
        while server.watched:
            await asyncio.sleep(server.pause)
            with suppress(httpx2.HTTPError):
                reply = await self.http().get(url, timeout=wait)
                server.watched = not reply.is_success
        server.down_until = 0.0

    def http(self) -> httpx2.AsyncClient:
        """Return the connections to all of them, made when they are first asked for."""
        if self._http is None:
            headers = {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}
            self._http = httpx2.AsyncClient(
                timeout=self.timeout(self.patience.token),
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=256),
                headers=headers,
            )
        return self._http

    def timeout(self, seconds: float) -> httpx2.Timeout:
        """Return how long a request waits whose answer may take so many seconds to come."""
        return httpx2.Timeout(seconds, connect=self.patience.connect)

    async def close(self) -> None:
        """Close the connections. Twice is harmless."""
        watches = list(self._watches)
        for task in watches:
            task.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        if self._http is not None:
            http, self._http = self._http, None
            await http.aclose()


class Attempts:
    """How often one request was tried where, and whether to go on."""

    def __init__(self, pool: ServerPool, model: str | None, *, insist: bool) -> None:
        self._pool = pool
        self._model = model
        self._insist = insist
        self.failures = Counter[str]()
        self.begin_again()

    def begin_again(self) -> None:
        """Give the request its whole time again, because something of its answer has come."""
        self._begun = time.monotonic()
        self._pause = 0.05
        self.failures.clear()

    async def failed(self, server: Server, error: BaseException) -> None:
        """Leave a server alone for a while, and wait a little.

        Raises:
            UnreachableError: it was tried for long enough.
        """
        now, patience = time.monotonic(), self._pool.patience
        self.failures[server.url] += 1
        if not self._insist:
            self._pool.watch(server)
            if self._pool.available:
                return
            raise UnreachableError(f"no server of {self._model} is up: {words(error)}") from error
        if not server.watched:
            server.down_until = now + patience.down
        if now - self._begun + self._pause > patience.give_up:
            raise UnreachableError(
                f"no server of {self._model} has answered for {patience.give_up:g} s; the last "
                f"error was: {words(error)}"
            ) from error
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, 2.0)
