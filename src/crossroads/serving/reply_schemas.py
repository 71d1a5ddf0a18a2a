"""What the server answers, as the OpenAPI document tells it.

A field with a default may be missing.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from crossroads.types import Cause, Role


class ErrorDetail(BaseModel):
    """What was wrong, in one sentence; `param` is the path of the field, if it was one."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """Every reply with a status from 400 on; in a stream that has begun, an event."""

    error: ErrorDetail


class TokenUsage(BaseModel):
    """Tokens over all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class RoutingUsage(BaseModel):
    """Who wrote how much, over all choices; only where the request has `routing`."""

    large_fraction: float
    large_tokens: int
    small_tokens: int
    large_calls: int
    lag_tokens: int
    discarded_tokens: int
    threshold: float | None
    active_parameters: float = Field(description="Parameters used for a token, on average.")


class ProposedToken(BaseModel):
    """What the small model would have written."""

    id: int
    text: str


class Proposal(ProposedToken):
    """One of the small model's likeliest tokens."""

    probability: float


class TracedToken(BaseModel):
    """One token, who wrote it, and why; null where the small model was not asked."""

    position: int
    token_id: int
    text: str = Field(description="What the token added to the text.")
    writer: Role
    channel: Literal["reasoning", "content"] | None = Field(
        None, description="Where the text shows, of a model that thinks; null for a tag."
    )
    score: float | None
    entropy: float | None = Field(description="Nats.")
    proposed: ProposedToken | None
    proposals: list[Proposal] | None
    lag: int
    cause: Cause | None
    discarded: int
    seconds: float


class AlternativeToken(BaseModel):
    """A token that could have stood here; `logprob` in nats, `bytes` its UTF-8."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChosenToken(AlternativeToken):
    """A token of the answer, with the likeliest ones in its place."""

    top_logprobs: list[AlternativeToken]


class ChatLogprobs(BaseModel):
    """One entry per token."""

    content: list[ChosenToken] | None


class CompletionLogprobs(BaseModel):
    """Lists of one length, one entry per token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class AnswerMessage(BaseModel):
    """The answer; `reasoning_content` is the thought of a model that thinks."""

    role: Literal["assistant"]
    content: str
    reasoning_content: str | None = None


class Delta(BaseModel):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(BaseModel):
    index: int
    finish_reason: Literal["stop", "length"] | None
    trace: list[TracedToken] | None = None


class ChatChoice(_Choice):
    """One answer of a chat."""

    message: AnswerMessage
    logprobs: ChatLogprobs | None = None


class ChatChunkChoice(_Choice):
    """What a chunk adds to one answer."""

    delta: Delta
    logprobs: ChatLogprobs | None = None


class CompletionChoice(_Choice):
    """One continuation, or, in a stream, what an event adds to it."""

    text: str
    logprobs: CompletionLogprobs | None = None


class _Reply(BaseModel):
    id: str
    created: int = Field(description="Seconds since 1970.")
    model: str
    usage: TokenUsage | None = None
    routing: RoutingUsage | None = None


class ChatReply(_Reply):
    """A whole chat reply."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class ChatChunk(_Reply):
    """An event of a chat's stream; the one with the totals has no choices."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]


class CompletionReply(_Reply):
    """A whole reply to a completion, or an event of its stream."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class ModelCard(BaseModel):
    """A model that requests can name."""

    id: str
    object: Literal["model"]
    created: int = Field(description="Seconds since 1970.")
    owned_by: str


class ModelList(BaseModel):
    """`mixed`, `small` and `large`."""

    object: Literal["list"]
    data: list[ModelCard]


class NamedModel(BaseModel):
    """One model of the pair."""

    name: str
    parameters: int


class Calibration(BaseModel):
    """What the router promises at its own threshold."""

    positive_rate: float
    recall: float
    target: float


class Drift(BaseModel):
    """Live scores against those of calibration."""

    tokens: int
    verdict: str
    sentence: str
    live_positive_rate: float | None
    promised_positive_rate: float | None
    histogram: list[float] = Field(description="Shares, each a tenth if nothing has drifted.")
    psi: float | None = Field(description="Population stability index.")


class Live(BaseModel):
    """What the server does now."""

    tokens_per_second: float
    running: int
    waiting: int
    large_fraction: float | None
    drift: Drift | None


class Defaults(BaseModel):
    """What a request gets that does not say."""

    temperature: float
    max_tokens: int | None


class RoutingState(BaseModel):
    """The pair, its router, and how both do."""

    pair: str
    small: NamedModel
    large: NamedModel
    router: str
    threshold: float | None
    calibration: Calibration | None
    score_quantiles: list[float] | None = Field(
        description="Of the calibration split, evenly spaced, from minimum to maximum."
    )
    thinks: bool
    defaults: Defaults
    live: Live


class Health(BaseModel):
    """Whether the server takes requests."""

    status: str
