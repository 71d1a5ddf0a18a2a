"""The async engine: the loop's tokens, requests that come and go, errors that stay in their row."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from crossroads.decoding.engine import Engine
from crossroads.decoding.mixed import MixedModels
from crossroads.decoding.reading import Event
from crossroads.decoding.request import Request
from crossroads.errors import BusyError, ClosedError, EngineError, RequestError
from crossroads.models.pairs import Pair
from crossroads.routing.routers.heuristics import entropy
from crossroads.types import FinishReason, Role, Trace
from laws.pairs import VOCAB, alone, mixed, random_requests, scripted_pair

MIDDLE = 0.65


def models_of(pair: Pair) -> MixedModels:
    return MixedModels(pair.small, pair.large, entropy(VOCAB), pair.tokenizer, MIDDLE)


def endless_pair(max_rows: int = 64) -> Pair:
    """Return a pair whose rows end by their limit alone."""
    pair = scripted_pair(max_rows=max_rows)
    for model in (pair.small, pair.large):
        model._info = dataclasses.replace(model.info, eos_ids=())
    return pair


LONG = dataclasses.replace(random_requests(1, 4)[0], max_tokens=4000)


async def answer(engine: Engine, request: Request) -> list[Event]:
    return [event async for event in engine.generate(request)]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("max_rows", [1, 3])
def test_every_request_gets_its_own_tokens(max_rows: int, overlap: bool) -> None:
    pair = scripted_pair()
    requests = random_requests(9, 4, 0.7)
    requests[2] = dataclasses.replace(requests[2], lossless=True, max_lag=4)
    expected = mixed(scripted_pair(), requests, MIDDLE)

    async def run() -> Sequence[list[Event]]:
        async with Engine(models_of(pair), max_rows=max_rows, overlap=overlap) as engine:
            return await asyncio.gather(*(answer(engine, request) for request in requests))

    for events, trace in zip(asyncio.run(run()), expected, strict=True):
        assert tuple(event.record.token_id for event in events) == trace.token_ids
        assert events[-1].trace is not None
        assert events[-1].trace.usage == trace.usage
        assert all(event.trace is None for event in events[:-1])
    assert pair.small.alive == pair.large.alive == 0


def test_closing_an_iterator_frees_its_row_for_the_next() -> None:
    pair, second = endless_pair(max_rows=1), random_requests(1, 5)[0]

    async def run() -> list[Event]:
        async with Engine(models_of(pair), max_rows=4) as engine:
            events = engine.generate(LONG)
            await anext(events)
            await events.aclose()
            return await asyncio.wait_for(answer(engine, second), 30)

    assert asyncio.run(run())[-1].trace is not None
    assert pair.small.alive == pair.large.alive == 0
    assert len(pair.small.calls) < LONG.max_tokens, "the closed one wrote on to its end"


def test_a_cancelled_task_frees_its_row_and_one_that_waited_never_joins() -> None:
    pair = endless_pair(max_rows=1)

    async def run() -> list[Event]:
        async with Engine(models_of(pair)) as engine:
            running = asyncio.create_task(answer(engine, LONG))
            waiting = asyncio.create_task(answer(engine, LONG))
            await asyncio.sleep(0.05)
            waiting.cancel()
            running.cancel()
            await asyncio.gather(running, waiting, return_exceptions=True)
            return await asyncio.wait_for(answer(engine, random_requests(1, 5)[0]), 30)

    assert asyncio.run(run())[-1].trace is not None
    assert pair.small.alive == pair.large.alive == 0


def test_a_request_that_cannot_be_served_is_refused_before_it_starts() -> None:
    pair = scripted_pair()

    async def run() -> None:
        async with Engine(models_of(pair)) as engine:
            with pytest.raises(RequestError, match="the prompt is empty"):
                await answer(engine, Request(()))
            with pytest.raises(RequestError, match="context holds 4096"):
                await answer(engine, Request((1,) * 4096))

    asyncio.run(run())
    assert pair.small.calls == []


def test_an_engine_that_dies_tells_everyone_who_waits() -> None:
    pair = scripted_pair()

    def broken(*_: Any) -> None:
        raise ValueError("a bug")

    pair.large.extend = broken
    requests = [dataclasses.replace(r, threshold=0.0) for r in random_requests(3, 4)]

    async def run() -> list[Any]:
        async with Engine(models_of(pair), max_rows=1) as engine:
            first = await asyncio.wait_for(
                asyncio.gather(*(answer(engine, r) for r in requests), return_exceptions=True), 30
            )
            with pytest.raises(EngineError, match="the engine stopped: a bug"):
                await answer(engine, requests[0])
            return first

    for error in asyncio.run(run()):
        assert isinstance(error, EngineError)
        assert "a bug" in str(error)
    assert pair.small.alive == pair.large.alive == 0


def test_closing_the_engine_ends_what_runs() -> None:
    pair = endless_pair()

    async def run() -> None:
        engine = Engine(models_of(pair))
        running = asyncio.create_task(answer(engine, LONG))
        await asyncio.sleep(0.05)
        await engine.close()
        await engine.close()
        with pytest.raises(EngineError, match="the engine was closed"):
            await running
        with pytest.raises(EngineError, match="the engine was closed"):
            await answer(engine, LONG)

    asyncio.run(run())
    assert pair.small.alive == pair.large.alive == 0


def test_a_trace_says_how_it_ended() -> None:
    pair, (request,) = scripted_pair(), random_requests(1, 4)

    async def run() -> list[Event]:
        async with Engine(models_of(pair)) as engine:
            return await answer(engine, request)

    trace = asyncio.run(run())[-1].trace
    assert trace is not None
    assert trace.finish_reason in {FinishReason.EOS, FinishReason.LENGTH}


def test_a_model_alone_answers_beside_mixed_rows_and_the_other_is_not_asked() -> None:
    requests = random_requests(6, 4, 0.7)
    wants = [None, Role.SMALL, Role.LARGE] * 2
    reference = scripted_pair()
    expected = {
        None: mixed(reference, requests, MIDDLE),
        Role.SMALL: alone(reference, Role.SMALL, requests),
        Role.LARGE: alone(reference, Role.LARGE, requests),
    }
    pair = scripted_pair()

    async def run(overlap: bool) -> Sequence[Trace | None]:
        async with Engine(models_of(pair), max_rows=4, overlap=overlap) as engine:

            async def one(request: Request, role: Role | None) -> Trace | None:
                return [e async for e in engine.generate(request, alone=role)][-1].trace

            return await asyncio.gather(*map(one, requests, wants))

    for overlap in (False, True):
        for i, trace in enumerate(asyncio.run(run(overlap))):
            assert trace is not None
            assert trace.token_ids == expected[wants[i]][i].token_ids
    assert pair.small.alive == pair.large.alive == 0

    async def small_only() -> None:
        async with Engine(models_of(pair)) as engine:
            async for _ in engine.generate(requests[0], alone=Role.SMALL):
                pass

    before = len(pair.large.calls)
    asyncio.run(small_only())
    assert len(pair.large.calls) == before


def test_a_full_queue_refuses_and_takes_again_once_there_is_room() -> None:
    pair = endless_pair()

    async def run() -> None:
        async with Engine(models_of(pair), max_rows=1, max_waiting=1) as engine:
            first, second = (asyncio.create_task(answer(engine, LONG)) for _ in range(2))
            await asyncio.sleep(0.05)
            assert (engine.running, engine.waiting) == (1, 1)
            with pytest.raises(BusyError, match="1 requests run and 1 wait"):
                await answer(engine, LONG)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await asyncio.sleep(0.05)
            short = random_requests(1, 5)[0]
            third = asyncio.create_task(answer(engine, short))
            await asyncio.sleep(0.05)
            second.cancel()
            assert (await asyncio.wait_for(third, 30))[-1].trace is not None
            await asyncio.gather(second, return_exceptions=True)
            assert (engine.running, engine.waiting) == (0, 0)

    asyncio.run(run())


@pytest.mark.parametrize("seconds", [30.0, 0.2])
def test_draining_takes_nothing_new_and_ends_what_runs(seconds: float) -> None:
    pair = endless_pair()
    request = LONG if seconds < 1 else dataclasses.replace(LONG, max_tokens=200)

    async def run() -> tuple[list[Any], int]:
        engine = Engine(models_of(pair), max_rows=1)
        running = [asyncio.create_task(answer(engine, request)) for _ in range(2)]
        await asyncio.sleep(0.05)
        draining = asyncio.create_task(engine.drain(seconds))
        await asyncio.sleep(0)
        with pytest.raises(ClosedError, match="shutting down"):
            await answer(engine, request)
        return await asyncio.gather(*running, return_exceptions=True), await draining

    ended, cut_off = asyncio.run(run())
    if seconds > 1:
        assert cut_off == 0
        assert all(events[-1].trace is not None for events in ended)
    else:
        assert cut_off == 2
        assert all(isinstance(error, ClosedError) for error in ended)
    assert pair.small.alive == pair.large.alive == 0
