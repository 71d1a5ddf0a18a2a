"""Laws of what a request may ask for besides a threshold: penalties, a share, looking closer."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.decoding.request import Request, check_request
from crossroads.errors import RequestError
from crossroads.sampling import SamplingParams
from crossroads.training.threshold import NEVER
from crossroads.types import Role
from laws.pairs import alone, mixed, random_requests, scripted_pair, tokens

SEEDS = st.integers(0, 10_000)
THRESHOLDS = st.sampled_from([0.0, 0.55, 0.62, 0.75, NEVER])
few = settings(max_examples=25, deadline=None)


def penalised(seed: int, temperature: float, **fields: object) -> list[Request]:
    """Return requests whose penalties change what is written."""
    found = random_requests(4, seed, temperature)
    for i, request in enumerate(found):
        sampling = dataclasses.replace(
            request.sampling, frequency_penalty=1.5, presence_penalty=0.5, repetition_penalty=1.3
        )
        found[i] = dataclasses.replace(request, sampling=sampling, **fields)
    return found


@few
@given(SEEDS, st.sampled_from([0.0, 0.8]))
def test_penalties_keep_both_ends_of_the_threshold(seed: int, temperature: float) -> None:
    pair, requests = scripted_pair(), penalised(seed, temperature)
    assert tokens(mixed(pair, requests, 0.0)) == tokens(alone(pair, Role.LARGE, requests))
    assert tokens(mixed(pair, requests, NEVER)) == tokens(alone(pair, Role.SMALL, requests))


@few
@given(SEEDS, THRESHOLDS, st.sampled_from([None, 3]))
def test_lossless_with_penalties_is_the_large_model_with_penalties(
    seed: int, threshold: float, max_lag: int | None
) -> None:
    pair, plain = scripted_pair(), penalised(seed, 0.0)
    requests = [dataclasses.replace(r, lossless=True, max_lag=max_lag) for r in plain]
    assert tokens(mixed(pair, requests, threshold)) == tokens(alone(pair, Role.LARGE, plain))


def test_penalties_change_what_a_greedy_row_writes() -> None:
    pair, requests = scripted_pair(), penalised(3, 0.0)
    plain = [dataclasses.replace(r, sampling=SamplingParams()) for r in requests]
    assert tokens(alone(pair, Role.LARGE, requests)) != tokens(alone(pair, Role.LARGE, plain))


@few
@given(
    SEEDS,
    THRESHOLDS,
    st.sampled_from([0.0, 0.1, 0.29, 0.5, 1.0]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([None, 0, 3]),
)
def test_the_large_models_share_is_kept_at_every_token(
    seed: int, threshold: float, share: float, revise_below: float, max_lag: int | None
) -> None:
    pair = scripted_pair()
    requests = [
        dataclasses.replace(r, max_large_fraction=share, revise_below=revise_below, max_lag=max_lag)
        for r in random_requests(4, seed)
    ]
    for trace in mixed(pair, requests, threshold):
        by_large = 0
        for count, record in enumerate(trace.records, start=1):
            by_large += record.writer is Role.LARGE
            assert by_large / count <= share


@few
@given(SEEDS, THRESHOLDS)
def test_a_share_of_one_changes_nothing(seed: int, threshold: float) -> None:
    pair, plain = scripted_pair(), random_requests(4, seed)
    requests = [dataclasses.replace(r, max_large_fraction=1.0) for r in plain]
    assert tokens(mixed(pair, requests, threshold)) == tokens(mixed(pair, plain, threshold))


def test_a_share_is_used_up_where_the_router_would_ask_more() -> None:
    pair = scripted_pair()
    requests = [dataclasses.replace(r, max_large_fraction=0.25) for r in random_requests(4, 1)]
    for trace in mixed(pair, requests, 0.0):
        assert trace.usage.large_tokens == len(trace.records) // 4


@few
@given(SEEDS, THRESHOLDS)
def test_proposals_are_the_small_models_whoever_wrote_the_token(
    seed: int, threshold: float
) -> None:
    pair, plain = scripted_pair(), random_requests(3, seed)
    requests = [dataclasses.replace(r, proposals=5) for r in plain]
    traces = mixed(pair, requests, threshold)
    assert tokens(traces) == tokens(mixed(pair, plain, threshold)), "looking changes nothing"
    for record in (record for trace in traces for record in trace.records):
        assert record.proposals is not None
        assert len(record.proposals) == 5
        assert record.proposals[0][0] == record.proposed_id
        nats = [p for _, p in record.proposals]
        assert nats == sorted(nats, reverse=True)
        assert nats[0] <= 0


def test_a_model_alone_gives_log_probabilities_as_the_mixed_loop_does() -> None:
    pair = scripted_pair()
    requests = [dataclasses.replace(r, logprobs=3) for r in random_requests(4, 7, 0.8)]
    for role, threshold in ((Role.LARGE, 0.0), (Role.SMALL, NEVER)):
        expected = mixed(pair, requests, threshold)
        for trace, other in zip(alone(pair, role, requests), expected, strict=True):
            assert [r.logprob for r in trace.records] == [r.logprob for r in other.records]
            assert [r.top_logprobs for r in trace.records] == [
                r.top_logprobs for r in other.records
            ]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"max_large_fraction": 1.1}, r"max_large_fraction must be a share in \[0, 1\], got 1.1"),
        ({"max_large_fraction": True}, "max_large_fraction must be a share"),
        ({"proposals": 21}, "proposals must be at most 20, got 21"),
        ({"max_large_fraction": 0.5, "lossless": True}, "cannot keep a max_large_fraction"),
    ],
)
def test_what_cannot_be_asked_for_is_one_sentence(fields: dict, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        check_request(Request((1,), **fields), [])
