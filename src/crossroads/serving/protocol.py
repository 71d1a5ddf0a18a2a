"""The requests of OpenAI's API that the server takes, and what each field may be.

Three laws: null means "left out", as OpenAI's own clients send it; a field that is not served is
refused by name; whatever the bytes are, the outcome is a request or an `ApiError` 400 that names
the first wrong field. Which models there are, and how long a prompt may be, only the app knows.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationError, model_validator

from crossroads.decoding.request import MOST_LOGPROBS
from crossroads.sampling import SamplingParams
from crossroads.serving.api_error import invalid_request
from crossroads.serving.complaints import complaint, refusal
from crossroads.serving.json_body import read_object
from crossroads.serving.request_parts import (
    Body,
    ChatMessage,
    RoutingOptions,
    StreamOptions,
    string_or_list,
)
from crossroads.types import Message, Role

_MOST_COUNT = 2**31 - 1  # what the engines' own integers hold
_MOST_METADATA = 16  # OpenAI's own bound
_SEEDS = 2**64


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one request may ask for.

    most_characters: of all messages or prompts together; a token id counts as one character.
    longest_stop: characters of one stop string. most_choices and most_prompts multiply.
    """

    most_messages: int = 512
    most_characters: int = 1_000_000
    most_choices: int = 8
    most_stops: int = 4
    longest_stop: int = 256
    most_prompts: int = 8


def _few(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > _MOST_METADATA:
        raise complaint(f"must have at most {_MOST_METADATA} entries, got {len(value)}")
    return value


_Stop = Annotated[
    Annotated[str, Tag("string")] | Annotated[list[str], Field(fail_fast=True), Tag("list")],
    Discriminator(
        string_or_list,
        custom_error_type="stop",
        custom_error_message="must be a string or a list of strings",
    ),
]


class GenerationRequest(Body):
    """What both kinds of request share: which model, how tokens are drawn, when to stop."""

    model: str
    max_tokens: int | None = Field(None, ge=1, le=_MOST_COUNT)
    max_completion_tokens: int | None = Field(
        None, ge=1, le=_MOST_COUNT, description="The same as max_tokens."
    )
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1, le=_MOST_COUNT, description="0 or -1: off.")
    min_p: float = Field(0.0, ge=0, le=1)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    seed: int = Field(
        # 53 bits: a number that JavaScript, too, can send back.
        default_factory=lambda: secrets.randbits(53),
        ge=-(2**63),
        le=2**63 - 1,
        description="Choice i is drawn with seed + i; random if left out.",
    )
    stop: _Stop | None = None
    n: int = Field(1, ge=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: Annotated[dict[str, str], BeforeValidator(_few)] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    routing: RoutingOptions | None = None

    @model_validator(mode="after")
    def _consistent(self) -> GenerationRequest:
        """Refuse fields that contradict each other."""
        same = self.max_completion_tokens in (None, self.max_tokens)
        if self.max_tokens is not None and not same:
            raise complaint("must equal max_tokens; send one of the two", "max_completion_tokens")
        if self.stream_options is not None and not self.stream:
            raise complaint("needs stream to be true; leave it out", "stream_options")
        if self.routing is not None and self.model in set(Role):
            for name in RoutingOptions.model_fields:
                if name != "trace" and name in self.routing.model_fields_set:
                    what = f"is for mixed, not for {self.model}; leave it out"
                    raise complaint(what, "routing", name)
        for index, text in enumerate(self.stops):
            if not text:
                where = ("stop",) if isinstance(self.stop, str) else ("stop", index)
                raise complaint("must not be empty; leave it out", *where)
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end the answer."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def most_tokens(self) -> int | None:
        """How many tokens a choice may have; None: the server's own bound."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def usage_so_far(self) -> bool:
        """Whether every chunk of a stream tells the usage so far."""
        return self.stream_options is not None and self.stream_options.continuous_usage_stats

    def sampling(self, default_temperature: float, choice: int = 0) -> SamplingParams:
        """Return how the tokens of a choice are drawn, the first being choice 0.

        A negative seed is read as the unsigned number with the same 64 bits, so that different
        seeds stay different. One request gives the same seed at every call.
        """
        temperature = default_temperature if self.temperature is None else self.temperature
        return SamplingParams(
            temperature=temperature,
            top_p=self.top_p,
            top_k=max(self.top_k, 0),
            min_p=self.min_p,
            seed=self.seed % _SEEDS + choice,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            repetition_penalty=self.repetition_penalty,
        )


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    not_served: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "tools": ([],),
        "tool_choice": ("none",),
        "functions": ([],),
        "function_call": ("none",),
        "response_format": ({"type": "text"},),
        "logit_bias": ({},),
        "audio": (),
        "modalities": (["text"],),
        "prediction": (),
        "reasoning_effort": (),
        "verbosity": (),
        "web_search_options": (),
        "store": (False,),
        "parallel_tool_calls": (),
        "service_tier": ("auto", "default"),
        "moderation": (),
        "prompt_cache_options": (),
        "prompt_cache_retention": (),
        "chat_template_kwargs": ({},),
    }

    given_messages: list[ChatMessage] = Field(alias="messages", min_length=1, fail_fast=True)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)

    @model_validator(mode="after")
    def _consistent_logprobs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise complaint("needs logprobs to be true; leave it out", "top_logprobs")
        return self

    @property
    def messages(self) -> list[Message]:
        """The chat as models know it: developers speak as the system, thoughts are left out."""
        return [
            Message("system" if m.role == "developer" else m.role, m.text)
            for m in self.given_messages
        ]

    @property
    def logprobs_count(self) -> int | None:
        """How many alternatives to tell with each token; None: not even its own logprob."""
        return (self.top_logprobs or 0) if self.logprobs else None


def _prompt_kind(value: Any) -> str | None:
    if not isinstance(value, list):
        return "string" if isinstance(value, str) else None
    first = value[0] if value else ""
    return {int: "ids", list: "lists"}.get(type(first), "strings")


_Id = Annotated[int, Field(ge=0, le=_MOST_COUNT)]
_Ids = Annotated[list[_Id], Field(min_length=1, fail_fast=True)]
_Prompt = Annotated[
    Annotated[str, Tag("string")]
    | Annotated[_Ids, Tag("ids")]
    | Annotated[list[_Ids], Field(min_length=1, fail_fast=True), Tag("lists")]
    | Annotated[list[str], Field(min_length=1, fail_fast=True), Tag("strings")],
    Discriminator(
        _prompt_kind,
        custom_error_type="prompt",
        custom_error_message="must be a string, token ids, or a list of either",
    ),
]


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`."""

    not_served: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "echo": (False,),
        "suffix": (),
        "logit_bias": ({},),
    }

    prompt: _Prompt
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    best_of: int | None = Field(None, ge=1, description="Served where it equals n.")

    @model_validator(mode="after")
    def _consistent_prompt(self) -> CompletionRequest:
        if self.best_of not in (None, self.n):
            raise complaint(f"is served only where it equals n, which is {self.n}", "best_of")
        for index, prompt in enumerate(self.prompts):
            if not prompt:
                where = ("prompt",) if isinstance(self.prompt, str) else ("prompt", index)
                raise complaint("must not be empty", *where)
        return self

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        """The prompts, each a text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [tuple(item for item in self.prompt if isinstance(item, int))]
        return [item if isinstance(item, str) else tuple(item) for item in self.prompt]

    @property
    def logprobs_count(self) -> int | None:
        """How many alternatives to tell with each token; None: not even its own logprob."""
        return self.logprobs


_Request = TypeVar("_Request", bound=GenerationRequest)


def parse_chat(body: bytes, limits: Limits = Limits()) -> ChatRequest:
    """Return the request that the bytes hold.

    Raises:
        ApiError: 400, one sentence; `param` is the path of the first wrong field.
    """
    request = _parse(body, ChatRequest, limits)
    _check_most("messages", len(request.given_messages), limits.most_messages, "messages")
    _check_size("messages", [message.content for message in request.messages], limits)
    return request


def parse_completion(body: bytes, limits: Limits = Limits()) -> CompletionRequest:
    """Return the request that the bytes hold.

    Raises:
        ApiError: 400, one sentence; `param` is the path of the first wrong field.
    """
    request = _parse(body, CompletionRequest, limits)
    _check_most("prompt", len(request.prompts), limits.most_prompts, "prompts")
    _check_size("prompt", request.prompts, limits)
    return request


def _parse(body: bytes, kind: type[_Request], limits: Limits) -> _Request:
    value = read_object(body)
    try:
        request = kind.model_validate(value)
    except ValidationError as error:
        raise refusal(error, value) from error
    _check_most("n", request.n, limits.most_choices, "choices")
    _check_most("stop", len(request.stops), limits.most_stops, "strings")
    for index, text in enumerate(request.stops):
        field = "stop" if isinstance(request.stop, str) else f"stop[{index}]"
        _check_most(field, len(text), limits.longest_stop, "characters")
    return request


def _check_size(field: str, parts: list[str] | list[str | tuple[int, ...]], limits: Limits) -> None:
    size = sum(len(part) for part in parts)
    _check_most(field, size, limits.most_characters, "characters or ids together")


def _check_most(field: str, count: int, most: int, what: str) -> None:
    if count > most:
        raise invalid_request(f"{field} has {count} {what}, the most is {most}", field)
