"""The JSON of replies: whole ones and the chunks of a stream, for chats and completions."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crossroads.models.base import Tokenizer
from crossroads.serving.answer import Delta, ShownToken, token_bytes, traced

_LOWEST_LOGPROB = -9999.0
"""JSON has no infinity; what other servers send for "never"."""


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """What a request asked to be told.

    stop_ids: of tokens that end an answer; they have no log-probabilities in a reply.
    """

    model: str
    logprobs: int | None
    trace: bool
    thinks: bool
    stop_ids: frozenset[int]


class ReplyFormat(ABC):
    """One reply's envelope; the kinds of request differ in their choices alone."""

    prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, options: ReplyOptions, tokenizer: Tokenizer) -> None:
        """Give the reply its id and time."""
        self.options = options
        self.tokenizer = tokenizer
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def whole(self, deltas: Sequence[Delta], totals: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to a request that does not stream, from each answer's one delta."""
        choices = [self._whole_choice(i, delta) for i, delta in enumerate(deltas)]
        return {**self._envelope(self.whole_object), "choices": choices, **totals}

    def chunk(self, index: int, delta: Delta) -> dict[str, Any] | None:
        """Return an event of the stream; None if there is nothing to tell."""
        shown = delta.tokens and (self.options.trace or self.options.logprobs is not None)
        if not (delta.content or delta.reasoning or delta.finish_reason or shown):
            return None
        return self._chunk([self._chunk_choice(index, delta)])

    def totals_chunk(self, totals: dict[str, Any]) -> dict[str, Any]:
        """Return the event with the totals, which has no choices."""
        return {**self._chunk([]), **totals}

    def opening(self, choices: int) -> list[dict[str, Any]]:
        """Return the events that come before any token."""
        del choices
        return []

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._envelope(self.chunk_object), "choices": choices}

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.options.model}

    def _choice(self, index: int, delta: Delta) -> dict[str, Any]:
        value: dict[str, Any] = {"index": index}
        if self.options.logprobs is not None:
            value["logprobs"] = self._logprobs(self._told(delta.tokens))
        if self.options.trace:
            thinks = self.options.thinks
            value["trace"] = [traced(t, self.tokenizer, thinks=thinks) for t in delta.tokens]
        return {**value, "finish_reason": delta.finish_reason}

    def _told(self, tokens: Sequence[ShownToken]) -> list[ShownToken]:
        return [t for t in tokens if t.record.token_id not in self.options.stop_ids]

    @abstractmethod
    def _whole_choice(self, index: int, delta: Delta) -> dict[str, Any]: ...

    @abstractmethod
    def _chunk_choice(self, index: int, delta: Delta) -> dict[str, Any]: ...

    @abstractmethod
    def _logprobs(self, tokens: Sequence[ShownToken]) -> dict[str, Any]: ...


class ChatFormat(ReplyFormat):
    """`/v1/chat/completions`."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def opening(self, choices: int) -> list[dict[str, Any]]:
        """Return one event per choice, which says who speaks."""
        said = {"delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        return [self._chunk([{"index": i, **said}]) for i in range(choices)]

    def _whole_choice(self, index: int, delta: Delta) -> dict[str, Any]:
        message = {"role": "assistant", "content": delta.content}
        if self.options.thinks:
            message["reasoning_content"] = delta.reasoning
        return {**self._choice(index, delta), "message": message}

    def _chunk_choice(self, index: int, delta: Delta) -> dict[str, Any]:
        said = {}
        if delta.content:
            said["content"] = delta.content
        if delta.reasoning:
            said["reasoning_content"] = delta.reasoning
        return {**self._choice(index, delta), "delta": said}

    def _logprobs(self, tokens: Sequence[ShownToken]) -> dict[str, Any]:
        return {
            "content": [
                {
                    **self._alternative(t.record.token_id, t.record.logprob or 0.0),
                    "top_logprobs": [
                        self._alternative(i, nats) for i, nats in t.record.top_logprobs or ()
                    ],
                }
                for t in tokens
            ]
        }

    def _alternative(self, token_id: int, nats: float) -> dict[str, Any]:
        content = token_bytes(self.tokenizer, token_id)
        return {
            "token": content.decode("utf-8", errors="replace"),
            "logprob": max(nats, _LOWEST_LOGPROB),
            "bytes": list(content),
        }


class CompletionFormat(ReplyFormat):
    """`/v1/completions`."""

    prefix = "cmpl"
    whole_object = chunk_object = "text_completion"

    def __init__(self, options: ReplyOptions, tokenizer: Tokenizer) -> None:
        """Give the reply its id and time; no text has been sent."""
        super().__init__(options, tokenizer)
        self._sent: dict[int, int] = {}

    def _whole_choice(self, index: int, delta: Delta) -> dict[str, Any]:
        return self._chunk_choice(index, delta)

    def _chunk_choice(self, index: int, delta: Delta) -> dict[str, Any]:
        choice = self._choice(index, delta)
        if choice.get("logprobs"):
            choice["logprobs"]["text_offset"] = self._offsets(index, delta)
        return {**choice, "text": delta.reasoning + delta.content}

    def _offsets(self, index: int, delta: Delta) -> list[int]:
        offsets = []
        for token in self._told(delta.tokens):
            offsets.append(self._sent.setdefault(index, 0))
            self._sent[index] += len(token.text)
        return offsets

    def _logprobs(self, tokens: Sequence[ShownToken]) -> dict[str, Any]:
        def text(token_id: int) -> str:
            return token_bytes(self.tokenizer, token_id).decode("utf-8", errors="replace")

        return {
            "tokens": [text(t.record.token_id) for t in tokens],
            "token_logprobs": [max(t.record.logprob or 0.0, _LOWEST_LOGPROB) for t in tokens],
            "top_logprobs": [
                {text(i): max(nats, _LOWEST_LOGPROB) for i, nats in t.record.top_logprobs or ()}
                for t in tokens
            ],
        }
