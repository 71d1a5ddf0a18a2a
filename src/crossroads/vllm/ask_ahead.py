"""Asking the large model about tokens that are not there yet, if all goes as it mostly does.

While the large model answers for one token, the small one has gone on from its own proposal, and
may have come to the next token that is the large model's. A copy of the row finds it, by the row's
own rules, and the large model is asked about that one, too. If it agrees with the first proposal
its next answer is on its way by then; if it differs, that answer is of no use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from crossroads.errors import CrossroadsError
from crossroads.models.remote_wire import NEVER, Order, ReservedIds, read_step
from crossroads.types import Role
from crossroads.vllm.row import Answer, RemoteRow
from crossroads.vllm.run_ahead import RunAhead

Answers = list[Answer] | None
Ask = Callable[[RemoteRow], Awaitable[Answers]]
_Key = tuple[tuple[int, ...], Order]


class Asks:
    """What the large model is asked about one run of the small one; `aclose` it in the end."""

    def __init__(
        self,
        ask: Ask,
        run: RunAhead,
        reserved: ReservedIds,
        most: int,
    ) -> None:
        """Start without any. most: how many to ask besides the one that is waited for."""
        self._ask = ask
        self._run = run
        self._reserved = reserved
        self._most = most
        self._open: dict[_Key, asyncio.Task[Answers]] = {}

    async def answers(self, row: RemoteRow) -> Answers:
        """Return what the large model says of what a row waits for, which may have been asked.

        Raises:
            CrossroadsError: nobody answered.
        """
        task = self._begin(row)
        scout = None
        if self._most and not row.request.revises:
            scout = asyncio.create_task(self._look_ahead(row.fork()))
        try:
            return await task  # which ends with us, if we are cancelled
        finally:
            del self._open[_key(row)]
            if scout is not None:
                await _end(scout)

    def _begin(self, row: RemoteRow) -> asyncio.Task[Answers]:
        key = _key(row)
        if key not in self._open:
            self._open[key] = asyncio.create_task(_answers(self._ask, row))
        return self._open[key]

    async def _look_ahead(self, scout: RemoteRow) -> None:
        """Ask about what comes after the token in question, if the proposal stands."""
        scout.agree()
        # What is wrong with these tokens is said where the row itself gets to them.
        with suppress(CrossroadsError):
            async for token in self._run.look():
                step = read_step(token.token_id, token.values, self._reserved)
                scout.consider(scout.decided(step))
                if scout.waits:
                    if len(self._open) > self._most:
                        return
                    self._begin(scout.fork())
                    scout.agree()
                if scout.finished:
                    return

    async def aclose(self) -> None:
        """End what is still asked. Twice is harmless."""
        for task in self._open.values():
            await _end(task)


async def _answers(ask: Ask, row: RemoteRow) -> Answers:
    return await ask(row)


async def _end(task: asyncio.Task[object]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _key(row: RemoteRow) -> _Key:
    """Return all that an answer depends on."""
    return tuple(row.in_question), row.order(Role.LARGE, NEVER)
