"""What a caller asks for, and when a row is done."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

from crossroads.errors import RequestError
from crossroads.models.base import MOST_TOP, Tokenizer
from crossroads.routing.policy import IMMEDIATE, Policy, check_threshold
from crossroads.sampling import SamplingParams
from crossroads.types import FinishReason, ModelInfo, TokenRecord, Trace

MOST_LOGPROBS = MOST_TOP
"""Alternatives that a request may ask for at each token."""


@dataclass(frozen=True, slots=True)
class Request:
    """One generation. `stop` are strings; `threshold` None takes the loop's own.

    policy: how scores become decisions. max_lag: how many tokens in a row the small model may
    write before the large one is asked in any case; None: as many as it likes. large_budget: how
    many tokens the large model may write; afterwards it is not asked again. max_large_fraction:
    its share of the tokens never passes this, at any token; until then the small model goes on
    alone. revise_below: when
    asked, the large model takes back the first small token that it had not seen and to which it
    gives less than this probability. lossless: it takes tokens back so that the output is
    distributed as its own. logprobs: with each token its writer's log-probability of it, and of
    this many of the likeliest tokens; None: neither. proposals: with each token so many of the
    small model's likeliest ones there; None: none.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int = 512
    sampling: SamplingParams = SamplingParams()  # noqa: RUF009  frozen
    threshold: float | None = None
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    id: str = ""
    policy: Policy = IMMEDIATE
    max_lag: int | None = None
    large_budget: int | None = None
    revise_below: float = 0.0
    lossless: bool = False
    logprobs: int | None = None
    max_large_fraction: float | None = None
    proposals: int | None = None

    @property
    def revises(self) -> bool:
        """Whether the large model may take small tokens back."""
        return self.lossless or self.revise_below > 0


def check_request(
    request: Request, models: Sequence[ModelInfo], *, elsewhere: bool = False
) -> None:
    """Refuse a request that these models cannot serve.

    elsewhere: the tokens are drawn where the model is, so it need not tell its distributions.

    Raises:
        RequestError: names the field, what we got, and what it must be.
    """
    if not request.prompt_ids:
        raise RequestError("the prompt is empty; give at least one token")
    _check_count("max_tokens", request.max_tokens, 1)
    for name in ("max_lag", "large_budget", "logprobs", "proposals"):
        if (value := getattr(request, name)) is not None:
            _check_count(name, value, 0)
    _check_stops(request)
    _check_revision(request)
    if request.threshold is not None:
        check_threshold(request.threshold)
    for info in models:
        if len(request.prompt_ids) >= info.context_length:
            raise RequestError(
                f"the prompt has {len(request.prompt_ids)} tokens and {info.name}'s context holds "
                f"{info.context_length}, with no room to answer; shorten it or load with a larger "
                "context"
            )
        if not elsewhere:
            _check_told(request, info)
        outside = [t for t in request.prompt_ids if not 0 <= t < info.vocab_size]
        if outside:
            raise RequestError(f"token id {outside[0]} is outside {info.name}'s vocabulary")


def _check_told(request: Request, info: ModelInfo) -> None:
    """Refuse what needs more of a distribution than a model's server tells."""
    if info.most_top is None:
        return
    if request.sampling.needs_logits:
        raise RequestError(
            f"sampling and penalties need the whole distribution, which the server of {info.name} "
            "does not tell; send temperature 0 and no penalties"
        )
    if request.revises and not info.looks_back:
        name = "lossless" if request.lossless else "revise_below"
        raise RequestError(
            f"{name} needs the large model's view of tokens that it did not write, and the server "
            f"of {info.name} does not tell it; leave it out, or serve the model with vLLM"
        )
    for name, wanted in (
        ("logprobs", 0 if request.logprobs is None else max(1, request.logprobs)),
        ("revise_below", math.floor(1 / request.revise_below) if request.revise_below else 0),
    ):
        if wanted > info.most_top:
            raise RequestError(
                f"{name} needs the {wanted} likeliest tokens, and the server of {info.name} tells "
                f"{info.most_top}"
            )


def _check_count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise RequestError(f"{name} must be a whole number >= {least}, got {value!r}")
    if name in ("logprobs", "proposals") and value > MOST_LOGPROBS:
        raise RequestError(f"{name} must be at most {MOST_LOGPROBS}, got {value}")


def _check_stops(request: Request) -> None:
    for name, kind, what in (("stop", str, "strings"), ("stop_ids", int, "token ids")):
        values = getattr(request, name)
        if not isinstance(values, tuple | list) or any(type(v) is not kind for v in values):
            raise RequestError(f"{name} must be a list of {what}, got {values!r}")
    if any(not text for text in request.stop):
        raise RequestError("a stop string is empty; leave it out")


def _check_revision(request: Request) -> None:
    _check_share("revise_below", request.revise_below, "a probability")
    if request.max_large_fraction is not None:
        _check_share("max_large_fraction", request.max_large_fraction, "a share")
    if not request.lossless:
        return
    if request.revise_below > 0:
        raise RequestError("lossless has a rule of its own; leave revise_below out")
    for name in ("large_budget", "max_large_fraction"):
        if getattr(request, name) is not None:
            raise RequestError(
                f"lossless cannot keep a {name}: every token needs the large model's look; "
                "leave one of the two out"
            )


def _check_share(name: str, value: object, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise RequestError(f"{name} must be {what} in [0, 1], got {value!r}")


class RowText:
    """The text of a row as it grows, and where a stop string ends it.

    Bytes, because a token may hold part of a character.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        """Start empty."""
        self._tokenizer = tokenizer
        self._stop = tuple(text.encode() for text in stop)
        self._longest = max((len(text) for text in self._stop), default=0)
        self._content = bytearray()
        self._ends: list[int] = []
        self._cut: int | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string was completed."""
        return self._cut is not None

    @property
    def text(self) -> str:
        """The text, up to a stop string; bytes that are no character become U+FFFD."""
        return self._content[: self._cut].decode("utf-8", errors="replace")

    def add(self, token_id: int) -> None:
        """Append a token's bytes; look for the first stop string that they complete."""
        before = len(self._content)
        self._content += self._tokenizer.text_bytes(token_id)
        self._ends.append(len(self._content))
        start = max(0, before - self._longest)
        found = [at for s in self._stop if (at := self._content.find(s, start)) >= 0]
        self._cut = min(found, default=None)

    def fork(self) -> RowText:
        """Return a text that goes its own way from here."""
        other = copy(self)
        other._content, other._ends = self._content[:], list(self._ends)
        return other

    def crop(self, tokens: int) -> None:
        """Take back all but the first `tokens` tokens."""
        del self._ends[tokens:]
        del self._content[self._ends[-1] if self._ends else 0 :]
        self._cut = None


class RowState:
    """One row's tokens, text and end. Shared by every loop, so they cannot end differently."""

    def __init__(
        self,
        request: Request,
        models: Sequence[ModelInfo],
        tokenizer: Tokenizer,
        *,
        elsewhere: bool = False,
    ) -> None:
        """Check the request and start the row's clock. elsewhere: as in `check_request`."""
        check_request(request, models, elsewhere=elsewhere)
        self.request = request
        self.tokens: list[int] = list(request.prompt_ids)
        self.records: list[TokenRecord] = []
        self.finish_reason: FinishReason | None = None
        self._eos = frozenset(token for info in models for token in info.eos_ids)
        self._room = min(info.context_length for info in models)
        self._text = RowText(tokenizer, request.stop)
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

    def crop(self, count: int) -> None:
        """Take back all but the first `count` generated tokens; the row goes on from there."""
        del self.records[count:]
        del self.tokens[len(self.request.prompt_ids) + count :]
        self._text.crop(count)
        self.finish_reason = None

    def fork(self) -> RowState:
        """Return the state of a row that goes its own way from here."""
        other = copy(self)
        other.tokens, other.records = list(self.tokens), list(self.records)
        other._text = self._text.fork()
        return other

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
