"""What the server serves: a pair and its engine, and how requests become the engine's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from typing import Any

from crossroads.decoding.cost import active_parameters
from crossroads.decoding.engine import GenerationEngine
from crossroads.decoding.mixed import MixedModels
from crossroads.decoding.request import Request
from crossroads.errors import ConfigError, RequestError
from crossroads.routing.checkpoint import RouterCard
from crossroads.serving.answer import Answer
from crossroads.serving.api_error import invalid_request, model_not_found
from crossroads.serving.drift import DriftMonitor
from crossroads.serving.metrics import BuildInfo, Caches, Gauges, ServerMetrics
from crossroads.serving.protocol import ChatRequest, CompletionRequest, GenerationRequest, Limits
from crossroads.serving.reasoning import ReasoningSplitter, opened_by_prompt, thinks
from crossroads.serving.replies import ReplyOptions
from crossroads.types import ModelInfo, Role, Trace, Usage

MIXED = "mixed"
MODELS: dict[str, Role | None] = {MIXED: None, "small": Role.SMALL, "large": Role.LARGE}

MOST_TOKENS = 2**31 - 1

PROPOSALS = 5
"""Of the small model's likeliest tokens, how many a trace tells."""


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """How the server behaves.

    seconds: how long an answer may take, its wait for a row included. patience: how long a client
    may leave a stream unread. most_answers: choices times prompts. temperature: of requests that
    bring none. log_text: whether prompts and answers go into the log.
    """

    seconds: float = 600.0
    patience: float = 60.0
    limits: Limits = Limits()  # noqa: RUF009  frozen
    most_answers: int = 16
    temperature: float = 0.0
    log_text: bool = False


@dataclass(frozen=True, slots=True)
class Served:
    """Names of what is served, and the router's card if it was trained."""

    pair: str
    router: str
    card: RouterCard | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """A parsed request, ready for the engine: one engine request per answer.

    field: which field of the request the prompts came from.
    """

    model: str
    requests: tuple[Request, ...]
    options: ReplyOptions
    routing: bool
    include_usage: bool
    usage_so_far: bool
    stream: bool
    choices_per_prompt: int
    field: str

    @property
    def alone(self) -> Role | None:
        """Which model answers by itself; None: both."""
        return MODELS[self.model]

    def usage(self, completion_tokens: int) -> dict[str, int]:
        """Return `usage`: each prompt counts once, however many choices it had."""
        prompt_tokens = sum(len(r.prompt_ids) for r in self.requests[:: self.choices_per_prompt])
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }


@dataclass(frozen=True, slots=True)
class Service:
    """One pair, its engine, and the numbers that it keeps."""

    engine: GenerationEngine
    served: Served
    metrics: ServerMetrics
    options: ServiceOptions = ServiceOptions()
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def models(self) -> MixedModels:
        """What the engine generates with."""
        return self.engine.models

    @property
    def thinks(self) -> bool:
        """Whether the models write their thoughts before their answer."""
        return thinks(self.models.tokenizer)

    def context_length(self, model: str) -> int:
        """Return how many tokens a prompt and its answer may have together."""
        return min(info.context_length for info in self._infos(model))

    def root(self, model: str) -> str:
        """Return the names of the weights behind a model's name."""
        return "+".join(info.name for info in self._infos(model))

    def _infos(self, model: str) -> list[ModelInfo]:
        pair = {Role.SMALL: self.models.small, Role.LARGE: self.models.large}
        return [m.info for role, m in pair.items() if MODELS[model] in (None, role)]

    def chat_work(self, request: ChatRequest) -> Work:
        """Return what a chat asks of the engine.

        Raises:
            ApiError: an unknown model, or messages that the models cannot be given.
        """
        check_model(request.model)
        try:
            prompt_ids = tuple(self.models.tokenizer.render(request.messages))
        except RequestError as error:
            raise invalid_request(str(error), "messages") from error
        except ConfigError as error:  # its own words name files
            raise invalid_request(
                "these models have no chat template; use /v1/completions", "messages"
            ) from error
        return self._work(request, [prompt_ids], request.logprobs_count, field="messages")

    def completion_work(self, request: CompletionRequest) -> Work:
        """Return what a completion asks of the engine.

        Raises:
            ApiError: an unknown model, or a prompt that does not fit.
        """
        check_model(request.model)
        tokenizer = self.models.tokenizer
        prompts = [
            tuple(tokenizer.encode(prompt)) if isinstance(prompt, str) else prompt
            for prompt in request.prompts
        ]
        return self._work(request, prompts, request.logprobs_count, field="prompt")

    def _work(
        self,
        request: GenerationRequest,
        prompts: Sequence[tuple[int, ...]],
        logprobs: int | None,
        *,
        field: str,
    ) -> Work:
        answers = len(prompts) * request.n
        if answers > self.options.most_answers:
            raise invalid_request(
                f"{len(prompts)} prompts with {request.n} choices each are {answers} answers, the "
                f"most is {self.options.most_answers}",
                "n",
            )
        trace = request.routing is not None and request.routing.trace
        plain = self._plain(request, logprobs, trace=trace)
        return Work(
            model=request.model,
            requests=tuple(
                replace(
                    plain,
                    prompt_ids=prompt_ids,
                    max_tokens=min(
                        request.most_tokens or MOST_TOKENS,
                        self._room(request.model, prompt_ids, field),
                    ),
                    sampling=request.sampling(self.options.temperature, choice),
                )
                for prompt_ids in prompts
                for choice in range(request.n)
            ),
            options=ReplyOptions(
                model=request.model,
                logprobs=logprobs,
                trace=trace,
                thinks=field == "messages" and self.thinks,
                stop_ids=frozenset(
                    i for m in (self.models.small, self.models.large) for i in m.info.eos_ids
                ),
            ),
            routing=request.routing is not None,
            include_usage=request.include_usage,
            usage_so_far=request.usage_so_far,
            stream=request.stream,
            choices_per_prompt=request.n,
            field=field,
        )

    def _plain(self, request: GenerationRequest, logprobs: int | None, *, trace: bool) -> Request:
        """Return the engine's request, but for what differs between answers."""
        plain = Request(
            (), stop=request.stops, logprobs=logprobs, proposals=PROPOSALS if trace else None
        )
        routing = request.routing
        if routing is None:
            return plain
        return replace(
            plain,
            threshold=routing.threshold,
            max_large_fraction=routing.max_large_fraction,
            revise_below=routing.revise_below,
        )

    def _room(self, model: str, prompt_ids: Sequence[int], field: str) -> int:
        """Return how many tokens fit after a prompt.

        Raises:
            ApiError: none do.
        """
        context = self.context_length(model)
        if len(prompt_ids) >= context:
            raise invalid_request(
                f"the prompt has {len(prompt_ids)} tokens and the context holds {context}, with no "
                "room to answer; shorten it",
                field,
                "context_length_exceeded",
            )
        return context - len(prompt_ids)

    def answer(self, work: Work, index: int) -> Answer:
        """Return an answer of `work`, before its first token."""
        request, tokenizer = work.requests[index], self.models.tokenizer
        splitter = None
        if work.options.thinks:
            inside = opened_by_prompt(tokenizer, request.prompt_ids)
            splitter = ReasoningSplitter(inside=inside)
        return Answer(tokenizer, request.stop, splitter)

    def totals(self, work: Work, traces: Sequence[Trace]) -> dict[str, Any]:
        """Return `usage`, and `routing` if it was asked for: counts of the traces."""
        usage = sum((trace.usage for trace in traces), Usage())
        values: dict[str, Any] = {"usage": work.usage(usage.generated_tokens)}
        if work.routing:
            values["routing"] = self._routing(work, usage, traces)
        return values

    def _routing(self, work: Work, usage: Usage, traces: Sequence[Trace]) -> dict[str, Any]:
        models = self.models
        return {
            "large_fraction": usage.large_fraction,
            "large_tokens": usage.large_tokens,
            "small_tokens": usage.small_tokens,
            "large_calls": usage.large_calls,
            "lag_tokens": usage.lag_tokens,
            "discarded_tokens": usage.discarded_tokens,
            "threshold": traces[0].threshold if work.alone is None else None,
            "active_parameters": active_parameters(
                [record for trace in traces for record in trace.records],
                models.small.info.active_parameters,
                models.large.info.active_parameters,
                models.router.parameters,
            ),
        }


def check_model(name: str) -> None:
    """Refuse a model that is not served.

    Raises:
        ApiError: 404; lists those that are.
    """
    if name not in MODELS:
        raise model_not_found(name, MODELS)


def make_service(
    engine: GenerationEngine, served: Served, options: ServiceOptions = ServiceOptions()
) -> Service:
    """Return the service of an engine, with metrics and, for a trained router, a drift monitor."""
    small, large = engine.models.small.info, engine.models.large.info
    build = BuildInfo(served.pair, small.name, large.name, served.router, version("crossroads-lm"))
    caches = {role: Caches(partial(engine.rows_of, role), engine.max_rows) for role in Role}
    ahead = None if engine.discarded_ahead is None else lambda: engine.discarded_ahead or 0
    gauges = Gauges(lambda: engine.running, lambda: engine.waiting, caches, ahead)
    drift = None if served.card is None else DriftMonitor.from_card(served.card)
    return Service(engine, served, ServerMetrics(build, gauges, drift), options)
