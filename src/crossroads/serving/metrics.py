"""What a server did, for Prometheus and for its page.

Every number is counted token by token from the same records as the traces, so the counters of
answers that ended add up to the `Usage` of their traces. Durations are in seconds. All of it is for
the event loop's thread alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from crossroads.serving.drift import DriftMonitor
from crossroads.types import Role, TokenRecord, Trace

MODELS = ("mixed", "small", "large")
RATE_SECONDS = 60
_UNKNOWN = "unknown"  # the label of a model that is not served; what a client sent is never a label
_REQUEST = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_LAG = tuple(float(2**n) for n in range(15))
_SCORE = (*(float(f"{step}e{power}") for power in range(-5, 0) for step in (1, 2, 5)), 1.0)
_SHARE = (0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1)


class Outcome(StrEnum):
    """How a request ended. REFUSED: before anything was generated."""

    OK = "ok"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    ERROR = "error"
    REFUSED = "refused"


class Refusal(StrEnum):
    """Why a request was refused. INVALID: it was wrong, in its fields, its path or its method."""

    INVALID = "invalid"
    UNAUTHORIZED = "unauthorized"
    TOO_LARGE = "too_large"
    QUEUE_FULL = "queue_full"
    UNAVAILABLE = "unavailable"

    @classmethod
    def of(cls, status: int) -> Refusal:
        """Return the reason of an HTTP status of 400 or more."""
        if status >= 500:
            return cls.UNAVAILABLE
        return _REFUSALS.get(status, cls.INVALID)


_REFUSALS: Mapping[int, Refusal] = {
    401: Refusal.UNAUTHORIZED,
    413: Refusal.TOO_LARGE,
    429: Refusal.QUEUE_FULL,
}


@dataclass(frozen=True, slots=True)
class BuildInfo:
    """What is served: names of the pair, its models and its router, and Crossroads' version."""

    pair: str
    small: str
    large: str
    router: str
    version: str


@dataclass(frozen=True, slots=True)
class Caches:
    """How to read a model's caches: rows now in use, how many there can be, tokens they hold."""

    in_use: Callable[[], int]
    limit: int
    kv_tokens: Callable[[], int] | None = None


@dataclass(frozen=True, slots=True)
class Gauges:
    """How to read what is going on; called at each scrape, on the thread that scrapes.

    discarded_ahead: small tokens written ahead in vain; None where the small model never does.
    """

    running: Callable[[], int]
    waiting: Callable[[], int]
    caches: Mapping[Role, Caches] = field(default_factory=dict)
    discarded_ahead: Callable[[], int] | None = None


class ServerMetrics:
    """The metrics of one server, in a registry of its own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(
        self,
        build: BuildInfo,
        gauges: Gauges,
        drift: DriftMonitor | None = None,
        *,
        models: Sequence[str] = MODELS,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Start at zero. drift: None for a router without calibration. clock: in seconds."""
        self._registry = CollectorRegistry()
        self._gauges = gauges
        families = _Families(self._registry)
        refusals = {reason: families.refusals.labels(reason) for reason in Refusal}
        self._shared = _Shared(clock, TokenRate(clock()), drift, refusals)
        self._models = {name: _ModelSeries(families, name) for name in models}
        self._unknown = families.requests.labels(_UNKNOWN, Outcome.REFUSED)
        Info(_name("build"), _HELP["build"], registry=self._registry).info(asdict(build))
        _register_gauges(self._registry, gauges)
        if gauges.discarded_ahead is not None:
            self._registry.register(_AheadCollector(gauges.discarded_ahead))
        if drift is not None:
            self._registry.register(_DriftCollector(drift))

    def request(self, model: str, prompt_tokens: Sequence[int] = ()) -> RequestMeter:
        """Return the meter of a request that begins now.

        prompt_tokens: the length of each answer's prompt, for answers that begin and then end
        without a trace.

        Raises:
            KeyError: the model is not one of those that the metrics were made for.
        """
        return RequestMeter(self._models[model], self._shared, prompt_tokens)

    def refused(self, model: str | None, reason: Refusal) -> None:
        """Count a request that was refused; model: what it asked for, None if that is not known."""
        known = self._models.get(model) if model is not None else None
        (known.outcomes[Outcome.REFUSED] if known else self._unknown).inc()
        self._shared.refusals[reason].inc()

    def render(self) -> bytes:
        """Return all metrics as Prometheus reads them, `content_type` says in which format."""
        return generate_latest(self._registry)

    def snapshot(self) -> dict[str, Any]:
        """Return plain JSON values for the page; tokens_per_second: over the last minute."""
        shared, caches = self._shared, self._gauges.caches
        return {
            "tokens_per_second": shared.rate.per_second(shared.clock()),
            "running": self._gauges.running(),
            "waiting": self._gauges.waiting(),
            "rows": {
                role.value: {"in_use": cache.in_use(), "limit": cache.limit}
                for role, cache in caches.items()
            },
            "drift": None if shared.drift is None else shared.drift.report().to_json(),
        }


class RequestMeter:
    """Counts one request, which may have several answers: `n` choices, or several prompts."""

    def __init__(self, series: _ModelSeries, shared: _Shared, prompt_tokens: Sequence[int]) -> None:
        """Begin now."""
        self._series = series
        self._shared = shared
        self._prompt_tokens = prompt_tokens
        self._begun = shared.clock()
        self._answers: dict[int, _Answer] = {}
        self._finished = False

    def token(self, record: TokenRecord, answer: int = 0) -> None:
        """Count a token that has just come, of the answer with this number."""
        now = self._shared.clock()
        if not self._answers:
            self._series.first_token.observe(now - self._begun)
        found = self._answers.get(answer)
        if found is None:
            found = self._answers[answer] = _Answer()
        else:
            self._series.between.observe(now - found.last)
        found.last = now
        self._count(found, record)
        self._shared.rate.count(now)

    def finish(self, outcome: Outcome, *traces: Trace | None) -> None:
        """End the request; only the first end counts, whether by `finish` or `refused`.

        traces: one for each answer, in order, None or missing where there is none. Tokens in a
        trace that never came by `token` are counted now, without a time.
        """
        if self._finished:
            return
        self._finished = True
        self._series.outcomes[outcome].inc()
        self._series.seconds.observe(self._shared.clock() - self._begun)
        for number, trace in enumerate(traces):
            if trace is not None:
                self._complete(self._answers.setdefault(number, _Answer()), trace)
        for number, answer in self._answers.items():
            if not answer.complete and number < len(self._prompt_tokens):
                self._series.prompt_tokens.inc(self._prompt_tokens[number])
            if answer.scored:
                self._series.large_fraction.observe(answer.by_large / answer.tokens)

    def refused(self, reason: Refusal) -> None:
        """End a request that nothing was generated for, such as one that found the queue full."""
        if self._finished:
            return
        self._finished = True
        self._series.outcomes[Outcome.REFUSED].inc()
        self._shared.refusals[reason].inc()

    def _complete(self, answer: _Answer, trace: Trace) -> None:
        answer.complete = True
        self._series.prompt_tokens.inc(len(trace.prompt_ids))
        for record in trace.records[answer.tokens :]:
            self._count(answer, record)

    def _count(self, answer: _Answer, record: TokenRecord) -> None:
        by_large = record.writer is Role.LARGE
        answer.tokens += 1
        answer.by_large += by_large
        series = self._series
        series.tokens[record.writer].inc()
        if record.lag > 0:
            series.large_calls.inc()
            series.lag_tokens.observe(record.lag)
        if record.discarded:
            series.discarded_tokens.inc(record.discarded)
        if record.score is not None:
            answer.scored = True
            series.router_score.observe(record.score)
            if self._shared.drift is not None:
                self._shared.drift.observe(record.score, by_large)


@dataclass(frozen=True, slots=True)
class _Shared:
    """What every request of a server counts into, besides the series of its model."""

    clock: Callable[[], float]
    rate: TokenRate
    drift: DriftMonitor | None
    refusals: Mapping[Refusal, Counter]


@dataclass(slots=True)
class _Answer:
    """What was counted of one answer. last: when its last token came. complete: has its trace."""

    tokens: int = 0
    by_large: int = 0
    scored: bool = False
    complete: bool = False
    last: float = 0.0


class TokenRate:
    """Tokens per second over the last minute, in steps of a second."""

    def __init__(self, now: float) -> None:
        """Begin at `now`, in seconds of any clock that never goes back."""
        self._begun = now
        self._counts: deque[tuple[int, int]] = deque()  # second, tokens in it
        self._total = 0

    def count(self, now: float) -> None:
        """Count a token."""
        second, tokens = int(now), 1
        if self._counts and self._counts[-1][0] == second:
            tokens += self._counts.pop()[1]
        self._counts.append((second, tokens))
        self._total += 1
        self._forget(now)

    def per_second(self, now: float) -> float:
        """Return the mean of the last minute, or since the beginning, but of a second at least."""
        self._forget(now)
        return self._total / min(max(now - self._begun, 1.0), RATE_SECONDS)

    def _forget(self, now: float) -> None:
        while self._counts and self._counts[0][0] <= now - RATE_SECONDS:
            self._total -= self._counts.popleft()[1]


# The series


_HELP: Mapping[str, str] = {
    "build": "What is served: the pair, its models, its router, and the version of Crossroads",
    "requests_total": "Requests by how they ended: ok, cancelled, timeout, error, refused",
    "refused_requests_total": "Requests refused before anything was generated, by reason",
    "request_seconds": "Seconds from a request's start to its end, refused ones left out",
    "time_to_first_token_seconds": "Seconds from a request's start, its wait for a row included",
    "inter_token_seconds": "Seconds between two tokens of an answer; revision brings some at once",
    "tokens_total": "Tokens generated, by the model that wrote them",
    "prompt_tokens_total": "Prompt tokens, once for each answer: n choices count a prompt n times",
    "large_calls_total": "How often the large model was asked",
    "lag_tokens": "Tokens that the large model read when it was asked; at first the prompt, too",
    "discarded_tokens_total": "Small tokens that revisions threw away; they are in no answer",
    "ahead_discarded_tokens_total": "Small tokens written ahead of the large model and not used",
    "router_score": "Router scores of generated tokens; higher is more likely divergent",
    "large_fraction": "Share of an answer's tokens that the large model wrote, in routed answers",
    "requests_running": "Requests that are generating now",
    "requests_waiting": "Requests that wait for a row now",
    "rows_in_use": "Rows of a model's cache in use now",
    "rows_limit": "Rows that a model's cache has",
    "kv_tokens": "Tokens in a model's cache now",
    "router_threshold": "The router's own threshold, which both positive rates are of",
    "promised_positive_rate": "Share of calibration scores at or above the router's threshold",
    "live_positive_rate": "Share of the last live scores at or above the router's threshold",
    "live_large_fraction": "Share of the same tokens that the large model wrote, as requested",
    "score_psi": "Population stability index of live scores against calibration's",
}


def _name(name: str) -> str:
    return f"crossroads_{name}"


class _Families:
    """Every counter and histogram, in a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, *labels: str) -> Counter:
            return Counter(_name(name), _HELP[name], labels, registry=registry)

        def histogram(name: str, buckets: Sequence[float]) -> Histogram:
            text = _HELP[name]
            return Histogram(_name(name), text, ["model"], registry=registry, buckets=buckets)

        self.requests = counter("requests_total", "model", "outcome")
        self.refusals = counter("refused_requests_total", "reason")
        self.seconds = histogram("request_seconds", _REQUEST)
        self.first_token = histogram("time_to_first_token_seconds", _FIRST_TOKEN)
        self.between = histogram("inter_token_seconds", _BETWEEN)
        self.tokens = counter("tokens_total", "model", "writer")
        self.prompt_tokens = counter("prompt_tokens_total", "model")
        self.large_calls = counter("large_calls_total", "model")
        self.lag_tokens = histogram("lag_tokens", _LAG)
        self.discarded_tokens = counter("discarded_tokens_total", "model")
        self.router_score = histogram("router_score", _SCORE)
        self.large_fraction = histogram("large_fraction", _SHARE)


class _ModelSeries:
    """The series of one model's label, looked up once."""

    def __init__(self, families: _Families, model: str) -> None:
        self.outcomes = {ending: families.requests.labels(model, ending) for ending in Outcome}
        self.tokens = {role: families.tokens.labels(model, role) for role in Role}
        self.seconds = families.seconds.labels(model)
        self.first_token = families.first_token.labels(model)
        self.between = families.between.labels(model)
        self.prompt_tokens = families.prompt_tokens.labels(model)
        self.large_calls = families.large_calls.labels(model)
        self.lag_tokens = families.lag_tokens.labels(model)
        self.discarded_tokens = families.discarded_tokens.labels(model)
        self.router_score = families.router_score.labels(model)
        self.large_fraction = families.large_fraction.labels(model)


def _register_gauges(registry: CollectorRegistry, gauges: Gauges) -> None:
    """Register what is read at each scrape."""

    def gauge(name: str, *labels: str) -> Gauge:
        return Gauge(_name(name), _HELP[name], labels, registry=registry)

    gauge("requests_running").set_function(gauges.running)
    gauge("requests_waiting").set_function(gauges.waiting)
    in_use, limit = gauge("rows_in_use", "role"), gauge("rows_limit", "role")
    kv_tokens = gauge("kv_tokens", "role")
    for role, cache in gauges.caches.items():
        in_use.labels(role).set_function(cache.in_use)
        limit.labels(role).set(cache.limit)
        if cache.kv_tokens is not None:
            kv_tokens.labels(role).set_function(cache.kv_tokens)


class _AheadCollector(Collector):
    """A counter that an engine keeps."""

    def __init__(self, read: Callable[[], int]) -> None:
        self._read = read

    def collect(self) -> Iterable[CounterMetricFamily]:
        name = "ahead_discarded_tokens"
        yield CounterMetricFamily(_name(name), _HELP[f"{name}_total"], self._read())


class _DriftCollector(Collector):
    """The drift report as gauges, made once per scrape; those of live tokens need some."""

    def __init__(self, monitor: DriftMonitor) -> None:
        self._monitor = monitor

    def collect(self) -> Iterable[GaugeMetricFamily]:
        report = self._monitor.report()
        for name, value in (
            ("router_threshold", report.threshold),
            ("promised_positive_rate", report.promised_positive_rate),
            ("live_positive_rate", report.live_positive_rate),
            ("live_large_fraction", report.live_large_fraction),
            ("score_psi", report.psi),
        ):
            if value is not None:
                yield GaugeMetricFamily(_name(name), _HELP[name], value)
