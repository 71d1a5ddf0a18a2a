"""A real server on a free loopback port, over a scripted pair, for tests and for looking at it."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from crossroads.decoding.engine import Engine
from crossroads.decoding.mixed import MixedModels
from crossroads.models.base import StepOutput, Want
from crossroads.models.pairs import Pair
from crossroads.models.scripted import ScriptedLM
from crossroads.routing.routers.heuristics import entropy
from crossroads.serving.app import Safety, create_app
from crossroads.serving.safety import LOOPBACK_HOSTS
from crossroads.serving.server import Server, listen
from crossroads.serving.service import Served, Service, ServiceOptions, make_service
from laws.pairs import VOCAB, scripted_pair

MIDDLE = 0.65
KEY = "a-key-of-some-length"
_LAST = Want()


@dataclass(slots=True)
class Live:
    """A running server."""

    url: str
    pair: Pair
    service: Service
    server: Server
    thread: threading.Thread

    @property
    def v1(self) -> str:
        """Where OpenAI's API is."""
        return f"{self.url}/v1"

    def wait_until_idle(self, seconds: float = 10.0) -> None:
        """Return once nothing runs or waits and no cache is taken; fail if that never comes."""
        end = time.monotonic() + seconds
        engine = self.service.engine
        while engine.running or engine.waiting or self.pair.small.alive or self.pair.large.alive:
            assert time.monotonic() < end, "something is still running"
            time.sleep(0.01)


class Slow:
    """Makes a scripted model take its time, so that something can happen in between."""

    def __init__(self, model: ScriptedLM, seconds: float) -> None:
        self._model = model
        self._seconds = seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def extend(
        self,
        caches: Sequence[Any],
        tokens: Sequence[Sequence[int]],
        want: Want = Want(),  # noqa: B008
    ) -> StepOutput:
        """Wait, then extend."""
        time.sleep(self._seconds)
        return self._model.extend(caches, tokens, want)


class Failing:
    """A scripted model that raises `error` where a row's tokens, those to read included, meet
    `when`; at other rows it works.
    """

    def __init__(
        self, model: ScriptedLM, error: Exception, when: Callable[[Sequence[int]], bool]
    ) -> None:
        self._model = model
        self._error = error
        self._when = when

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def extend(
        self, caches: Sequence[Any], tokens: Sequence[Sequence[int]], want: Want = _LAST
    ) -> StepOutput:
        """Fail, or extend."""
        rows = ([*cache.tokens, *new] for cache, new in zip(caches, tokens, strict=True))
        if any(self._when(row) for row in rows):
            raise self._error
        return self._model.extend(caches, tokens, want)


def endless(pair: Pair) -> Pair:
    """Return the pair with models that never end an answer by themselves."""
    for model in (pair.small, pair.large):
        model._info = dataclasses.replace(model.info, eos_ids=())
    return pair


@contextmanager
def live(
    pair: Pair | None = None,
    *,
    seconds_per_token: float = 0.0,
    rows: int = 8,
    queue: int = 64,
    safety: Safety | None = None,
    options: ServiceOptions = ServiceOptions(),  # noqa: B008
    shutdown_seconds: float = 5.0,
    served: Served = Served("scripted", "entropy"),  # noqa: B008
) -> Iterator[Live]:
    """Serve until the block ends."""
    pair = pair or scripted_pair()
    small = Slow(pair.small, seconds_per_token) if seconds_per_token else pair.small
    models = MixedModels(small, pair.large, entropy(VOCAB), pair.tokenizer, MIDDLE)
    listener = listen("127.0.0.1", 0)
    ready: list[Any] = []
    failed: list[BaseException] = []

    async def serve() -> None:
        engine = Engine(models, max_rows=rows, max_waiting=queue)
        service = make_service(engine, served, options)
        app = create_app(service, safety or Safety(hosts=LOOPBACK_HOSTS))
        server = Server(app, engine, shutdown_seconds=shutdown_seconds)
        ready.extend((service, server))
        try:
            await server.serve([listener])
        finally:
            await engine.close()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:  # noqa: BLE001  told to the test's own thread
            failed.append(error)

    thread = threading.Thread(target=run, name="server", daemon=True)
    thread.start()
    while not (ready and ready[1].started):
        if failed:
            raise failed[0]
        time.sleep(0.005)
    found = Live(f"http://127.0.0.1:{listener.getsockname()[1]}", pair, ready[0], ready[1], thread)
    try:
        yield found
    finally:
        found.server.should_exit = True
        thread.join(30)
        listener.close()
        assert not thread.is_alive(), "the server did not end"
