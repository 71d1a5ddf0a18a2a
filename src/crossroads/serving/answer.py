"""One answer as it grows: from an engine's events to what a client is told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from crossroads.decoding.reading import Event
from crossroads.decoding.text_stream import Piece, TextStream
from crossroads.models.base import Tokenizer
from crossroads.serving.reasoning import ReasoningSplitter, Split
from crossroads.types import FinishReason, TokenRecord, Trace

Channel = Literal["reasoning", "content"]

_FINISH = {
    FinishReason.EOS: "stop",
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
}


@dataclass(frozen=True, slots=True)
class ShownToken:
    """A token, what it added to the text, and where that shows; None: a tag, or no text."""

    record: TokenRecord
    text: str
    channel: Channel | None


@dataclass(slots=True)
class Delta:
    """What one or more tokens add to an answer; `finish_reason` comes with the last of them."""

    content: str = ""
    reasoning: str = ""
    tokens: list[ShownToken] = field(default_factory=list)
    finish_reason: str | None = None

    def extend(self, other: Delta) -> None:
        """Append what comes after."""
        self.content += other.content
        self.reasoning += other.reasoning
        self.tokens += other.tokens
        self.finish_reason = other.finish_reason

    def take(self, split: Split) -> None:
        """Append text."""
        self.content += split.content
        self.reasoning += split.reasoning


class Answer:
    """Turns events into deltas; all deltas together are the whole answer."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str],
        splitter: ReasoningSplitter | None = None,
    ) -> None:
        """Start. splitter: for a model that thinks; None: all text is content."""
        self._stream = TextStream(tokenizer, stop)
        self._splitter = splitter
        self._waiting: list[TokenRecord] = []
        self.trace: Trace | None = None

    def add(self, event: Event) -> Delta:
        """Return what a token makes certain, which may be nothing."""
        delta = Delta()
        if event.record is not None:
            self._waiting.append(event.record)
            for piece in self._stream.add(event.record.token_id):
                self._show(piece, delta)
        if event.trace is not None:
            self._finish(event.trace, delta)
        return delta

    def _show(self, piece: Piece, delta: Delta) -> None:
        split = self._split(piece.text)
        delta.take(split)
        # The last piece may belong to a token that was shown before, without its text.
        if self._waiting and self._waiting[0].position == piece.token:
            channel: Channel | None = (
                "content" if split.content else "reasoning" if split.reasoning else None
            )
            text = split.reasoning + split.content
            delta.tokens.append(ShownToken(self._waiting.pop(0), text, channel))

    def _finish(self, trace: Trace, delta: Delta) -> None:
        for piece in self._stream.end():
            self._show(piece, delta)
        if self._splitter is not None:
            delta.take(self._splitter.end())
        self.trace = trace
        delta.finish_reason = _FINISH[trace.finish_reason]

    def _split(self, text: str) -> Split:
        return Split(content=text) if self._splitter is None else self._splitter.feed(text)


def token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    """Return what an id adds to the text; of a special token, what it is called."""
    return tokenizer.text_bytes(token_id) or (tokenizer.pieces()[token_id] or b"")


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """Return an id's text by itself; bytes that are no character become U+FFFD."""
    return token_bytes(tokenizer, token_id).decode("utf-8", errors="replace")


def traced(shown: ShownToken, tokenizer: Tokenizer, *, thinks: bool) -> dict[str, Any]:
    """Return a token as the trace of a reply tells it."""
    record = shown.record
    value: dict[str, Any] = {
        "position": record.position,
        "token_id": record.token_id,
        "text": shown.text,
        "writer": record.writer.value,
        "score": record.score,
        "entropy": record.entropy,
        "proposed": None,
        "proposals": None,
        "lag": record.lag,
        "cause": None if record.cause is None else record.cause.value,
        "discarded": record.discarded,
        "seconds": round(record.seconds, 4),
    }
    if thinks:
        value["channel"] = shown.channel
    if record.proposed_id is not None:
        text = token_text(tokenizer, record.proposed_id)
        value["proposed"] = {"id": record.proposed_id, "text": text}
    if record.proposals is not None:
        value["proposals"] = [
            {"id": i, "text": token_text(tokenizer, i), "probability": math.exp(nats)}
            for i, nats in record.proposals
        ]
    return value
