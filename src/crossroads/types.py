"""Records that cross a stage door. Plain data: no torch, no I/O, no behaviour beyond counting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, Protocol


class Role(StrEnum):
    """Which model of a pair."""

    SMALL = "small"
    LARGE = "large"


class Label(IntEnum):
    """What the small model's proposal means on the large model's path.

    NEUTRAL and DIVERGENT together are the mismatches; DIVERGENT is the positive class.
    """

    IDENTICAL = 0
    NEUTRAL = 1
    DIVERGENT = 2


class Split(StrEnum):
    """Where a problem's tokens go. A problem is never in two splits."""

    TRAIN = "train"
    CALIBRATION = "calibration"
    TEST = "test"


class FinishReason(StrEnum):
    """Why a generation ended."""

    EOS = "eos"
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


class Cause(StrEnum):
    """Why the large model was asked at a token.

    ROUTER: the score reached the threshold. MAX_LAG: it had not been asked for too long.
    REVISION: it found the small model's token implausible. FINAL: the row would have ended with
    small tokens that it had not seen. UNAVAILABLE: it was to be asked, but nobody answered, and
    the small model went on; such a token has no lag.
    """

    ROUTER = "router"
    MAX_LAG = "max_lag"
    REVISION = "revision"
    FINAL = "final"
    UNAVAILABLE = "unavailable"


class OnLoss(StrEnum):
    """What a row does when no large server answers: end with an error, or go on small alone."""

    FAIL = "fail"
    SMALL = "small"


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem to answer; `answer` is the gold answer where there is one."""

    id: str
    messages: tuple[Message, ...]
    answer: str | None = None
    domain: str = "default"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a loaded model is. `fingerprint` names the weights, `engine` what computes with them.

    `active_parameters` differs from `parameters` for mixtures of experts only. `dtype` is the
    number type or quantisation of the weights. `max_rows` bounds the caches alive at one time.
    `most_top`: entries of a distribution that it can tell, for a model behind a server, which
    tells no hidden states and no whole distribution either; None: all, 0: the best token, without
    its log-probability. `looks_back`: whether it tells of tokens before the last of those it reads.
    """

    name: str
    engine: str
    fingerprint: str
    parameters: int
    active_parameters: int
    vocab_size: int
    hidden_size: int
    context_length: int
    max_rows: int
    eos_ids: tuple[int, ...]
    dtype: str
    tokenizer_fingerprint: str
    most_top: int | None = None
    looks_back: bool = True


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """One generated token and why it is there.

    `proposed_id`, `score` and `entropy` (nats, of the small model's distribution) are None when
    no small model was asked. `lag` is the number of tokens that the large model read in order to
    write this one, or to let it stand; 0 if it was not asked here. `cause` says why it was asked.
    `discarded`: small proposals after this position that a revision threw away. `logprob` (nats)
    and `top_logprobs` (id, nats; likeliest first) are of the writer's distribution, before
    temperature and filters; None unless the request asked for them. `proposals` are the same of
    the small model, whoever wrote the token. `seconds` counts from the start of the row.
    """

    position: int
    token_id: int
    writer: Role
    proposed_id: int | None = None
    score: float | None = None
    entropy: float | None = None
    lag: int = 0
    seconds: float = 0.0
    cause: Cause | None = None
    discarded: int = 0
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] | None = None
    proposals: tuple[tuple[int, float], ...] | None = None

    @property
    def replaced(self) -> bool:
        """Whether the large model wrote another token than the small one had proposed."""
        return self.writer is Role.LARGE and self.proposed_id not in (None, self.token_id)


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of one or more traces; every number that a reply shows comes from here.

    large_calls: how often the large model was asked; lag_tokens: what it read then.
    discarded_tokens: small proposals that revisions threw away; they are in no trace.
    """

    prompt_tokens: int = 0
    small_tokens: int = 0
    large_tokens: int = 0
    lag_tokens: int = 0
    large_calls: int = 0
    discarded_tokens: int = 0

    @property
    def generated_tokens(self) -> int:
        """Tokens written by either model."""
        return self.small_tokens + self.large_tokens

    @property
    def large_fraction(self) -> float:
        """Share of generated tokens that the large model wrote; 0 when nothing was generated."""
        total = self.generated_tokens
        return self.large_tokens / total if total else 0.0

    def __add__(self, other: Usage) -> Usage:
        """Return the counts of both."""
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.small_tokens + other.small_tokens,
            self.large_tokens + other.large_tokens,
            self.lag_tokens + other.lag_tokens,
            self.large_calls + other.large_calls,
            self.discarded_tokens + other.discarded_tokens,
        )


@dataclass(frozen=True, slots=True)
class Trace:
    """One whole generation: what was asked, who wrote each token, and how it ended."""

    prompt_ids: tuple[int, ...]
    records: tuple[TokenRecord, ...]
    finish_reason: FinishReason
    text: str
    threshold: float | None = None
    seed: int = 0
    id: str = ""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Generated ids in order, an ending eos included."""
        return tuple(record.token_id for record in self.records)

    @property
    def usage(self) -> Usage:
        """Counts of this trace."""
        large = sum(record.writer is Role.LARGE for record in self.records)
        return Usage(
            prompt_tokens=len(self.prompt_ids),
            small_tokens=len(self.records) - large,
            large_tokens=large,
            lag_tokens=sum(record.lag for record in self.records),
            large_calls=sum(record.lag > 0 for record in self.records),
            discarded_tokens=sum(record.discarded for record in self.records),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the trace as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Trace:
        """Return the trace that `to_json` wrote."""
        records = tuple(_record(record) for record in value["records"])
        return cls(
            prompt_ids=tuple(value["prompt_ids"]),
            records=records,
            finish_reason=FinishReason(value["finish_reason"]),
            text=value["text"],
            threshold=value["threshold"],
            seed=value["seed"],
            id=value["id"],
        )


def _record(value: Mapping[str, Any]) -> TokenRecord:
    cause = value.get("cause")
    return TokenRecord(
        **{
            **value,
            "writer": Role(value["writer"]),
            "cause": None if cause is None else Cause(cause),
            "top_logprobs": _pairs(value.get("top_logprobs")),
            "proposals": _pairs(value.get("proposals")),
        }
    )


def _pairs(value: Any) -> tuple[tuple[int, float], ...] | None:
    return None if value is None else tuple((token_id, nats) for token_id, nats in value)


class Progress(Protocol):
    """How long work tells where it is; the CLI draws it, `SilentProgress` drops it."""

    def start(self, name: str, total: float, unit: str) -> None:
        """Begin a stage of `total` units."""

    def advance(self, amount: float = 1.0) -> None:
        """Report `amount` more units of the current stage."""

    def describe(self, text: str) -> None:
        """Show a few words on how the current stage goes, in place of earlier ones."""

    def finish(self) -> None:
        """End the current stage."""


@dataclass(slots=True)
class SilentProgress:
    """A progress that shows nothing; it remembers what it was told, for tests."""

    stages: dict[str, float] = field(default_factory=dict)
    current: str = ""

    def start(self, name: str, total: float, unit: str) -> None:
        """Begin a stage."""
        self.current = name
        self.stages[name] = 0.0

    def advance(self, amount: float = 1.0) -> None:
        """Count `amount` units."""
        self.stages[self.current] += amount

    def describe(self, text: str) -> None:
        """Forget the words."""

    def finish(self) -> None:
        """End the stage."""
