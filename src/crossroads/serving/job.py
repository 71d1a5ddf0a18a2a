"""What one HTTP request makes the engine do: its answers, side by side, until the last has ended.

A deadline is one more piece of news in the queue that the tokens come by, so that nothing has to
be watched besides it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from crossroads.decoding.engine import Accepted, GenerationEngine, News, heard
from crossroads.decoding.reading import Event
from crossroads.decoding.request import Request
from crossroads.serving.api_error import timed_out
from crossroads.types import Role, Trace


@dataclass(frozen=True, slots=True)
class _Deadline:
    seconds: float


@dataclass(slots=True)
class Job:
    """The answers to one HTTP request. Whoever makes one has to `close` it."""

    engine: GenerationEngine
    requests: Sequence[Request]
    alone: Role | None
    seconds: float
    traces: list[Trace | None] = field(init=False)
    _news: asyncio.Queue[tuple[int, News] | _Deadline] = field(init=False)
    _submissions: list[Accepted] = field(init=False, default_factory=list)
    _timer: asyncio.TimerHandle | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Have no trace yet."""
        self.traces = [None] * len(self.requests)
        self._news = asyncio.Queue()

    def start(self) -> None:
        """Submit all answers, or none.

        Raises:
            RequestError, BusyError, ClosedError: the engine does not take them.
        """
        try:
            for index, request in enumerate(self.requests):
                hear = partial(self._hear, index)
                self._submissions.append(self.engine.submit(request, hear, alone=self.alone))
        except BaseException:
            self.close()
            raise
        loop = asyncio.get_running_loop()
        late = _Deadline(self.seconds)
        self._timer = loop.call_later(self.seconds, self._news.put_nowait, late)

    def _hear(self, index: int, news: News) -> None:
        self._news.put_nowait((index, news))

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """Yield (number of the answer, its next event) until every answer has its trace.

        Raises:
            ApiError: 504, the deadline passed. CrossroadsError: the engine failed.
        """
        missing = len(self.requests)
        while missing:
            item = await self._news.get()
            if isinstance(item, _Deadline):
                raise timed_out(item.seconds)
            index, news = item
            event = heard(news)
            if event.trace is not None:
                self.traces[index] = event.trace
                missing -= 1
            yield index, event

    def close(self) -> None:
        """Cancel what still runs. Twice is harmless."""
        if self._timer is not None:
            self._timer.cancel()
        for submission in self._submissions:
            submission.leave()
