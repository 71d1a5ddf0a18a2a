"""An engine whose large model is behind a server: alone, it writes an answer by one request."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable

import pytest

from crossroads.decoding.engine import Engine
from crossroads.decoding.mixed import MixedModels
from crossroads.decoding.reading import Event
from crossroads.decoding.request import Request
from crossroads.errors import EngineError, RequestError
from crossroads.types import OnLoss, Role, Trace
from laws.pairs import alone, mixed, random_requests, scripted_pair
from orchestrator.patience import HASTY
from orchestrator.test_remote_loss import MIDDLE, remote


def run(
    models: MixedModels, work: Callable[[Engine], Awaitable[None]], on_loss: OnLoss = OnLoss.FAIL
) -> None:
    async def main() -> None:
        async with Engine(models, overlap=True, on_loss=on_loss) as engine:
            await work(engine)

    asyncio.run(asyncio.wait_for(main(), 60))


async def trace_of(engine: Engine, request: Request, role: Role | None = Role.LARGE) -> Trace:
    events = [event async for event in engine.generate(request, alone=role)]
    trace = events[-1].trace
    assert trace is not None
    assert [event.record for event in events] == list(trace.records)
    return trace


def requests_of(count: int, seed: int, **fields: object) -> list[Request]:
    requests = random_requests(count, seed)
    return [dataclasses.replace(request, **{"max_tokens": 60} | fields) for request in requests]


def same(found: Trace, expected: Trace) -> None:
    assert found.token_ids == expected.token_ids
    assert (found.text, found.finish_reason) == (expected.text, expected.finish_reason)
    assert found.usage == expected.usage
    for record, other in zip(found.records, expected.records, strict=True):
        assert record.logprob == pytest.approx(other.logprob, abs=1e-5)


@pytest.mark.parametrize("fields", [{}, {"stop": ("A", "QQ")}, {"stop_ids": (7, 9, 11)}])
def test_answers_are_the_in_process_loops_beside_routed_ones(fields: dict) -> None:
    requests, routed = requests_of(6, 5, **fields), requests_of(2, 6)
    told = requests_of(2, 7, logprobs=3)
    with remote() as (models, fake):

        async def work(engine: Engine) -> None:
            found = await asyncio.gather(
                *(trace_of(engine, request) for request in (*requests, *told)),
                *(trace_of(engine, request, None) for request in routed),
            )
            everything = [*requests, *told]
            for trace, expected in zip(
                found, alone(scripted_pair(), Role.LARGE, everything), strict=False
            ):
                same(trace, expected)
            for trace, expected in zip(
                found[len(everything) :], mixed(scripted_pair(), routed, MIDDLE), strict=True
            ):
                same(trace, expected)

        run(models, work)
        prompts = [body["prompt"] for body in fake.requests]
        assert all(prompts.count(list(request.prompt_ids)) == 1 for request in requests)


def test_an_answer_is_one_request_and_the_token_by_token_way_is_for_log_probabilities() -> None:
    (request,), (told,) = requests_of(1, 5), requests_of(1, 5, logprobs=2)
    with remote() as (models, fake):

        async def work(engine: Engine) -> None:
            trace = await trace_of(engine, request)
            assert len(fake.requests) == 1
            assert (await trace_of(engine, told)).token_ids == trace.token_ids
            assert len(fake.requests) == 1 + len(trace.records) > 5

        run(models, work)


def test_leaving_closes_the_request_and_nobody_else_notices() -> None:
    first, second = requests_of(2, 5)
    with remote() as (models, fake):
        fake.delay = 0.01

        async def leave(engine: Engine) -> None:
            events = engine.generate(dataclasses.replace(first, max_tokens=200), alone=Role.LARGE)
            await anext(events)
            await events.aclose()  # type: ignore[attr-defined]

        async def work(engine: Engine) -> None:
            _, trace = await asyncio.gather(leave(engine), trace_of(engine, second))
            same(trace, alone(scripted_pair(), Role.LARGE, [second])[0])
            assert engine.running == 0
            end = time.monotonic() + 10
            while fake.open_streams and time.monotonic() < end:
                await asyncio.sleep(0.01)
            assert fake.open_streams == 0

        run(models, work)


def test_a_slow_server_holds_up_nobody_who_does_not_need_it() -> None:
    (request,), (small,) = requests_of(1, 5), requests_of(1, 6, threshold=1.5)
    with remote() as (models, fake):
        fake.asleep = 3.0

        async def work(engine: Engine) -> None:
            waiting = asyncio.create_task(trace_of(engine, request))
            await asyncio.sleep(0.1)
            began = time.monotonic()
            await trace_of(engine, small, Role.SMALL)
            await trace_of(engine, small, None)
            assert not waiting.done()
            assert time.monotonic() - began < 2.5
            same(await waiting, alone(scripted_pair(), Role.LARGE, [request])[0])

        run(models, work)


@pytest.mark.parametrize("on_loss", list(OnLoss))
def test_a_server_that_dies_ends_its_rows_with_one_sentence(on_loss: OnLoss) -> None:
    (request,), (small,) = requests_of(1, 5), requests_of(1, 6, threshold=1.5)
    sentence = "has answered for 0.5 s" if on_loss is OnLoss.FAIL else "no server of large is up"
    with remote(HASTY) as (models, fake):
        fake.break_after, events = 3, list[Event]()

        async def work(engine: Engine) -> None:
            async def collect() -> None:
                async for event in engine.generate(request, alone=Role.LARGE):
                    events.append(event)
                    fake.refuse = 503

            with pytest.raises(EngineError, match=sentence):
                await collect()
            await trace_of(engine, small, None)

        run(models, work, on_loss)
        expected = alone(scripted_pair(), Role.LARGE, [request])[0].token_ids
        found = tuple(event.record.token_id for event in events if event.record is not None)
        assert 0 < len(found) <= 3
        assert found == expected[: len(found)]


def test_sampling_is_refused_as_before() -> None:
    (request,) = random_requests(1, 5, 0.8)
    with remote() as (models, _):

        async def work(engine: Engine) -> None:
            with pytest.raises(RequestError, match="send temperature 0 and no penalties"):
                await trace_of(engine, request)

        run(models, work)
