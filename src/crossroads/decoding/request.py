"""What a caller asks for, and when a row is done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from crossroads.errors import RequestError
from crossroads.models.base import Tokenizer
from crossroads.sampling import SamplingParams
from crossroads.types import FinishReason, ModelInfo, TokenRecord, Trace


@dataclass(frozen=True, slots=True)
class Request:
    """One generation. `threshold` None takes the loop's own; `stop` are strings."""

    prompt_ids: tuple[int, ...]
    max_tokens: int = 512
    sampling: SamplingParams = SamplingParams()  # noqa: RUF009  frozen
    threshold: float | None = None
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    id: str = ""


def check_request(request: Request, models: Sequence[ModelInfo]) -> None:
    """Refuse a request that these models cannot serve.

    Raises:
        RequestError: an empty prompt, one that fills the context, a bad max_tokens or stop.
    """
    if not request.prompt_ids:
        raise RequestError("the prompt is empty; give at least one token")
    if request.max_tokens < 1:
        raise RequestError(f"max_tokens must be >= 1, got {request.max_tokens}")
    if any(not text for text in request.stop):
        raise RequestError("a stop string is empty; leave it out")
    for info in models:
        if len(request.prompt_ids) >= info.context_length:
            raise RequestError(
                f"the prompt has {len(request.prompt_ids)} tokens and {info.name}'s context holds "
                f"{info.context_length}, with no room to answer; shorten it or load with a larger "
                "context"
            )
        outside = [t for t in request.prompt_ids if not 0 <= t < info.vocab_size]
        if outside:
            raise RequestError(f"token id {outside[0]} is outside {info.name}'s vocabulary")


@dataclass(slots=True)
class RowText:
    """The text of a row as it grows, and where a stop string ends it.

    Bytes, because a token may hold part of a character. `text` is final only up to the last whole
    character and, with stop strings, up to what could still become one.
    """

    tokenizer: Tokenizer
    stop: tuple[bytes, ...]
    content: bytearray = field(default_factory=bytearray)
    stopped: bool = False

    def add(self, token_id: int) -> None:
        """Append a token's bytes; cut at the first stop string that they complete."""
        before = len(self.content)
        self.content += self.tokenizer.text_bytes(token_id)
        start = max(0, before - max((len(s) for s in self.stop), default=0))
        found = [at for s in self.stop if (at := self.content.find(s, start)) >= 0]
        if found:
            del self.content[min(found) :]
            self.stopped = True

    @property
    def text(self) -> str:
        """The text so far; bytes that are no character yet become U+FFFD."""
        return self.content.decode("utf-8", errors="replace")


class RowState:
    """One row's tokens, text and end. Shared by every loop, so they cannot end differently."""

    def __init__(self, request: Request, models: Sequence[ModelInfo], tokenizer: Tokenizer) -> None:
        """Check the request and start the row's clock."""
        check_request(request, models)
        self.request = request
        self.tokens: list[int] = list(request.prompt_ids)
        self.records: list[TokenRecord] = []
        self.finish_reason: FinishReason | None = None
        self._eos = frozenset(token for info in models for token in info.eos_ids)
        self._room = min(info.context_length for info in models)
        self._text = RowText(tokenizer, tuple(text.encode() for text in request.stop))
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time since the row began."""
        return time.perf_counter() - self._started

    def append(self, record: TokenRecord) -> None:
        """Take the next token and decide whether the row ends with it."""
        self.records.append(record)
        self.tokens.append(record.token_id)
        if record.token_id in self._eos:
            self.finish_reason = FinishReason.EOS
            return
        if record.token_id in self.request.stop_ids:
            self.finish_reason = FinishReason.STOP
            return
        self._text.add(record.token_id)
        if self._text.stopped:
            self.finish_reason = FinishReason.STOP
        elif len(self.records) >= self.request.max_tokens or len(self.tokens) >= self._room:
            self.finish_reason = FinishReason.LENGTH

    def trace(self, threshold: float | None = None) -> Trace:
        """Return the row as a trace; an unfinished row counts as cancelled."""
        return Trace(
            prompt_ids=self.request.prompt_ids,
            records=tuple(self.records),
            finish_reason=self.finish_reason or FinishReason.CANCELLED,
            text=self._text.text,
            threshold=threshold,
            seed=self.request.sampling.seed,
            id=self.request.id,
        )
