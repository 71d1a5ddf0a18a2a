"""The orchestrator against the in-process loop: the same tokens, whatever fails in between."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest

from crossroads.decoding.mixed import MixedModels
from crossroads.decoding.request import Request
from crossroads.errors import BusyError, ClosedError, EngineError, RequestError
from crossroads.models.pairs import Pair
from crossroads.models.remote_client import Patience, VllmClient
from crossroads.models.scripted import ScriptedLM, ScriptedTokenizer
from crossroads.routing.choose import ChosenRouter
from crossroads.routing.routers.base import Router
from crossroads.routing.routers.heuristics import entropy, never
from crossroads.sampling import SamplingParams
from crossroads.types import Cause, OnLoss, Role, Trace
from crossroads.vllm.engine import Servers, VllmEngine
from crossroads.vllm.pair import ElsewherePair
from laws.pairs import VOCAB, alone, mixed, random_requests, scripted_pair
from orchestrator.fake_server import FakeServer, fake_server

MIDDLE = 0.65
SPARE = 3
PENALISED = SamplingParams(frequency_penalty=1.0)
HASTY = Patience(connect=1.0, token=5.0, down=0.05, give_up=1.0)


class SpareTokenizer(ScriptedTokenizer):
    """Some of its ids stand for nothing."""

    def pieces(self) -> Sequence[bytes | None]:
        return [*list(super().pieces())[:-SPARE], *[None] * SPARE]


def _without_spare_ids(model: ScriptedLM) -> ScriptedLM:
    def logits(prefix: tuple[int, ...]) -> np.ndarray:
        values_V = model._logits(prefix).copy()
        values_V[-SPARE:] = -1e9
        return values_V

    return ScriptedLM(logits, VOCAB, name=model.info.name, context_length=256)


def spare_pair() -> Pair:
    pair = scripted_pair()
    small, large = _without_spare_ids(pair.small), _without_spare_ids(pair.large)
    return Pair("scripted", small, large, SpareTokenizer(VOCAB))


@dataclasses.dataclass(frozen=True)
class Line:
    """Two fake servers and what joins them."""

    small: FakeServer
    larges: tuple[FakeServer, ...]
    models: MixedModels
    servers: Servers

    @property
    def large(self) -> FakeServer:
        return self.larges[0]

    def run(self, requests: Sequence[Request], roles: Sequence[Role | None] = ()) -> list[Trace]:
        """Return the traces of requests that run together."""

        async def one(engine: VllmEngine, request: Request, role: Role | None) -> Trace:
            events = [event async for event in engine.generate(request, alone=role)]
            trace = events[-1].trace
            assert trace is not None
            assert [e.record for e in events] == list(trace.records)
            return trace

        async def run() -> list[Trace]:
            engine = VllmEngine(self.models, self.servers, max_rows=4)
            try:
                asked = roles or [None] * len(requests)
                rows = (one(engine, q, r) for q, r in zip(requests, asked, strict=True))
                return await asyncio.gather(*rows)
            finally:
                await engine.close()

        return asyncio.run(asyncio.wait_for(run(), 60))


@contextmanager
def line(
    *,
    plugin_in_large: bool = True,
    replicas: int = 1,
    on_loss: OnLoss = OnLoss.FAIL,
    router: Router | None = None,
) -> Iterator[Line]:
    """Serve a pair."""
    pair, chosen = spare_pair(), router or entropy(VOCAB)
    second = never(VOCAB) if plugin_in_large else None
    with (
        fake_server(pair.small, chosen) as small,
        fake_server(pair.large, second) as large,
        fake_server(pair.large, second) as other,
    ):
        larges = (large, other)[:replicas]
        models = MixedModels(pair.small, pair.large, chosen, pair.tokenizer, MIDDLE)
        servers = Servers(
            VllmClient([small.url], "small", HASTY),
            VllmClient([fake.url for fake in larges], "large", HASTY),
            plugin_in_large,
            on_loss,
        )
        yield Line(small, larges, models, servers)


@pytest.fixture(scope="module")
def healthy() -> Iterator[Line]:
    with line() as found:
        yield found


def same(found: Sequence[Trace], expected: Sequence[Trace]) -> None:
    """Assert that two ways of generating wrote the same, for the same reasons."""
    for trace, other in zip(found, expected, strict=True):
        assert trace.token_ids == other.token_ids
        assert (trace.text, trace.finish_reason) == (other.text, other.finish_reason)
        assert trace.usage == other.usage
        for record, wanted in zip(trace.records, other.records, strict=True):
            assert record.writer == wanted.writer
            assert record.proposed_id == wanted.proposed_id
            assert record.cause == wanted.cause
            assert record.score == pytest.approx(wanted.score, abs=1e-6)
            assert record.entropy == pytest.approx(wanted.entropy, abs=1e-5)


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


def test_the_small_model_is_asked_once_per_stretch_and_never_reads_ahead(healthy: Line) -> None:
    before = len(healthy.small.requests), len(healthy.large.requests)
    (trace,) = healthy.run(random_requests(1, 3, vocab=VOCAB - SPARE))
    small, large = len(healthy.small.requests), len(healthy.large.requests)
    assert large - before[1] == trace.usage.large_tokens
    assert small - before[0] <= trace.usage.large_tokens + 1


# What goes wrong


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_streams_that_break_lose_and_double_nothing(temperature: float) -> None:
    requests = random_requests(4, 8, temperature, vocab=VOCAB - SPARE)
    with line() as found:
        found.small.break_after = 3
        same(found.run(requests), mixed(spare_pair(), requests, MIDDLE))


def test_a_dead_replica_is_passed_over_and_prompts_keep_their_server() -> None:
    requests = [
        dataclasses.replace(r, threshold=0.0) for r in random_requests(6, 2, vocab=VOCAB - SPARE)
    ]
    with line(replicas=2) as found:
        found.run(requests)
        # Every prompt's requests went to one server, and both had some to do.
        first = [{tuple(b["prompt"][:3]) for b in fake.requests} for fake in found.larges]
        assert first[0].isdisjoint(first[1])
        assert all(first)
        found.larges[0].refuse = 503
        same(found.run(requests), mixed(spare_pair(), requests, MIDDLE))


def test_when_no_large_server_answers_a_row_fails_or_goes_on_as_was_chosen() -> None:
    requests = random_requests(2, 3, vocab=VOCAB - SPARE)
    with line() as found:
        found.large.refuse = 503
        with pytest.raises(EngineError, match="no server of large has answered for 1 s"):
            found.run(requests)
    with line(on_loss=OnLoss.SMALL) as found:
        found.large.refuse = 503
        traces = found.run(requests)
        expected = alone(spare_pair(), Role.SMALL, requests)
        assert [t.token_ids for t in traces] == [t.token_ids for t in expected]
        lost = [r for t in traces for r in t.records if r.cause is Cause.UNAVAILABLE]
        assert lost
        assert all(r.writer is Role.SMALL and r.lag == 0 for r in lost)
        assert all(r.score >= MIDDLE for r in lost if r.score is not None)


@pytest.mark.parametrize("role", [None, Role.SMALL, Role.LARGE])
def test_a_server_that_ends_answers_early_is_an_error_and_no_endless_wait(
    role: Role | None,
) -> None:
    requests = random_requests(1, 3, vocab=VOCAB - SPARE)
    with line() as found:
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


def test_a_caller_who_leaves_frees_both_servers_at_once() -> None:
    with line() as found:
        found.small.delay = 0.02

        async def run() -> None:
            engine = VllmEngine(found.models, found.servers)
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
            engine = VllmEngine(found.models, found.servers, max_rows=1, max_waiting=0)
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
    [
        ({"lossless": True}, "revision needs"),
        ({"revise_below": 0.1}, "revision needs"),
        ({"logprobs": 1}, "does not tell log-probabilities"),
    ],
)
def test_what_two_servers_cannot_do_is_one_sentence(
    healthy: Line, fields: dict, sentence: str
) -> None:
    request = dataclasses.replace(random_requests(1, 3)[0], **fields)
    with pytest.raises(RequestError, match=sentence):
        healthy.run([request])
