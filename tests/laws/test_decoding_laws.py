"""Laws 1, 2 and 9 of the mixed loop, exact on the scripted pair."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.decoding.mixed import MixedLoop, MixedModels
from crossroads.routing.policy import sends_to_large
from crossroads.routing.routers.heuristics import entropy, random
from crossroads.sampling import SamplingParams
from crossroads.training.threshold import NEVER
from crossroads.types import Role, Usage
from laws.pairs import VOCAB, alone, mixed, random_requests, scripted_pair, tokens

SEEDS = st.integers(0, 10_000)
TEMPERATURES = st.sampled_from([0.0, 0.7, 1.3])
MIDDLE = 0.62  # sends about half of this pair's tokens to the large model


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, temperature=TEMPERATURES)
def test_threshold_zero_is_the_large_model_alone(seed: int, temperature: float) -> None:
    pair, requests = scripted_pair(), random_requests(4, seed, temperature)
    assert tokens(mixed(pair, requests, 0.0)) == tokens(alone(pair, Role.LARGE, requests))


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, temperature=TEMPERATURES)
def test_threshold_above_one_is_the_small_model_alone(seed: int, temperature: float) -> None:
    pair, requests = scripted_pair(), random_requests(4, seed, temperature)
    traces = mixed(pair, requests, NEVER)
    assert tokens(traces) == tokens(alone(pair, Role.SMALL, requests))
    assert pair.large.calls == []


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, temperature=TEMPERATURES, rows=st.integers(1, 6))
def test_a_batched_row_is_the_same_row_alone(seed: int, temperature: float, rows: int) -> None:
    pair, requests = scripted_pair(), random_requests(6, seed, temperature)
    together = mixed(pair, requests, MIDDLE, max_rows=rows)
    apart = [mixed(pair, [request], MIDDLE)[0] for request in requests]
    assert tokens(together) == tokens(apart)
    assert [[r.score for r in t.records] for t in together] == [
        [r.score for r in t.records] for t in apart
    ]


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, after=st.integers(0, 10), victim=st.integers(0, 3))
def test_cancelling_one_row_changes_no_other(seed: int, after: int, victim: int) -> None:
    pair, requests = scripted_pair(), random_requests(4, seed, 0.9, max_tokens=30)
    requests = [dataclasses.replace(r, max_tokens=30) for r in requests]
    undisturbed = mixed(pair, requests, MIDDLE)
    loop = _loop(pair)
    rows = [loop.add(request) for request in requests]
    finished = {}
    for step in range(40):
        if step == after and rows[victim] not in finished:
            finished[rows[victim]] = loop.cancel(rows[victim])
        finished.update({e.row: e.trace for e in loop.step() if e.trace is not None})
    for row, expected in zip(rows, undisturbed, strict=True):
        if row != rows[victim]:
            assert finished[row].token_ids == expected.token_ids
    cancelled = finished[rows[victim]].token_ids
    assert undisturbed[victim].token_ids[: len(cancelled)] == cancelled
    assert pair.small.alive == pair.large.alive == 0


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, threshold=st.floats(0, 1))
def test_usage_is_the_count_of_the_trace(seed: int, threshold: float) -> None:
    pair, requests = scripted_pair(), random_requests(4, seed)
    for request, trace in zip(requests, mixed(pair, requests, threshold), strict=True):
        usage = trace.usage
        large = [r for r in trace.records if r.writer is Role.LARGE]
        assert usage.large_tokens == len(large)
        assert usage.generated_tokens == len(trace.token_ids)
        assert usage.prompt_tokens == len(request.prompt_ids)
        assert usage.large_fraction == len(large) / len(trace.records)
        for record in trace.records:
            routed = sends_to_large(record.score, threshold)
            assert routed == (record.writer is Role.LARGE) == (record.lag > 0)
            if not routed:
                assert record.token_id == record.proposed_id


def test_usage_of_several_traces_is_their_sum() -> None:
    pair = scripted_pair()
    traces = mixed(pair, random_requests(5, 3), MIDDLE)
    total = sum((t.usage for t in traces), Usage())
    assert total.generated_tokens == sum(len(t.records) for t in traces)
    assert 0.2 < total.large_fraction < 0.8, "the example must route some tokens and keep some"


def test_the_large_model_reads_its_whole_lag_in_one_call_and_nothing_twice() -> None:
    pair, request = scripted_pair(), dataclasses.replace(random_requests(1, 5)[0], max_tokens=40)
    (trace,) = mixed(pair, [request], MIDDLE)
    lags = [r.lag for r in trace.records if r.lag]
    assert [sum(call) for call in pair.large.calls] == lags
    last_read = max(r.position for r in trace.records if r.lag)
    assert sum(lags) == len(request.prompt_ids) + last_read


def test_each_row_has_its_own_threshold() -> None:
    pair = scripted_pair()
    base = dataclasses.replace(random_requests(1, 7)[0], max_tokens=20)
    both = [dataclasses.replace(base, threshold=0.0), dataclasses.replace(base, threshold=NEVER)]
    large, small = mixed(pair, both, MIDDLE)
    assert large.token_ids == alone(pair, Role.LARGE, [base])[0].token_ids
    assert small.token_ids == alone(pair, Role.SMALL, [base])[0].token_ids


def test_random_routing_does_not_depend_on_the_batch() -> None:
    pair, requests, router = scripted_pair(), random_requests(4, 11), random(VOCAB, seed=3)
    together = mixed(pair, requests, 0.7, router)
    apart = [mixed(pair, [r], 0.7, router)[0] for r in requests]
    assert tokens(together) == tokens(apart)


def test_sampling_seeds_matter() -> None:
    pair, request = scripted_pair(), dataclasses.replace(random_requests(1, 13)[0], max_tokens=30)
    sampled = [
        mixed(pair, [dataclasses.replace(request, sampling=SamplingParams(1.0, seed=seed))], MIDDLE)
        for seed in (1, 1, 2)
    ]
    assert sampled[0][0].token_ids == sampled[1][0].token_ids != sampled[2][0].token_ids


def test_closing_the_loop_frees_every_cache() -> None:
    pair = scripted_pair(max_rows=2)
    loop = _loop(pair)
    loop.add(random_requests(1, 1)[0])
    loop.step()
    loop.close()
    assert pair.small.alive == pair.large.alive == 0


def _loop(pair) -> MixedLoop:
    models = MixedModels(pair.small, pair.large, entropy(VOCAB), pair.tokenizer, MIDDLE)
    return MixedLoop(models)


@pytest.mark.parametrize("max_rows", [1, 3])
def test_more_requests_than_rows_wait_their_turn(max_rows: int) -> None:
    pair, requests = scripted_pair(max_rows=max_rows), random_requests(7, 17)
    assert tokens(mixed(pair, requests, MIDDLE)) == tokens(mixed(scripted_pair(), requests, MIDDLE))
