"""Metrics: counters add up to what replies show, and every request ends in exactly one way."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from crossroads.serving.drift import DriftMonitor
from crossroads.serving.metrics import (
    MODELS,
    BuildInfo,
    Caches,
    Gauges,
    Outcome,
    Refusal,
    RequestMeter,
    ServerMetrics,
    TokenRate,
)
from crossroads.types import FinishReason, Role, TokenRecord, Trace, Usage

BUILD = BuildInfo("pair", "small-1", "large-2", "mlp", "0.1")
SAMPLE = re.compile(r"^crossroads_(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
LABEL = re.compile(r'"([^"]*)"')
QUANTILES = np.linspace(0, 1, 101).tolist()


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Server:
    """Metrics whose clock and gauges a test sets."""

    clock: Clock = field(default_factory=Clock)
    running: int = 0
    drift: DriftMonitor | None = None

    def __post_init__(self) -> None:
        caches = {Role.SMALL: Caches(lambda: self.running, 8, lambda: 100 * self.running)}
        gauges = Gauges(
            lambda: self.running, lambda: 2 * self.running, caches, lambda: 3 * self.running
        )
        self.metrics = ServerMetrics(BUILD, gauges, self.drift, clock=self.clock)

    def samples(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Return all samples: by name, then by their labels' values."""
        found: dict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
        for name, labels, value in SAMPLE.findall(self.metrics.render().decode()):
            found[name][tuple(LABEL.findall(labels))] = float(value)
        return found

    def values(self, name: str) -> dict[tuple[str, ...], float]:
        """Return a metric's samples."""
        return self.samples()[name]

    def total(self, name: str, *labels: str) -> float:
        """Return the sum of those samples that have all of the labels' values."""
        return total(self.values(name), *labels)


def total(values: dict[tuple[str, ...], float], *labels: str) -> float:
    return sum(value for key, value in values.items() if set(labels) <= set(key))


def record(writer: Role = Role.SMALL, **values: object) -> TokenRecord:
    return TokenRecord(0, 1, writer, **values)  # type: ignore[arg-type]


def trace(records: Sequence[TokenRecord], prompt: int = 3) -> Trace:
    return Trace(tuple(range(prompt)), tuple(records), FinishReason.EOS, "")


RECORDS = st.builds(
    record,
    writer=st.sampled_from(Role),
    lag=st.integers(0, 50) | st.just(0),
    score=st.none() | st.floats(0, 1),
    discarded=st.integers(0, 5),
)
TRACES = st.builds(trace, st.lists(RECORDS, max_size=8), st.integers(1, 9))
REQUESTS = st.tuples(
    st.sampled_from(MODELS),
    st.lists(TRACES, min_size=1, max_size=3),
    st.integers(0, 8),
    st.sampled_from([Outcome.OK, Outcome.TIMEOUT, Outcome.ERROR]),
)


def counted(server: Server, *labels: str) -> Usage:
    found = server.samples()
    by_writer: dict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
    for (model, writer), value in found["tokens_total"].items():
        by_writer[writer][model,] = value
    return Usage(
        prompt_tokens=int(total(found["prompt_tokens_total"], *labels)),
        small_tokens=int(total(by_writer["small"], *labels)),
        large_tokens=int(total(by_writer["large"], *labels)),
        lag_tokens=int(total(found["lag_tokens_sum"], *labels)),
        large_calls=int(total(found["large_calls_total"], *labels)),
        discarded_tokens=int(total(found["discarded_tokens_total"], *labels)),
    )


# Laws


@settings(max_examples=25)
@given(requests=st.lists(REQUESTS, max_size=5))
def test_counters_add_up_to_the_usage_of_the_traces(
    requests: list[tuple[str, list[Trace], int, Outcome]],
) -> None:
    server = Server()
    sums = dict.fromkeys(MODELS, Usage())
    for model, traces, seen, outcome in requests:
        meter = server.metrics.request(model, [1000] * len(traces))
        for number, one in enumerate(traces):
            for token in one.records[:seen]:
                meter.token(token, number)
        meter.finish(outcome, *traces)
        sums[model] = sum((one.usage for one in traces), sums[model])
    assert {model: counted(server, model) for model in MODELS} == sums
    everything = sum(sums.values(), Usage())
    assert counted(server) == everything
    assert server.total("lag_tokens_count") == everything.large_calls
    scores = sum(
        r.score is not None for _, traces, _, _ in requests for t in traces for r in t.records
    )
    assert server.total("router_score_count") == scores


@settings(max_examples=25)
@given(requests=st.lists(REQUESTS, max_size=5), refused=st.lists(st.sampled_from(Refusal)))
def test_every_request_ends_in_one_way(
    requests: list[tuple[str, list[Trace], int, Outcome]], refused: list[Refusal]
) -> None:
    server = Server()
    for model, traces, _, outcome in requests:
        meter = server.metrics.request(model)
        meter.finish(outcome, *traces)
        meter.finish(Outcome.CANCELLED, *traces)
        meter.refused(Refusal.QUEUE_FULL)
    for reason in refused:
        server.metrics.refused("mixed", reason)
    found = server.samples()
    ended = found["requests_total"]
    assert total(ended) == len(requests) + len(refused)
    assert total(found["request_seconds_count"]) == len(requests)
    for outcome in (Outcome.OK, Outcome.TIMEOUT, Outcome.ERROR, Outcome.CANCELLED):
        assert total(ended, outcome) == sum(end is outcome for _, _, _, end in requests)
    for reason in Refusal:
        assert total(found["refused_requests_total"], reason) == refused.count(reason)


@settings(max_examples=25)
@given(tokens=st.lists(RECORDS, max_size=8))
def test_a_cancelled_request_counts_what_it_wrote(tokens: list[TokenRecord]) -> None:
    server = Server()
    meter = server.metrics.request("mixed", [7, 9])
    for token in tokens:
        meter.token(token, 1)
    meter.finish(Outcome.CANCELLED, None)
    prompt = 9 if tokens else 0  # nobody read the prompt of an answer that never began
    usage = trace(tokens, prompt).usage
    assert counted(server) == usage


@settings(max_examples=25)
@given(gaps=st.lists(st.floats(0, 10), min_size=1, max_size=20))
def test_times_add_up_to_the_request(gaps: list[float]) -> None:
    server = Server()
    meter = server.metrics.request("small")
    for gap in gaps:
        server.clock.now += gap
        meter.token(record())
    server.clock.now += 1
    meter.finish(Outcome.OK)
    assert server.total("time_to_first_token_seconds_sum") == pytest.approx(gaps[0])
    assert server.total("inter_token_seconds_count") == len(gaps) - 1
    assert server.total("inter_token_seconds_sum") == pytest.approx(sum(gaps[1:]), abs=1e-6)
    assert server.total("request_seconds_sum") == pytest.approx(sum(gaps) + 1)


@settings(max_examples=25)
@given(gaps=st.lists(st.floats(0, 40), max_size=40), idle=st.floats(0, 100))
def test_the_rate_is_of_the_last_minute_up_to_a_second(gaps: list[float], idle: float) -> None:
    now, rate, times = 0.0, TokenRate(0.0), []
    for gap in gaps:
        now += gap
        times.append(now)
        rate.count(now)
    now += idle
    span = min(max(now, 1.0), 60)
    certain, possible = (sum(time > now - limit for time in times) for limit in (59, 61))
    assert certain <= rate.per_second(now) * span + 1e-9
    assert rate.per_second(now) * span - 1e-9 <= possible


# One by one


def test_between_two_answers_of_a_request_there_is_no_inter_token_time() -> None:
    server = Server()
    meter = server.metrics.request("mixed")
    for seconds, answer in [(1, 0), (2, 1), (4, 0), (8, 1)]:
        server.clock.now += seconds
        meter.token(record(), answer)
    assert server.total("time_to_first_token_seconds_count") == 1
    assert server.total("inter_token_seconds_sum") == (2 + 4) + (4 + 8)


def test_large_fraction_is_of_routed_answers_one_by_one() -> None:
    server = Server()
    meter = server.metrics.request("mixed")
    for writer, answer in [(Role.LARGE, 0), (Role.SMALL, 0), (Role.SMALL, 1), (Role.SMALL, 1)]:
        meter.token(record(writer, score=0.5), answer)
    meter.finish(Outcome.OK)
    alone = server.metrics.request("large")
    alone.token(record(Role.LARGE))
    alone.finish(Outcome.OK)
    assert server.total("large_fraction_count") == 2
    assert server.total("large_fraction_sum") == 0.5
    assert server.values("large_fraction_bucket")["0.0", "mixed"] == 1


def test_scores_are_told_apart_where_thresholds_lie() -> None:
    server = Server()
    meter = server.metrics.request("mixed")
    for score in (0.0, 3e-5, 0.004, 0.0104, 0.0106, 0.7, 1.0):
        meter.token(record(score=score))
    buckets = [
        value for key, value in server.values("router_score_bucket").items() if "mixed" in key
    ]
    assert buckets[-1] == buckets[-2] == 7
    assert len(set(buckets)) > 4


def test_what_a_client_sends_is_never_a_label() -> None:
    server = Server()
    server.metrics.refused("gpt-17\n", Refusal.INVALID)
    server.metrics.refused(None, Refusal.UNAUTHORIZED)
    assert b"gpt" not in server.metrics.render()
    assert server.values("requests_total")["unknown", "refused"] == 2
    with pytest.raises(KeyError):
        server.metrics.request("gpt-17")


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (400, "invalid"),
        (401, "unauthorized"),
        (404, "invalid"),
        (413, "too_large"),
        (429, "queue_full"),
        (503, "unavailable"),
    ],
)
def test_reasons_follow_the_status(status: int, reason: str) -> None:
    assert Refusal.of(status).value == reason


def test_gauges_are_read_at_each_scrape() -> None:
    server = Server()
    for server.running in (0, 3, 1):
        assert server.values("requests_running") == {(): server.running}
        assert server.values("requests_waiting") == {(): 2 * server.running}
        assert server.values("rows_in_use") == {("small",): server.running}
        assert server.values("kv_tokens") == {("small",): 100 * server.running}
    assert server.values("rows_limit") == {("small",): 8}
    assert server.values("ahead_discarded_tokens_total") == {(): 3 * server.running}


def monitor() -> DriftMonitor:
    return DriftMonitor(QUANTILES, 0.75, 0.25, (0.2, 0.3))


def test_both_live_shares_and_the_promised_one_stand_side_by_side() -> None:
    server = Server(drift=monitor())
    assert server.values("promised_positive_rate") == {(): 0.25}
    assert server.values("live_positive_rate") == server.values("score_psi") == {}
    meter = server.metrics.request("mixed")
    for score in (0.1, 0.5, 0.75, 0.9):
        meter.token(record(Role.LARGE if score > 0.8 else Role.SMALL, score=score))
    meter.token(record(Role.LARGE))  # without a score: not of a mixed generation
    assert server.values("live_positive_rate") == {(): 0.5}
    assert server.values("live_large_fraction") == {(): 0.25}
    assert server.values("router_threshold") == {(): 0.75}
    assert server.total("score_psi") > 0


def test_a_router_without_calibration_has_no_drift() -> None:
    server = Server()
    text = server.metrics.render()
    assert b"promised" not in text
    assert b"psi" not in text
    assert server.metrics.snapshot()["drift"] is None


def test_a_snapshot_is_plain_json() -> None:
    server = Server(drift=monitor())
    server.running = 2
    meter = server.metrics.request("mixed")
    for _ in range(30):
        server.clock.now += 0.5
        meter.token(record(score=0.4))
    found = json.loads(json.dumps(server.metrics.snapshot(), allow_nan=False))
    assert found["tokens_per_second"] == 2
    assert (found["running"], found["waiting"]) == (2, 4)
    assert found["rows"] == {"small": {"in_use": 2, "limit": 8}}
    assert found["drift"]["tokens"] == 30
    assert found["drift"]["verdict"] == "too few tokens"
    server.clock.now += 61
    assert server.metrics.snapshot()["tokens_per_second"] == 0


def test_servers_in_one_process_share_nothing() -> None:
    before = {metric.name for metric in REGISTRY.collect()}
    first, second = Server(), Server()
    first.metrics.request("mixed").finish(Outcome.OK)
    assert first.total("requests_total") == 1
    assert second.total("requests_total") == 0
    assert {metric.name for metric in REGISTRY.collect()} == before


def test_every_metric_has_a_prefix_a_help_text_and_a_conventional_name() -> None:
    server = Server(drift=monitor())
    meter: RequestMeter = server.metrics.request("mixed")
    meter.token(record(score=0.4))
    names = set()
    for family in text_string_to_metric_families(server.metrics.render().decode()):
        names.add(family.name)
        assert family.name.startswith("crossroads_")
        assert len(family.documentation) > 20
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)
        elif not family.name.endswith("_created"):
            assert not family.name.endswith("_total")
    assert len(names) > 20
    (build,) = server.values("build_info")
    assert set(build) == {"pair", "small-1", "large-2", "mlp", "0.1"}
    assert server.metrics.content_type.startswith("text/plain")
