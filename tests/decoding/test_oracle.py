"""The oracle lies where it must: between the two models, at the fewest tokens of the large one."""

from __future__ import annotations

import pytest

from crossroads.decoding.oracle import generate_oracle
from crossroads.decoding.request import Request
from crossroads.errors import RequestError
from crossroads.models.pairs import Pair
from crossroads.sampling import SamplingParams
from crossroads.types import Role, Trace
from laws.pairs import alone, random_requests, scripted_pair, tokens

NEVER = 1e-300
"""No proposal is less likely than this: nothing is divergent."""


def oracle(pair: Pair, requests: list[Request], ratio: float, max_rows: int = 8) -> list[Trace]:
    found = generate_oracle(pair, requests, ratio=ratio, max_rows=max_rows)
    return [trace for _, trace in sorted(found, key=lambda pair: pair[0])]


def test_at_its_ends_it_is_one_model_alone() -> None:
    requests = random_requests(20, 1)
    small = oracle(scripted_pair(), requests, NEVER)
    assert tokens(small) == tokens(alone(scripted_pair(), Role.SMALL, requests))
    assert all(trace.usage.large_tokens == 0 for trace in small)
    large = oracle(scripted_pair(), requests, 1.0)
    assert tokens(large) == tokens(alone(scripted_pair(), Role.LARGE, requests))
    # The large model writes only what the small one would have written otherwise.
    written = [r for trace in large for r in trace.records if r.writer is Role.LARGE]
    assert written
    assert all(record.token_id != record.proposed_id for record in written)


def test_a_stricter_judge_leaves_the_large_model_fewer_tokens() -> None:
    requests = random_requests(30, 2)
    shares = [
        sum(t.usage.large_tokens for t in oracle(scripted_pair(), requests, ratio))
        / sum(t.usage.generated_tokens for t in oracle(scripted_pair(), requests, ratio))
        for ratio in (NEVER, 0.05, 0.3, 1.0)
    ]
    assert shares == sorted(shares)
    assert shares[0] == 0 < shares[1] < shares[3]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    requests = random_requests(12, 3)
    assert tokens(oracle(scripted_pair(), requests, 0.2, 1)) == tokens(
        oracle(scripted_pair(), requests, 0.2, 7)
    )


def test_lags_count_every_token_before_the_large_models_last_once() -> None:
    for trace in oracle(scripted_pair(), random_requests(12, 4), 0.2):
        last = max((r.position for r in trace.records if r.writer is Role.LARGE), default=None)
        expected = 0 if last is None else len(trace.prompt_ids) + last
        assert trace.usage.lag_tokens == expected


def test_rows_are_given_back() -> None:
    pair = scripted_pair()
    oracle(pair, random_requests(5, 5), 0.2)
    assert pair.small.alive == pair.large.alive == 0


def test_sampling_is_refused() -> None:
    request = Request((1,), sampling=SamplingParams(temperature=1.0))
    with pytest.raises(RequestError, match="greedy"):
        oracle(scripted_pair(), [request], 0.1)
