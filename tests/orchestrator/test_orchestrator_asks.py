"""What the orchestrator asks its servers besides the next token, against the in-process loop.

Revision, lossless rows, log-probabilities, and policies that remember.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.decoding.request import Request
from crossroads.errors import EngineError, RequestError
from crossroads.models.remote_wire import ReservedIds, Step, fill, read_step
from crossroads.routing.policy import POLICIES, Momentum, RollingWindow
from crossroads.types import Cause, OnLoss, Role, Trace
from crossroads.vllm import between
from crossroads.vllm.between import Ahead
from laws.pairs import VOCAB, alone, mixed, random_requests
from orchestrator.lines import AHEAD, MIDDLE, SPARE, Line, line, same, spare_pair

SEEDS = st.integers(0, 10_000)
MAX_LAGS = st.one_of(st.none(), st.integers(0, 12))
SAMPLINGS = st.sampled_from([{}, {"temperature": 0.8}, {"frequency_penalty": 1.2},
                             {"temperature": 0.8, "repetition_penalty": 1.2}])  # fmt: skip
HYSTERESIS = (Momentum(), Momentum(0.5, 0.4, 0.6), RollingWindow(), RollingWindow(5))
few = settings(max_examples=8, deadline=None)


@pytest.fixture(scope="module", params=AHEAD)
def healthy(request: pytest.FixtureRequest) -> Iterator[Line]:
    with line(ahead=request.param) as found:
        yield found


def asked(seed: int, sampling: dict | None = None, count: int = 2, **fields: object) -> list:
    """Return random requests, changed."""
    requests = random_requests(count, seed, vocab=VOCAB - SPARE, max_tokens=24)
    return [
        dataclasses.replace(
            r, sampling=dataclasses.replace(r.sampling, **(sampling or {})), **fields
        )
        for r in requests
    ]


def compare(found: Line, requests: Sequence[Request]) -> list[Trace]:
    """Assert that the requests' traces are the in-process loop's, and return them."""
    traces = found.run(requests)
    same(traces, mixed(spare_pair(), requests, MIDDLE))
    return traces


# Revision


@few
@given(
    seed=SEEDS, below=st.floats(0.001, 1.0), max_lag=MAX_LAGS, sampling=SAMPLINGS,
    policy=st.sampled_from(sorted(POLICIES)), share=st.sampled_from([None, 0.3]),
    budget=st.sampled_from([None, 2]), threshold=st.sampled_from([0.0, 0.6, 0.75, 1.5]),
)  # fmt: skip
def test_revision_takes_back_what_it_takes_back_in_process(
    healthy: Line, seed: int, below: float, max_lag: int | None, sampling: dict, policy: str,
    share: float | None, budget: int | None, threshold: float,
) -> None:  # fmt: skip
    requests = asked(
        seed, sampling, revise_below=below, max_lag=max_lag, policy=POLICIES[policy](),
        max_large_fraction=share, large_budget=budget, threshold=threshold,
    )  # fmt: skip
    compare(healthy, requests)


@few
@given(seed=SEEDS, max_lag=MAX_LAGS, penalty=st.sampled_from([0.0, 1.2]))
def test_lossless_greedy_is_the_large_model_alone(
    healthy: Line, seed: int, max_lag: int | None, penalty: float
) -> None:
    sampling = {"frequency_penalty": penalty}
    requests = asked(seed, sampling, lossless=True, max_lag=max_lag)
    found = compare(healthy, requests)
    expected = alone(spare_pair(), Role.LARGE, asked(seed, sampling))
    assert [t.token_ids for t in found] == [t.token_ids for t in expected]


@pytest.mark.parametrize("fields", [{"revise_below": 0.05}, {"revise_below": 0.4, "max_lag": 6},
                                    {"lossless": True, "max_lag": 3}])  # fmt: skip
def test_a_large_server_without_the_plugin_revises_greedy_rows(fields: dict) -> None:
    with line(plugin_in_large=False) as found:
        found.large.most_logprobs = 20
        traces = compare(found, asked(7, **fields))
        assert any(r.cause is Cause.REVISION for t in traces for r in t.records)
        with pytest.raises(RequestError, match=r"revise_below of at least that, got 0\.04"):
            found.run(asked(7, revise_below=0.04))


@pytest.mark.parametrize("ahead", AHEAD)
def test_a_revised_row_that_breaks_off_draws_the_same_again(ahead: Ahead) -> None:
    with line(ahead=ahead) as found:
        found.small.break_after = 3
        policy = RollingWindow()
        compare(found, asked(8, {"temperature": 0.8}, 4, revise_below=0.2, policy=policy))


def test_a_row_at_the_end_of_the_context_is_looked_at_too(healthy: Line) -> None:
    requests = asked(5, threshold=1.5, revise_below=0.01, max_tokens=400, count=1)
    compare(healthy, requests)


def test_the_large_model_is_asked_about_few_places_at_a_time_and_no_further_than_it_has_to(
    healthy: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(between, "MOST_PLACES", 2)
    (request,) = asked(7, revise_below=0.3, threshold=1.5, max_tokens=60, count=1)
    before = len(healthy.large.asks)
    (trace,) = compare(healthy, [request])
    sent = [len(body["prompt"]) for body in healthy.large.asks[before:]]
    assert max(sent) == 2
    assert trace.usage.discarded_tokens > 10
    assert sum(sent) <= len(trace.records) + 2 * trace.usage.large_calls


def test_rows_that_do_not_revise_ask_once_per_token(healthy: Line) -> None:
    before = len(healthy.large.asks)
    (trace,) = compare(healthy, asked(3, count=1))
    sent = len(healthy.large.asks) - before
    assert sent == trace.usage.large_tokens or (healthy.ahead.asks and sent > 0)
    assert all(body["logprobs"] == 4 for body in healthy.large.asks[before:])


def test_what_is_in_question_stands_when_no_large_server_answers() -> None:
    requests = asked(3, count=2, revise_below=0.2)
    with line(on_loss=OnLoss.SMALL) as found:
        found.large.refuse = 503
        traces = found.run(requests)
        expected = alone(spare_pair(), Role.SMALL, requests)
        assert [t.token_ids for t in traces] == [t.token_ids for t in expected]
        assert all(t.records[-1].cause in (None, Cause.UNAVAILABLE) for t in traces)
        assert all(r.lag == r.discarded == 0 for t in traces for r in t.records)
        with pytest.raises(EngineError, match="no server of large"):
            found.run(asked(3, count=1, lossless=True))


# Log-probabilities


def tell_alike(found: Sequence[Trace], expected: Sequence[Trace]) -> None:
    for trace, other in zip(found, expected, strict=True):
        for record, wanted in zip(trace.records, other.records, strict=True):
            assert record.logprob == pytest.approx(wanted.logprob, abs=1e-5)
            for tops, others in ((record.top_logprobs, wanted.top_logprobs),
                                 (record.proposals, wanted.proposals)):  # fmt: skip
                if others is None:
                    assert tops is None
                    continue
                assert [i for i, _ in tops or ()] == [i for i, _ in others]
                assert [v for _, v in tops or ()] == pytest.approx([v for _, v in others], abs=1e-5)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8}, {"repetition_penalty": 1.3}])
@pytest.mark.parametrize(
    "fields",
    [{"logprobs": 0}, {"logprobs": 3}, {"logprobs": 20, "revise_below": 0.2}, {"proposals": 5},
     {"logprobs": 2, "proposals": 4, "max_lag": 2}, {"logprobs": 20, "threshold": 0.0}],
)  # fmt: skip
def test_log_probabilities_are_those_of_whoever_wrote(
    healthy: Line, fields: dict, sampling: dict
) -> None:
    requests = asked(11, sampling, **fields)
    tell_alike(compare(healthy, requests), mixed(spare_pair(), requests, MIDDLE))


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("plugin", [True, False])
def test_a_model_alone_tells_them_too(role: Role, plugin: bool) -> None:
    requests = asked(12, count=2, logprobs=4)
    with line(plugin_in_large=plugin) as found:
        traces = found.run(requests, [role] * 2)
        tell_alike(traces, alone(spare_pair(), role, requests))
        if not plugin:
            tell_alike(found.run(requests), mixed(spare_pair(), requests, MIDDLE))


def test_a_server_that_tells_too_few_is_one_sentence() -> None:
    with line() as found:
        found.small.most_logprobs = 20
        found.run(asked(3, logprobs=16))
        with pytest.raises(RequestError, match=r"21.*start it with a higher --max-logprobs"):
            found.run(asked(3, logprobs=17))


@given(
    logprobs=st.dictionaries(st.integers(0, 60), st.floats(-40, 0, width=32), min_size=1),
    score=st.floats(0, 1, width=32), handed_over=st.booleans(), data=st.data(),
)  # fmt: skip
def test_what_travels_as_logits_comes_back_exactly(
    logprobs: dict, score: float, handed_over: bool, data: st.DataObject
) -> None:
    reserved = ReservedIds(61, 62, 63)
    proposed = data.draw(st.sampled_from(sorted(logprobs)))
    written = reserved.hand_over if handed_over else proposed
    step = Step(written, proposed, score, 1.5, handed_over, logprobs)
    row_V = torch.zeros(64)
    fill(row_V, step, reserved)
    assert int(row_V.argmax()) == written
    told = len(logprobs) + 3
    values, ids = row_V.topk(told)
    assert (row_V > -torch.inf).sum() == told
    values = {i: max(v, -9999.0) for i, v in zip(ids.tolist(), values.tolist(), strict=True)}
    found = read_step(written, values, reserved)
    if handed_over:  # its own is raised above the others, which costs a few bits
        rounded = pytest.approx(max(logprobs[proposed], -30.0), abs=4e-6)
        assert found.logprobs[proposed] == rounded
        step = dataclasses.replace(step, logprobs=logprobs | {proposed: found.logprobs[proposed]})
    assert found == step


# Policies that remember


@few
@given(
    seed=SEEDS, policy=st.sampled_from(HYSTERESIS), max_lag=MAX_LAGS,
    share=st.sampled_from([None, 0.3]), threshold=st.sampled_from([0.0, 0.55, 0.62, 0.7, 1.5]),
)  # fmt: skip
def test_a_policy_remembers_a_row_across_servers(
    healthy: Line, seed: int, policy: Momentum | RollingWindow, max_lag: int | None,
    share: float | None, threshold: float,
) -> None:  # fmt: skip
    compare(healthy, asked(seed, policy=policy, max_lag=max_lag, threshold=threshold,
                           max_large_fraction=share))  # fmt: skip


@pytest.mark.parametrize("ahead", AHEAD)
@pytest.mark.parametrize("policy", HYSTERESIS)
def test_steps_that_are_computed_twice_and_streams_that_break_are_remembered_once(
    policy: Momentum | RollingWindow, ahead: Ahead
) -> None:
    with line(ahead=ahead) as found:
        found.small.stutters, found.small.break_after = True, 4
        requests = asked(4, {"temperature": 0.8}, policy=policy)
        traces = compare(found, requests)
        assert any(r.writer is Role.LARGE for t in traces for r in t.records)
        plain = mixed(spare_pair(), asked(4, {"temperature": 0.8}), MIDDLE)
        assert [t.token_ids for t in traces] != [t.token_ids for t in plain]


def test_a_policy_of_somebody_elses_is_refused_by_name(healthy: Line) -> None:
    class Mine(Momentum):
        pass

    with pytest.raises(RequestError, match="a Mine has no name"):
        healthy.run(asked(3, policy=Mine(), sampling={"temperature": 0.0}))
