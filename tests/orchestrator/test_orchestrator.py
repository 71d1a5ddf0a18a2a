"""The orchestrator against the in-process loop: the same tokens, whatever fails in between."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator

import pytest

from crossroads.decoding.mixed import MixedModels
from crossroads.errors import BusyError, ClosedError, EngineError, RequestError
from crossroads.routing.choose import ChosenRouter
from crossroads.routing.routers.heuristics import entropy
from crossroads.sampling import SamplingParams
from crossroads.types import Cause, OnLoss, Role
from crossroads.vllm.between import Ahead
from crossroads.vllm.pair import ElsewherePair
from laws.pairs import VOCAB, alone, mixed, random_requests
from orchestrator.lines import AHEAD, MIDDLE, SPARE, Line, line, same, spare_pair
from orchestrator.patience import HASTY

PENALISED = SamplingParams(frequency_penalty=1.0)


@pytest.fixture(scope="module", params=AHEAD)
def healthy(request: pytest.FixtureRequest) -> Iterator[Line]:
    with line(ahead=request.param) as found:
        yield found


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("threshold", [0.0, 0.6, MIDDLE, 1.5])
def test_it_writes_what_the_in_process_loop_writes(
    healthy: Line, threshold: float, temperature: float
) -> None:
    requests = [
        dataclasses.replace(r, threshold=threshold)
        for r in random_requests(5, 3, temperature, vocab=VOCAB - SPARE)
    ]
    same(healthy.run(requests), mixed(spare_pair(), requests, MIDDLE))


@pytest.mark.parametrize(
    "fields",
    [
        {"max_lag": 0},
        {"max_lag": 3},
        {"large_budget": 2},
        {"max_large_fraction": 0.25, "threshold": 0.0},
        {"max_large_fraction": 0.29, "max_lag": 2},
        {"stop": ("7", "A")},
        {"max_tokens": 1},
        {"max_tokens": 400},
    ],
)
def test_every_limit_means_what_it_means_in_process(healthy: Line, fields: dict) -> None:
    requests = [
        dataclasses.replace(r, **fields) for r in random_requests(4, 9, vocab=VOCAB - SPARE)
    ]
    same(healthy.run(requests), mixed(spare_pair(), requests, MIDDLE))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_penalties_count_from_the_users_prompt_wherever_a_row_is_resumed(
    healthy: Line, temperature: float
) -> None:
    requests = []
    for request in random_requests(4, 5, temperature, vocab=VOCAB - SPARE):
        sampling = dataclasses.replace(
            request.sampling, frequency_penalty=1.2, presence_penalty=0.4, repetition_penalty=1.2
        )
        requests.append(dataclasses.replace(request, sampling=sampling))
    same(healthy.run(requests), mixed(spare_pair(), requests, MIDDLE))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("role", list(Role))
def test_a_model_alone_asks_its_own_server_only(
    healthy: Line, role: Role, temperature: float
) -> None:
    requests = random_requests(3, 4, temperature, vocab=VOCAB - SPARE)
    other = healthy.large if role is Role.SMALL else healthy.small
    before = len(other.requests)
    found = healthy.run(requests, [role] * 3)
    expected = alone(spare_pair(), role, requests)
    assert [t.token_ids for t in found] == [t.token_ids for t in expected]
    assert len(other.requests) == before


def test_the_small_model_is_asked_at_most_once_per_token_of_the_large_one(healthy: Line) -> None:
    before = len(healthy.small.requests), len(healthy.large.asks)
    (trace,) = healthy.run(random_requests(1, 3, vocab=VOCAB - SPARE))
    small, large = len(healthy.small.requests), len(healthy.large.asks)
    asked = large - before[1]
    assert asked == trace.usage.large_tokens or (healthy.ahead.asks and asked > 0)
    assert small - before[0] <= trace.usage.large_tokens + 1


# What goes wrong


@pytest.mark.parametrize("ahead", AHEAD)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_streams_that_break_lose_and_double_nothing(temperature: float, ahead: Ahead) -> None:
    requests = random_requests(4, 8, temperature, vocab=VOCAB - SPARE)
    with line(ahead=ahead) as found:
        found.small.break_after = 3
        same(found.run(requests), mixed(spare_pair(), requests, MIDDLE))


def test_a_dead_replica_is_passed_over_and_prompts_keep_their_server() -> None:
    requests = [
        dataclasses.replace(r, threshold=0.0) for r in random_requests(16, 2, vocab=VOCAB - SPARE)
    ]
    with line(replicas=2) as found:
        found.run(requests)
        # Every prompt's requests went to one server, and both had some to do.
        first = [{tuple(b["prompt"][0][:3]) for b in fake.requests} for fake in found.larges]
        assert first[0].isdisjoint(first[1])
        assert all(first)
        found.larges[0].refuse = 503
        same(found.run(requests), mixed(spare_pair(), requests, MIDDLE))


@pytest.mark.parametrize("ahead", AHEAD)
def test_when_no_large_server_answers_a_row_fails_or_goes_on_as_was_chosen(ahead: Ahead) -> None:
    requests = random_requests(2, 3, vocab=VOCAB - SPARE)
    with line(patience=HASTY, ahead=ahead) as found:
        found.large.refuse = 503
        with pytest.raises(EngineError, match=r"no server of large has answered for 0\.5 s"):
            found.run(requests)
    with line(on_loss=OnLoss.SMALL, patience=HASTY, ahead=ahead) as found:
        found.large.refuse = 503
        traces = found.run(requests)
        expected = alone(spare_pair(), Role.SMALL, requests)
        assert [t.token_ids for t in traces] == [t.token_ids for t in expected]
        lost = [r for t in traces for r in t.records if r.cause is Cause.UNAVAILABLE]
        assert lost
        assert all(r.writer is Role.SMALL and r.lag == 0 for r in lost)
        assert all(r.score >= MIDDLE for r in lost if r.score is not None)


@pytest.mark.parametrize("ahead", AHEAD)
@pytest.mark.parametrize("role", [None, Role.SMALL, Role.LARGE])
def test_a_server_that_ends_answers_early_is_an_error_and_no_endless_wait(
    role: Role | None, ahead: Ahead
) -> None:
    requests = random_requests(1, 3, vocab=VOCAB - SPARE)
    with line(ahead=ahead) as found:
        found.small.silent = found.large.silent = True
        with pytest.raises(EngineError, match="ended an answer before its end"):
            found.run(requests, [role])


def test_a_pair_is_no_longer_than_its_servers() -> None:
    pair = spare_pair()
    models = MixedModels(pair.small, pair.large, entropy(VOCAB), pair.tokenizer, MIDDLE)
    whole = ElsewherePair("p", models, ChosenRouter(models.router, MIDDLE))
    for contexts, length in (((0, 0), 256), ((100, 0), 100), ((300, 80), 80)):
        cut = whole.within(contexts).models
        assert {cut.small.info.context_length, cut.large.info.context_length} == {length}


@pytest.mark.parametrize("ahead", AHEAD)
def test_a_caller_who_leaves_frees_both_servers_at_once(ahead: Ahead) -> None:
    with line(ahead=ahead) as found:
        found.small.delay = 0.02

        async def run() -> None:
            engine = found.engine()
            events = engine.generate(
                dataclasses.replace(
                    random_requests(1, 3, vocab=VOCAB - SPARE)[0], threshold=1.5, max_tokens=200
                )
            )
            await anext(events)
            await events.aclose()  # type: ignore[attr-defined]
            await asyncio.sleep(0.3)
            assert found.small.open_streams == 0
            assert found.small.tokens_sent < 20
            assert (engine.running, engine.waiting) == (0, 0)
            await engine.close()

        asyncio.run(asyncio.wait_for(run(), 30))


def test_a_full_queue_refuses_and_draining_ends_what_runs() -> None:
    with line() as found:
        found.small.delay = 0.02
        request = dataclasses.replace(
            random_requests(1, 3, vocab=VOCAB - SPARE)[0], threshold=1.5, max_tokens=200
        )

        async def run() -> list[object]:
            engine = found.engine(max_rows=1, max_waiting=0)
            news: list[object] = []
            engine.submit(request, news.append)
            await asyncio.sleep(0.1)
            with pytest.raises(BusyError, match="1 requests run and 0 wait"):
                engine.submit(request, news.append)
            assert await engine.drain(0.1) == 1
            with pytest.raises(ClosedError):
                engine.submit(request, news.append)
            return news

        assert isinstance(asyncio.run(asyncio.wait_for(run(), 30))[-1], ClosedError)


def test_servers_without_the_plugin_are_named_or_served_as_far_as_they_go() -> None:
    greedy, sampled = random_requests(2, 3, 0.0), random_requests(1, 3, 0.8)
    greedy = [dataclasses.replace(r, prompt_ids=r.prompt_ids[:5]) for r in greedy]
    with line(plugin_in_large=False) as found:
        same(found.run(greedy), mixed(spare_pair(), greedy, MIDDLE))
        for request in (*sampled, dataclasses.replace(greedy[0], sampling=PENALISED)):
            with pytest.raises(RequestError, match="send temperature 0 and no penalties"):
                found.run([request])
        found.small.router = None
        with pytest.raises(EngineError, match="answers without the Crossroads plugin"):
            found.run(greedy)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [({"lossless": True, "sampling": SamplingParams(0.8)}, "send temperature 0, or leave")],
)
def test_what_two_servers_cannot_do_is_one_sentence(
    healthy: Line, fields: dict, sentence: str
) -> None:
    request = dataclasses.replace(random_requests(1, 3)[0], **fields)
    with pytest.raises(RequestError, match=sentence):
        healthy.run([request])
