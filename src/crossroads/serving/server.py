"""The process around the application: sockets, signals, and an end that loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from crossroads.decoding.engine import GenerationEngine
from crossroads.errors import ConfigError

logger = logging.getLogger("crossroads.serving")

_LEAVING = 5.0  # seconds, after the last answer, for clients to read it
_SILENT = 60.0  # seconds that a connection may take to say what it wants
_KEEP_ALIVE = 75.0  # seconds that an idle connection stays open: longer than most clients keep one


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; before the models load, so that a taken port costs no minute.

    Raises:
        ConfigError: the address is not this machine's, or taken.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # asyncio turns Nagle's algorithm, which would hold tokens back, off for named TCP alone.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(2048)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"cannot listen on {host}:{port}: {reason}; choose another --host or --port"
        ) from error
    return listener


def allow_many_connections() -> None:
    """Let the process hold as many open connections as the system gives it without asking."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # noqa: PLC0415  not on Windows

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Server(uvicorn.Server):
    """A server that, told to stop, lets answers end for a while and takes no new requests.

    A second signal stops it at once.
    """

    def __init__(
        self, app: Starlette, engine: GenerationEngine, *, shutdown_seconds: float
    ) -> None:
        """Prepare; shutdown_seconds: how long answers may go on after the signal."""
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                http="h11",  # whose connections are looked at here
                ws="none",
                timeout_keep_alive=int(_KEEP_ALIVE),
                timeout_graceful_shutdown=int(shutdown_seconds + _LEAVING) + 1,
            )
        )
        self._engine = engine
        self._seconds = shutdown_seconds
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: dict[asyncio.Transport, float] = {}  # and when that was first seen
        self._silent: dict[asyncio.Transport, tuple[object, float]] = {}

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to stop."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for the answers and the connections, then give up those that are left."""
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop taking requests; called on the first signal and on each after it."""
        if self._draining is None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._begin_drain)
        # Not uvicorn's own way: it would send the signal to the process again in the end, and an
        # end that loses nothing is no failure.
        self.force_exit = self.should_exit
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Look after the connections; return whether to stop."""
        self._drop_unread()
        self._drop_silent()
        return await super().on_tick(counter)

    def _drop_unread(self) -> None:
        """Give up connections that we closed and whose clients do not read the rest.

        It would wait for ever, and the socket with it.
        """
        now = time.monotonic()
        transports = [c.transport for c in self.server_state.connections]
        closing = [t for t in transports if t is not None and t.is_closing()]
        self._closing = {t: self._closing.get(t, now) for t in closing}
        for transport, since in self._closing.items():
            if now - since >= _LEAVING:
                transport.abort()

    def _drop_silent(self) -> None:
        """Give up connections that are open and on which no request comes, or only half of one.

        Those between two requests have a time of their own, which ends when the next one begins.
        """
        now = time.monotonic()
        silent = {}
        for connection in self.server_state.connections:
            assert isinstance(connection, H11Protocol)
            cycle, transport = connection.cycle, connection.transport
            works = cycle is not None and not cycle.response_complete
            if transport is None or works or connection.timeout_keep_alive_task is not None:
                continue
            # The last request is remembered, so that a quick one between two looks counts.
            before, since = self._silent.get(transport, (cycle, now))
            silent[transport] = (cycle, since if before is cycle else now)
            if now - silent[transport][1] >= _SILENT:
                transport.abort()
        self._silent = silent

    def _begin_drain(self) -> None:
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        running = self._engine.running + self._engine.waiting
        logger.info("shutting down: %d answers may go on for %g s", running, self._seconds)
        cut_off = await self._engine.drain(self._seconds)
        logger.info("shut down: %d answers ended, %d were cut off", running - cut_off, cut_off)
