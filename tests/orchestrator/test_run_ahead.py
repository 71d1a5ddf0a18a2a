"""The small model runs ahead of the large one: how far, what that saves, and what it costs.

That the tokens are the same whether it does or not is a law of test_orchestrator.py.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import numpy as np
import pytest

from crossroads.decoding.request import Request
from crossroads.errors import EngineError
from crossroads.models.base import CausalLM
from crossroads.models.scripted import ScriptedLM
from crossroads.models.vllm_replies import WireToken
from crossroads.types import Cause, OnLoss, Role, Trace
from crossroads.vllm.between import Ahead
from crossroads.vllm.run_ahead import RunAhead
from laws.pairs import VOCAB, mixed, random_requests
from orchestrator.lines import MIDDLE, SPARE, Line, line, spare_pair
from orchestrator.patience import STEADY


def differs(trace: Trace) -> int:
    """Return how often the large model wrote something else than was proposed."""
    return sum(record.replaced for record in trace.records)


def long_request(**fields: object) -> Request:
    """Return a request of some length in which the large model agrees and differs."""
    for seed in range(1000):
        (request,) = random_requests(1, seed, vocab=VOCAB - SPARE, max_tokens=60)
        request = dataclasses.replace(request, **fields)
        (trace,) = mixed(spare_pair(), [request], MIDDLE)
        if len(trace.records) >= 20 and 1 < differs(trace) < trace.usage.large_tokens - 1:
            return request
    raise AssertionError("no seed has one")


def shifted(model: CausalLM) -> ScriptedLM:
    """Return a model that never wants what another one wants."""
    assert isinstance(model, ScriptedLM)

    def logits(prefix: tuple[int, ...]) -> np.ndarray:
        values_V = model._logits(prefix).copy()
        values_V[:-SPARE] = np.roll(values_V[:-SPARE], 1)
        return values_V

    return ScriptedLM(logits, VOCAB, name=model.info.name, context_length=256)


def sent(found: Line, request: Request) -> tuple[Trace, int]:
    """Return a row's trace, and how many tokens the small model's server wrote for it."""
    before = found.small.tokens_sent
    (trace,) = found.run([request])
    return trace, found.small.tokens_sent - before


def test_the_small_model_is_asked_again_only_where_the_large_one_differs() -> None:
    with line(ahead=Ahead(400)) as found:
        (trace,) = found.run([long_request()])
        assert trace.usage.large_tokens > differs(trace) > 0
        ends_by_large = trace.records[-1].writer is Role.LARGE
        asked = 1 + differs(trace)
        assert asked - ends_by_large <= len(found.small.requests) <= asked


def test_it_writes_while_the_large_model_thinks_and_no_further_than_it_may() -> None:
    def written(run_ahead: int) -> tuple[int, int]:
        with line(ahead=Ahead(run_ahead)) as found:
            found.small.delay, found.large.asleep = 0.01, 0.2
            trace, tokens = sent(found, long_request(large_budget=4))
            return tokens, trace.usage.large_calls

    (stops, calls), (short, _), (far, _) = written(0), written(2), written(400)
    assert calls == 4
    assert stops <= 60  # each proposal once
    assert stops < short <= stops + calls * (2 + 1 + 5)  # what is on its way when it is stopped
    assert far > short


@pytest.mark.parametrize("asks", [0, 1, 5])
def test_the_large_model_is_asked_about_so_many_tokens_at_once(asks: int) -> None:
    request = dataclasses.replace(long_request(threshold=0.0), max_tokens=20)
    with line(ahead=Ahead(100, asks), of_one_mind=True) as found:
        found.large.asleep = 0.1
        (trace,) = found.run([request])
        assert found.large.most_waiting == 1 + asks
        assert len(found.large.requests) == len(trace.records) > 6
        assert differs(trace) == 0
        assert len(found.small.requests) == 1
    with line(ahead=Ahead(40, asks)) as found:
        (trace,) = found.run([request])
        in_vain = len(found.large.requests) - len(trace.records)
        assert 0 <= in_vain <= differs(trace) * asks


def test_no_request_outlives_its_row() -> None:
    with line(ahead=Ahead(40, 5)) as found:
        found.large.asleep = 0.05

        async def run() -> None:
            engine, before = found.engine(), asyncio.all_tasks()
            events = engine.generate(long_request(threshold=0.0))
            await anext(events)
            found.large.asleep = 60.0
            await asyncio.sleep(0.3)  # so that some are asked that would not end by themselves
            await events.aclose()  # type: ignore[attr-defined]
            if left := asyncio.all_tasks() - before:
                await asyncio.wait(left, timeout=10)
            assert all(task.done() for task in left)
            await engine.close()

        asyncio.run(asyncio.wait_for(run(), 60))


def test_what_was_written_in_vain_is_counted() -> None:
    with line(ahead=Ahead(400)) as found:
        found.large.asleep = 0.3

        async def run() -> tuple[Trace, int]:
            engine = found.engine()
            events = [event async for event in engine.generate(long_request(threshold=0.0))]
            await engine.close()
            assert events[-1].trace is not None
            return events[-1].trace, engine.discarded_ahead

        trace, thrown_away = asyncio.run(asyncio.wait_for(run(), 60))
        kept = len(trace.records)
        assert differs(trace) > 0
        assert 0 < thrown_away <= found.small.tokens_sent - kept + 1


@pytest.mark.parametrize("agrees", [True, False])
def test_where_they_seldom_agree_rows_stop_at_each_hand_over(agrees: bool) -> None:
    requests = [long_request(threshold=0.0) for _ in range(3)]
    with line(ahead=Ahead(40, 2), of_one_mind=True) as found:
        found.large.asleep = 0.01
        if not agrees:
            found.large.model = shifted(found.large.model)

        async def run() -> list[int]:
            engine, discarded = found.engine(), []
            for request in requests:
                async for _ in engine.generate(request):
                    pass
                discarded.append(engine.discarded_ahead)
            await engine.close()
            return discarded

        first, *later = asyncio.run(asyncio.wait_for(run(), 60))
        small = len(found.small.requests)
        if agrees:
            assert small <= 2 * len(requests)
        else:
            assert first > 0
            assert later == [first] * len(later)
            assert small >= 40


def test_without_the_large_model_it_goes_on_in_one_piece() -> None:
    with line(ahead=Ahead(400), on_loss=OnLoss.SMALL) as found:
        found.large.refuse = 503
        (trace,) = found.run([long_request(threshold=0.0)])
        assert all(record.cause is Cause.UNAVAILABLE for record in trace.records)
        assert len(found.small.requests) == 1


def test_a_server_without_the_plugin_is_named() -> None:
    with line(ahead=Ahead(4)) as found:
        found.small.router = None
        with pytest.raises(EngineError, match="answers without the Crossroads plugin"):
            found.run([long_request()])


# The prompt


def test_a_prompt_is_read_once_where_its_row_will_ask_and_before_it_does() -> None:
    requests = [
        dataclasses.replace(r, threshold=0.0) for r in random_requests(8, 2, vocab=VOCAB - SPARE)
    ]
    with line(replicas=2, ahead=Ahead(prompt=True)) as found:
        found.run(requests)
        assert sum(len(large.requests) - len(large.asks) for large in found.larges) == 8
        for large in found.larges:
            read: list[list[int]] = []
            for body in large.requests:
                (prompt,) = body["prompt"]
                if body not in large.asks:
                    read.append(prompt)
                assert any(prompt[: len(known)] == known for known in read)
            assert read


def test_the_small_model_writes_meanwhile_and_the_first_hand_over_waits() -> None:
    with line(ahead=Ahead(prompt=True)) as found:
        found.large.asleep = 0.3
        found.run([long_request(threshold=0.0)])
        assert found.large.most_waiting == 1
        assert len(found.large.asks) > 2


def test_a_row_that_ends_without_asking_does_not_wait_for_the_prompt() -> None:
    patient = dataclasses.replace(STEADY, token=600.0)
    with line(ahead=Ahead(prompt=True), patience=patient) as found:
        found.large.asleep = 100.0
        request = dataclasses.replace(long_request(), threshold=1.5, max_lag=400)

        async def run() -> None:
            engine, before = found.engine(), asyncio.all_tasks()
            async for _ in engine.generate(request):
                pass
            if left := asyncio.all_tasks() - before:
                await asyncio.wait(left, timeout=10)
            assert all(task.done() for task in left)
            assert engine.running == 0
            await engine.close()

        asyncio.run(asyncio.wait_for(run(), 60))
        assert len(found.large.requests) == 1


@pytest.mark.parametrize("fields", [{"threshold": 1.5}, {"large_budget": 0},
                                    {"max_large_fraction": 0.001}])  # fmt: skip
def test_a_prompt_that_the_large_model_will_not_need_is_not_read(fields: dict) -> None:
    with line(ahead=Ahead(16, prompt=True)) as found:
        found.run([dataclasses.replace(long_request(threshold=0.0), max_tokens=20, **fields)])
        assert found.large.requests == []


# The reader


def reading(
    take: Callable[[RunAhead], object], count: int, most: int, *, fails: bool = False
) -> tuple[object, int, bool]:
    """Return what `take` does, how many tokens were asked for, and whether the end was seen.

    Tokens come two at a time.
    """
    asked, closed = 0, False

    async def tokens() -> AsyncGenerator[WireToken]:
        nonlocal asked, closed
        try:
            for i in range(count):
                if i % 2 == 0:
                    await asyncio.sleep(0.001)
                asked += 1
                yield WireToken(i, {})
            if fails:
                raise EngineError("no more")
        finally:
            closed = True

    async def run() -> object:
        async with aclosing(RunAhead(tokens(), most)) as found:
            return await take(found)  # type: ignore[misc]

    return asyncio.run(asyncio.wait_for(run(), 20)), asked, closed


async def ids(found: RunAhead) -> list[int]:
    return [token.token_id async for token in found]


@pytest.mark.parametrize("most", [1, 2, 9])
def test_whoever_takes_each_token_at_once_gets_all_of_them_in_order(most: int) -> None:
    assert reading(ids, 9, most) == ([*range(9)], 9, True)


@pytest.mark.parametrize("most", [1, 2, 3, 8])
def test_whoever_is_away_finds_as_many_as_may_wait_and_the_end(most: int) -> None:
    async def late(found: RunAhead) -> list[int]:
        first = await anext(found)
        await asyncio.sleep(0.2)
        assert found.left_over == most + 1
        return [first.token_id, *await ids(found)]

    assert reading(late, 100, most) == ([*range(most + 2)], most + 2, True)


def test_an_error_comes_after_the_tokens_before_it() -> None:
    async def takes(found: RunAhead) -> list[int]:
        await asyncio.sleep(0.05)
        taken = [(await anext(found)).token_id for _ in range(5)]
        with pytest.raises(EngineError, match="no more"):
            await anext(found)
        return taken

    assert reading(takes, 5, 9, fails=True) == ([*range(5)], 5, True)


def test_leaving_closes_the_request() -> None:
    async def first(found: RunAhead) -> int:
        return (await anext(found)).token_id

    taken, asked, closed = reading(first, 10_000, 10_000)
    assert (taken, closed) == (0, True)
    assert asked < 10_000
