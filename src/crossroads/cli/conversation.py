"""A conversation of many turns with a pair: what was said, with which settings, and how to go on.

The prompt of a turn is the whole conversation before it, rendered anew; nothing is remembered
beside the texts, so a turn can be taken back, tried again or read from a file.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import cast

from crossroads.cli.answer import TokenPrinter, usage_line
from crossroads.cli.screen import Screen
from crossroads.decoding.engine import Engine
from crossroads.decoding.mixed import MixedModels
from crossroads.decoding.reading import Event
from crossroads.decoding.request import Request, RowText
from crossroads.errors import RequestError
from crossroads.routing.choose import ChosenRouter
from crossroads.types import FinishReason, Message, Role, TokenRecord, Trace

MIXED = "mixed"
MODELS = (MIXED, *map(str, Role))
"""Who may answer; the names are the server's."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How the next answer is made: the request but for its prompt, by whom, and as whom."""

    request: Request
    model: str = MIXED
    system: str | None = None

    @property
    def alone(self) -> Role | None:
        """The model that answers by itself, if one does."""
        return None if self.model == MIXED else Role(self.model)


@dataclass(frozen=True, slots=True)
class Turn:
    """A message and its answer; seconds in all, and to the first token."""

    text: str
    trace: Trace
    model: str
    seconds: float
    first: float


def messages_of(system: str | None, turns: Sequence[Turn]) -> list[Message]:
    """Return what was said so far, as chat templates take it."""
    said = [] if system is None else [Message("system", system)]
    for turn in turns:
        said += [Message("user", turn.text), Message("assistant", turn.trace.text)]
    return said


class Conversation:
    """Turns with one pair. A context manager, since it owns an engine and an event loop."""

    def __init__(
        self,
        models: MixedModels,
        chosen: ChosenRouter,
        settings: Settings,
        screen: Screen,
        *,
        interactive: bool,
    ) -> None:
        """Start without turns.

        interactive: Ctrl-C stops an answer, which stays as far as it came; otherwise it ends all.
        """
        self.models = models
        self.chosen = chosen
        self.settings = settings
        self.screen = screen
        self.turns: list[Turn] = []
        self._interactive = interactive
        self._runner = asyncio.Runner()
        self._engine = Engine(models, max_rows=1, keep=1)  # a turn begins as the one before it

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._runner.run(self._engine.close())
        self._runner.close()

    def ask(self, text: str) -> None:
        """Print the answer to a message as it is written, then what it cost; it is the next turn.

        One that is stopped before its first token is no turn.

        Raises:
            RequestError: there is no room for an answer, or the template refuses the messages.
            EngineError: a model failed. KeyboardInterrupt: Ctrl-C, where that ends all.
        """
        said = [*messages_of(self.settings.system, self.turns), Message("user", text)]
        prompt_ids = tuple(self.models.tokenizer.render(said))
        room = self._room()
        if len(prompt_ids) >= room:
            raise RequestError(self._full(len(prompt_ids), room))
        turn = self._runner.run(self._answer(text, prompt_ids))
        if turn is None:
            self.screen.note("stopped before the first token; the message was taken back")
            return
        line = usage_line(self.models, turn.trace, turn.seconds, turn.first)
        self.screen.note(line)
        self._explain(turn.trace, room)

    def retry(self) -> None:
        """Answer the last message again, with a new seed where the last one would repeat itself.

        The earlier answer stays if there is no new one.

        Raises:
            RequestError: there is no answer yet; and as `ask`.
        """
        last, before = self.last, self.settings
        sampling = before.request.sampling
        if sampling.greedy:
            self.screen.note("temperature 0 gives the same answer unless a setting has changed")
        elif sampling.seed == last.trace.seed:
            seed = replace(sampling, seed=sampling.seed + 1)
            self.settings = replace(before, request=replace(before.request, sampling=seed))
        self.turns.pop()
        count = len(self.turns)
        try:
            self.ask(last.text)
        finally:
            if len(self.turns) == count:
                self.turns.append(last)
                self.settings = before

    @property
    def threshold(self) -> float:
        """The threshold of the next answer of both models."""
        own = self.settings.request.threshold
        return self.models.threshold if own is None else own

    @property
    def last(self) -> Turn:
        """The last turn.

        Raises:
            RequestError: there is none.
        """
        if not self.turns:
            raise RequestError("there is no answer yet; write a message first")
        return self.turns[-1]

    async def _answer(self, text: str, prompt_ids: tuple[int, ...]) -> Turn | None:
        settings = self.settings
        request = replace(settings.request, prompt_ids=prompt_ids)
        printer = TokenPrinter(self.models.tokenizer, request.stop, coloured=self.screen.coloured)
        records: list[TokenRecord] = []
        trace: Trace | None = None
        started, first = time.perf_counter(), 0.0
        generating = self._engine.generate(request, alone=settings.alone)
        try:
            with ctrl_c_cancels(self._interactive):
                async with aclosing(cast("AsyncGenerator[Event]", generating)) as events:
                    async for event in events:
                        first = first or time.perf_counter() - started
                        if event.record is not None:
                            records.append(event.record)
                            printer.add(event.record)
                        trace = event.trace
        except asyncio.CancelledError:
            if not self._interactive:
                raise
        finally:
            if records:
                printer.end()
        if not records:
            return None
        if trace is None:
            trace = self._cut_off(request, records)
        turn = Turn(text, trace, settings.model, time.perf_counter() - started, first)
        # Here and not by the caller: a Ctrl-C on the way there would lose it.
        self.turns.append(turn)
        return turn

    def _cut_off(self, request: Request, records: Sequence[TokenRecord]) -> Trace:
        """Return the trace of an answer that was stopped: its row is gone, its tokens are here."""
        text = RowText(self.models.tokenizer, request.stop)
        for record in records:
            text.add(record.token_id)
        return Trace(
            prompt_ids=request.prompt_ids,
            records=tuple(records),
            finish_reason=FinishReason.CANCELLED,
            text=text.text,
            threshold=self.threshold if self.settings.alone is None else None,
            seed=request.sampling.seed,
            id=request.id,
        )

    def _room(self) -> int:
        """Return how many tokens the contexts hold of the models that are to answer."""
        models = {Role.SMALL: self.models.small, Role.LARGE: self.models.large}
        alone = self.settings.alone
        return min(m.info.context_length for r, m in models.items() if alone in (None, r))

    def _full(self, tokens: int, room: int) -> str:
        if not self.turns:
            return (
                f"the message has {tokens} tokens and the context holds {room}, with no room to "
                "answer; shorten it, or start with a larger --context"
            )
        return (
            f"the conversation has {tokens} tokens and the context holds {room}, with no room to "
            "answer; /undo takes back the last turn, /reset all of them"
        )

    def _explain(self, trace: Trace, room: int) -> None:
        """Say why an answer ended that did not end by itself, and what to do."""
        if trace.finish_reason is FinishReason.CANCELLED:
            self.screen.note("stopped; what was written stays, /undo or /retry takes it back")
        if trace.finish_reason is not FinishReason.LENGTH:
            return
        if len(trace.prompt_ids) + len(trace.records) >= room:
            self.screen.note(
                f"the context of {room} tokens is full; /undo takes back the last turn, "
                "/reset all of them"
            )
        else:
            limit = self.settings.request.max_tokens
            self.screen.note(f"cut after {limit} tokens; /max-tokens allows more")


@contextmanager
def ctrl_c_cancels(wanted: bool) -> Iterator[None]:
    """Let Ctrl-C cancel the running task, however often it comes, and raise nothing by itself.

    The event loop's own handler would raise at the second one, wherever the first has come to.
    """
    before = signal.getsignal(signal.SIGINT)
    ignored = before in (signal.SIG_IGN, None)  # None: not Python's, so not ours to replace
    if not wanted or ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    cancel = task.cancel
    signal.signal(signal.SIGINT, lambda *_: loop.call_soon_threadsafe(cancel))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
