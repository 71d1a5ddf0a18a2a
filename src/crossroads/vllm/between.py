"""A row on its way between the servers of the two models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass

from crossroads.decoding.engine import News
from crossroads.decoding.reading import Event
from crossroads.errors import CrossroadsError, EngineError
from crossroads.models.remote_client import MOST_PLACES, VllmClient
from crossroads.models.remote_drawing import ordered
from crossroads.models.remote_wire import NEVER, ReservedIds, read_step
from crossroads.types import OnLoss, Role
from crossroads.vllm.ask_ahead import Answers, Ask, Asks
from crossroads.vllm.asking import Asking
from crossroads.vllm.row import Answer, RemoteRow
from crossroads.vllm.run_ahead import RunAhead

Hear = Callable[[News], None]

_OFTEN, _REMEMBERED = 0.5, 0.95


@dataclass(frozen=True, slots=True)
class Servers:
    """Where both models are. large_has_plugin: whether it draws as we do when it samples."""

    small: VllmClient
    large: VllmClient
    large_has_plugin: bool
    on_loss: OnLoss = OnLoss.FAIL


@dataclass(frozen=True, slots=True)
class Ahead:
    """How far a row goes before the large model has answered, as if it agreed.

    While it agrees at fewer than half of the hand-overs, rows stop at each of them.

    tokens: how many the small model may write after the one in question; 0: it stops there. asks:
    about how many of those the large model may be asked already. prompt: whether the large model
    reads a row's prompt while the small one begins, and not at the first hand-over.
    """

    tokens: int = 0
    asks: int = 0
    prompt: bool = False


class BetweenServers:
    """Takes rows to their ends, each in a coroutine."""

    def __init__(
        self, servers: Servers, reserved: ReservedIds, eos_ids: Sequence[int], ahead: Ahead
    ) -> None:
        """Start without rows. eos_ids: after which a model ends."""
        self._servers = servers
        self._reserved = reserved
        self._eos_ids = list(eos_ids)
        self._ahead = ahead
        self._agreed = 1.0  # share of the last hand-overs, of all rows; the last 20 or so count
        self.discarded_ahead = 0
        """Small tokens that came ahead of the large model's answer and were not used."""

    async def mixed(self, row: RemoteRow, hear: Hear) -> None:
        """Take a row to its end."""
        async with self._prompt_read(row) as ask:
            while not row.finished:
                if self._ahead.tokens and self._agreed >= _OFTEN:
                    await self._small_runs_ahead(row, ask, hear)
                    continue
                await self._small_writes(row, hear)
                if row.waits:
                    self._settle(row, await ask(row))
                    _tell(row, hear)

    @asynccontextmanager
    async def _prompt_read(self, row: RemoteRow) -> AsyncIterator[Ask]:
        """Let the large model read a row's prompt; yield what asks it, once it has."""
        if not self._ahead.prompt or not row.may_ask:
            yield self._large_answers
            return
        reads = asyncio.create_task(self._large_reads(row.request.prompt_ids))

        async def ask(row: RemoteRow) -> Answers:
            await asyncio.wait([reads])  # or its server would read the same twice at once
            return await self._large_answers(row)

        try:
            yield ask
        finally:
            reads.cancel()
            await asyncio.wait([reads])

    async def _large_reads(self, prompt: Sequence[int]) -> None:
        """Leave a prompt in the prefix cache of the server that its row's requests go to."""
        # What is wrong with the server is said where it is asked for a token of the row.
        with suppress(CrossroadsError):
            await self._servers.large.next([prompt], {"temperature": 0}, prompt, insist=False)

    async def _small_writes(self, row: RemoteRow, hear: Hear) -> None:
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

    async def _small_runs_ahead(self, row: RemoteRow, ask: Ask, hear: Hear) -> None:
        """Let the small model write on, and ask the large one meanwhile, until they differ.

        The plugin is told to hand nothing over; the row decides by the scores that come.
        """
        options = ordered(row.order(Role.SMALL, NEVER), self._eos_ids)
        tokens = self._servers.small.write(
            row.state.tokens, row.left, options, row.request.prompt_ids
        )
        came = False
        async with (
            aclosing(RunAhead(tokens, self._ahead.tokens)) as run,
            aclosing(Asks(ask, run, self._reserved, self._ahead.asks)) as asks,
        ):
            async for token in run:
                came = True
                row.consider(row.decided(read_step(token.token_id, token.values, self._reserved)))
                _tell(row, hear)
                if row.waits:
                    stands = self._settle(row, await asks.answers(row))
                    _tell(row, hear)
                    if not stands:
                        break
                if row.finished:
                    break
            self.discarded_ahead += run.left_over
        if not came:
            raise _silent(self._servers.small)

    def _settle(self, row: RemoteRow, answers: Answers) -> bool:
        """Let a row take its answers; return whether all that was in question stands."""
        asked = row.in_question
        row.settle(answers)
        stands = row.state.tokens == asked
        if answers is not None:
            self._agreed = _REMEMBERED * self._agreed + (1 - _REMEMBERED) * stands
        return stands

    async def _large_answers(self, row: RemoteRow) -> Answers:
        """Return what the large model says of what the row waits for; None: it does not answer.

        Its places are asked together, so many at a time: most rows are refused early, if at all.
        """
        # What is promised to be the large model's cannot do without it; other rows that may are
        # not to wait for it at each of their tokens.
        insist = self._servers.on_loss is OnLoss.FAIL or row.request.lossless
        client, plugin = self._servers.large, self._servers.large_has_plugin
        asking = Asking(lambda: row.order(Role.LARGE, NEVER), row.request, self._reserved, plugin)
        places, tokens = row.places, row.state.tokens
        options = asking.options(0)
        answers: list[Answer] = []
        while len(answers) < len(places) and row.refused(answers) is None:
            asked = places[len(answers) : len(answers) + MOST_PLACES]
            prompts = [tokens[:place] for place in asked]
            try:
                found = await client.next(prompts, options, row.request.prompt_ids, insist=insist)
            except EngineError:
                if insist:
                    raise
                return None
            answers += map(asking.answer, found)
        return answers

    async def alone(self, row: RemoteRow, role: Role, hear: Hear) -> None:
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


def _tell(row: RemoteRow, hear: Hear, *, alone: bool = False) -> None:
    """Tell what has become certain of a row; its last token comes with the trace."""
    news = row.news()
    for record in news:
        last = row.finished and record is news[-1]
        hear(Event(0, record, row.trace(alone=alone) if last else None))


def _silent(client: VllmClient) -> EngineError:
    return EngineError(f"the server of {client.model} ended an answer before its end")
