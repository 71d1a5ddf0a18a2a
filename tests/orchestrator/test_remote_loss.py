"""The in-process loop when the large model's servers die: what was chosen happens, and no more."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from crossroads.decoding.engine import Engine
from crossroads.decoding.mixed import MixedLoop, MixedModels, generate
from crossroads.decoding.request import Request
from crossroads.errors import EngineError, UnreachableError
from crossroads.models.base import CausalLM, Want
from crossroads.models.remote import RemoteLM
from crossroads.models.server_pool import Patience
from crossroads.routing.routers.heuristics import entropy
from crossroads.types import Cause, FinishReason, OnLoss, Role, Trace
from laws.pairs import VOCAB, alone, mixed, random_requests, scripted_pair
from orchestrator.fake_server import FakeServer, fake_server
from orchestrator.patience import HASTY, STEADY

MIDDLE = 0.65


@contextmanager
def remote(patience: Patience = STEADY) -> Iterator[tuple[MixedModels, FakeServer]]:
    pair = scripted_pair()
    with fake_server(pair.large, None) as fake:
        model = RemoteLM(pair.large.info, [fake.url], patience)
        try:
            yield MixedModels(pair.small, model, entropy(VOCAB), pair.tokenizer, MIDDLE), fake
            assert model.alive == 0
        finally:
            model.close()


def wait_for(model: CausalLM) -> None:
    """Wait until a model knows that a server of its is up."""
    assert isinstance(model, RemoteLM)
    end = time.monotonic() + 30
    while not model._client.available and time.monotonic() < end:
        time.sleep(0.01)


def requests_of(count: int, **fields: object) -> list[Request]:
    return [dataclasses.replace(r, max_tokens=30, **fields) for r in random_requests(count, 3)]


def run(
    models: MixedModels,
    requests: list[Request],
    at_token: Callable[[int], None] = lambda count: None,
    *,
    overlap: bool = False,
) -> list[Trace]:
    """Return the traces; `at_token` hears how many tokens there are, of all rows."""
    count = 0

    def on_token(_open: int) -> None:
        nonlocal count
        count += 1
        at_token(count)

    found = generate(models, requests, on_token=on_token, overlap=overlap, on_loss=OnLoss.SMALL)
    return [trace for _, trace in sorted(found, key=lambda pair: pair[0])]


@pytest.mark.parametrize(
    ("fields", "overlap"), [({"max_lag": 3}, False), ({"revise_below": 0.1, "max_lag": 4}, True)]
)
def test_without_a_loss_nothing_is_different(fields: dict, overlap: bool) -> None:
    requests = requests_of(2, **fields)
    expected = mixed(scripted_pair(), requests, MIDDLE)
    with remote() as (models, _):
        found = run(models, requests, overlap=overlap)
    assert [t.token_ids for t in found] == [t.token_ids for t in expected]
    assert [t.usage for t in found] == [t.usage for t in expected]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("fields", [{"max_lag": 3}, {"threshold": 0.0}])
@pytest.mark.parametrize("loss", [0, 20])
def test_before_the_loss_the_row_is_as_ever_and_after_it_the_small_models(
    fields: dict, loss: int, overlap: bool
) -> None:
    requests = requests_of(3, **fields)
    quiet = mixed(scripted_pair(), requests, MIDDLE)
    with remote() as (models, fake):

        def kill(count: int) -> None:
            fake.refuse = 503 if count >= loss else 0

        if loss == 0:
            fake.refuse = 503
        found = run(models, requests, kill, overlap=overlap)
    lost_any = False
    for request, trace, expected in zip(requests, found, quiet, strict=True):
        lost = [r.position for r in trace.records if r.cause is Cause.UNAVAILABLE]
        lost_any |= bool(lost)
        at = lost[0] if lost else len(trace.records)
        assert trace.token_ids[:at] == expected.token_ids[:at]
        assert all(r.writer is Role.SMALL and r.lag == 0 for r in trace.records[at:])
        if not lost:
            assert trace.token_ids == expected.token_ids
            continue
        prefix = (*request.prompt_ids, *trace.token_ids[:at])
        rest = dataclasses.replace(request, prompt_ids=prefix, max_tokens=request.max_tokens - at)
        (small,) = alone(scripted_pair(), Role.SMALL, [rest])
        assert trace.token_ids[at:] == small.token_ids
    assert lost_any


def test_a_dead_server_is_asked_once_by_a_row_and_routing_goes_on_when_it_is_back() -> None:
    requests = requests_of(2, threshold=0.0)
    with remote() as (models, fake):
        fake.refuse = 503
        before = len(fake.requests)

        def revive(count: int) -> None:
            if count == 30:
                assert len(fake.requests) <= before + len(requests)
                fake.refuse = 0
                wait_for(models.large)

        found = run(models, requests, revive)
    causes = [r.cause for trace in found for r in trace.records]
    assert Cause.UNAVAILABLE in causes
    assert Cause.ROUTER in causes
    for trace in found:  # lost, and then routed again
        routed = [r.cause is Cause.ROUTER for r in trace.records]
        assert routed == sorted(routed)


def test_a_server_that_stands_still_holds_nobody_up_twice() -> None:
    patience = dataclasses.replace(STEADY, token=0.3, connect=0.3)
    requests = requests_of(3, threshold=0.0)
    with remote(patience) as (models, fake):
        fake.asleep = 60.0
        began = time.monotonic()
        found = run(models, requests)
        assert time.monotonic() - began < 30
    expected = alone(scripted_pair(), Role.SMALL, requests)
    assert [t.token_ids for t in found] == [t.token_ids for t in expected]


def test_a_server_that_says_it_is_there_and_fails_is_asked_less_and_less() -> None:
    with remote() as (models, fake):
        fake.wedged = True
        cache, before = models.large.new_cache(), len(fake.requests)
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            with pytest.raises(UnreachableError):
                models.large.extend([cache], [[5]], Want(insist=False))
            time.sleep(0.005)
        assert 2 <= len(fake.requests) - before <= 7  # after 0, 0.05, 0.15, 0.35, 0.75, 1.25 s
        fake.wedged = False
        for _ in range(500):
            try:
                models.large.extend([cache], [[5]], Want(insist=False))
                break
            except UnreachableError:
                time.sleep(0.01)
        assert cache.length == 1
        cache.release()


def test_what_a_row_that_revises_had_in_question_stands() -> None:
    requests = requests_of(3, revise_below=0.1, max_lag=4)
    with remote() as (models, fake):
        fake.refuse = 503
        found = run(models, requests)
    expected = alone(scripted_pair(), Role.SMALL, requests)
    assert [t.token_ids for t in found] == [t.token_ids for t in expected]
    assert all(t.finish_reason is not FinishReason.ERROR for t in found)


def test_a_lossless_row_fails_and_the_others_do_not_notice() -> None:
    plain, lossless = requests_of(2)
    lossless = dataclasses.replace(lossless, lossless=True, max_lag=3)
    with remote() as (models, fake):
        fake.refuse = 503
        loop = MixedLoop(models, on_loss=OnLoss.SMALL)
        first, second = loop.add(plain), loop.add(lossless)
        events = []
        while loop.active:
            events += loop.step()
        ends = {event.row: event for event in events if event.trace is not None}
        loop.close()
    assert ends[second].error is not None
    assert "no server of large is up" in ends[second].error
    (expected,) = alone(scripted_pair(), Role.SMALL, [plain])
    assert ends[first].trace is not None
    assert ends[first].trace.token_ids == expected.token_ids


def test_the_large_model_alone_fails_without_delay_where_others_would_wait_with_it() -> None:
    (request,) = requests_of(1)

    async def both(models: MixedModels) -> Trace | None:
        async with Engine(models, overlap=True, on_loss=OnLoss.SMALL) as engine:
            with pytest.raises(EngineError, match="no server of large is up"):
                async for _ in engine.generate(request, alone=Role.LARGE):
                    pass
            trace = None
            async for event in engine.generate(request):
                trace = event.trace
            return trace

    with remote() as (models, fake):
        fake.refuse = 503
        began = time.monotonic()
        trace = asyncio.run(both(models))
        assert time.monotonic() - began < 30
    assert trace is not None
    assert trace.token_ids == alone(scripted_pair(), Role.SMALL, [request])[0].token_ids


def test_who_insists_is_told_that_nobody_answered() -> None:
    with remote(HASTY) as (models, fake):
        fake.refuse = 503
        cache = models.large.new_cache()
        with pytest.raises(UnreachableError, match="has answered for"):
            models.large.extend([cache], [[5]])
        with pytest.raises(UnreachableError, match="is up"):
            models.large.extend([cache], [[5]], Want(insist=False))
        assert cache.length == 0
        cache.release()
