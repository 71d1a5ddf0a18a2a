"""A tiny pair in two real vLLM servers, against the in-process loop. Run by `./test-vllm`."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import numpy as np
import pytest
import torch

if not os.environ.get("CROSSROADS_VLLM"):
    pytest.skip("needs vLLM; run ./test-vllm", allow_module_level=True)

import builders
from crossroads.decoding.mixed import MixedModels, generate
from crossroads.decoding.request import Request
from crossroads.decoding.single import generate_alone
from crossroads.errors import EngineError, RequestError, RouterError
from crossroads.models.remote_client import VllmClient
from crossroads.models.remote_drawing import ordered
from crossroads.models.remote_wire import NEVER, Order, ReservedIds, read_step
from crossroads.models.transformers import TransformersLM
from crossroads.models.vllm_replies import WireToken
from crossroads.models.vllm_server import (
    MOST_REPORTED,
    RunningServer,
    ServerPlan,
    free_port,
    wait_until_ready,
)
from crossroads.routing.checkpoint import RouterCard, SmallModelId, save_router
from crossroads.routing.policy import IMMEDIATE, Momentum, Policy
from crossroads.routing.routers.neural import NeuralRouter, build_network
from crossroads.sampling import SamplingParams
from crossroads.types import Cause, Role, Trace
from crossroads.vllm.asking import has_plugin
from crossroads.vllm.between import Ahead, Servers
from crossroads.vllm.engine import VllmEngine
from crossroads.vllm.pair import ElsewherePair, describe_pair
from orchestrator.tiny import write_pair

INPUTS = ("entropy", "margin", "proposed_logprob", "top_logprobs", "hidden")
ARGUMENTS = "--dtype float32 --enforce-eager"
MIDDLE = 0.5
SCORES_AGREE = 1e-4  # two engines' float32 sums, through a network


@dataclass(frozen=True)
class Real:
    """Both servers, what they serve, and the same models in this process."""

    small: RunningServer
    large: RunningServer
    pair: ElsewherePair
    local: MixedModels

    def run(
        self,
        requests: Sequence[Request],
        alone: Role | None = None,
        *,
        ordered: bool = True,
        ahead: Ahead = Ahead(),  # noqa: B008
    ) -> list[Trace]:
        """Return the traces of requests that run together.

        ordered: whether the large model gets our orders, or is asked as any server. ahead: as in
        `VllmEngine`.
        """

        async def one(engine: VllmEngine, request: Request) -> Trace:
            events = [event async for event in engine.generate(request, alone=alone)]
            assert events[-1].trace is not None
            return events[-1].trace

        async def run() -> list[Trace]:
            small, large = VllmClient([self.small.url]), VllmClient([self.large.url])
            await small.connect()
            await large.connect()
            assert await has_plugin(large, self.pair.models)
            servers = Servers(small, large, ordered)
            engine = VllmEngine(self.pair.models, servers, ahead=ahead)
            try:
                return await asyncio.gather(*(one(engine, request) for request in requests))
            finally:
                await engine.close()

        return asyncio.run(asyncio.wait_for(run(), 600))

    def expected(self, requests: Sequence[Request]) -> list[Trace]:
        """Return the in-process loop's traces."""
        found = generate(self.local, requests)
        return [trace for _, trace in sorted(found, key=lambda x: x[0])]


def _router(folder: Path, small: TransformersLM) -> Path:
    """Write a router with random weights whose scores spread, over features of every kind."""
    widths = [1, 1, 1, 100, builders.HIDDEN]
    config = {"inputs": list(INPUTS), "widths": widths, "projection": 8, "width": 16, "depth": 2,
              "dropout": 0.0, "members": 1}  # fmt: skip
    torch.manual_seed(5)
    network = build_network("mlp", config)
    card = RouterCard(SmallModelId.of(small.info), "large", "", "tiny", MIDDLE)
    save_router(folder, NeuralRouter("mlp", network, 1.0, 0.0), card)
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    folder = tmp_path_factory.mktemp("pair")
    small, large = write_pair(folder)
    size = {"device": "cpu", "dtype": "float32", "context_length": builders.CONTEXT}
    models = [TransformersLM.load(path, **size) for path in (small, large)]
    router = _router(folder / "router", models[0])
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    plans = [
        ServerPlan("small", str(small), str(router), builders.CONTEXT, 8, folder / "small.log",
                   ARGUMENTS),
        ServerPlan("large", str(large), "never", builders.CONTEXT, 8, folder / "large.log",
                   ARGUMENTS),
    ]  # fmt: skip
    running = {plan.name: RunningServer(plan, free_port()) for plan in plans}
    try:
        wait_until_ready(running, 1800, print)
        pair = describe_pair(
            str(small), str(large), str(router), None, context_length=builders.CONTEXT
        )
        chosen = pair.chosen
        tokenizer = pair.models.tokenizer
        local = MixedModels(models[0], models[1], chosen.router, tokenizer, chosen.threshold)
        yield Real(running["small"], running["large"], pair, local)
    finally:
        for server in running.values():
            server.stop()


def requests_of(count: int, seed: int, temperature: float, **fields: object) -> list[Request]:
    generator = np.random.default_rng(seed)
    found = []
    for i in range(count):
        length = int(generator.integers(3, 40))
        prompt = tuple(int(t) for t in generator.integers(1, builders.END_OF_TEXT, length))
        sampling = SamplingParams(temperature=temperature, top_p=0.95, seed=seed * 100 + i)
        found.append(Request(prompt, max_tokens=30, sampling=sampling, id=str(i), **fields))
    return found


def same(found: Sequence[Trace], expected: Sequence[Trace]) -> None:
    for trace, other in zip(found, expected, strict=True):
        assert trace.token_ids == other.token_ids
        assert (trace.text, trace.finish_reason) == (other.text, other.finish_reason)
        assert trace.usage == other.usage
        for record, wanted in zip(trace.records, other.records, strict=True):
            assert record.writer == wanted.writer
            assert record.proposed_id == wanted.proposed_id
            assert record.score == pytest.approx(wanted.score, abs=SCORES_AGREE)
            assert record.cause == wanted.cause
            assert (record.lag, record.discarded) == (wanted.lag, wanted.discarded)
            for tops, others in ((record.top_logprobs, wanted.top_logprobs),
                                 (record.proposals, wanted.proposals)):  # fmt: skip
                assert (tops is None) == (others is None)
                assert [i for i, _ in tops or ()] == [i for i, _ in others or ()]
                assert [v for _, v in tops or ()] == pytest.approx(
                    [v for _, v in others or ()], abs=SCORES_AGREE
                )
            assert record.logprob == pytest.approx(wanted.logprob, abs=SCORES_AGREE)


@pytest.mark.parametrize("ahead", [Ahead(), Ahead(16, 2, prompt=True)])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_it_writes_what_the_in_process_loop_writes(
    real: Real, temperature: float, ahead: Ahead
) -> None:
    local = real.expected(requests_of(6, 1, temperature))
    scores = sorted(r.score for t in local for r in t.records if r.score is not None)
    cut = scores[int(0.8 * len(scores))] + 1e-3  # a fifth of the tokens, and nobody on the edge
    requests = requests_of(6, 1, temperature, threshold=cut)
    found = real.run(requests, ahead=ahead)
    assert 0 < sum(t.usage.large_tokens for t in found) < sum(len(t.records) for t in found)
    same(found, real.expected(requests))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize(("role", "threshold"), [(Role.LARGE, 0.0), (Role.SMALL, 1.5)])
def test_the_ends_of_the_threshold_are_the_models_alone(
    real: Real, role: Role, threshold: float, temperature: float
) -> None:
    requests = requests_of(4, 2, temperature, threshold=threshold)
    model = real.local.large if role is Role.LARGE else real.local.small
    found = generate_alone(model, role, real.local.tokenizer, requests)
    expected = [trace.token_ids for _, trace in sorted(found, key=lambda x: x[0])]
    assert [t.token_ids for t in real.run(requests)] == expected
    assert [t.token_ids for t in real.run(requests, alone=role)] == expected


def test_a_batched_row_is_the_same_row_alone(real: Real) -> None:
    requests = requests_of(4, 3, 0.8)
    together = real.run(requests)
    assert [t.token_ids for t in together] == [real.run([r])[0].token_ids for r in requests]


@pytest.mark.parametrize("ahead", [Ahead(), Ahead(16, 2, prompt=True)])
def test_penalties_and_limits_mean_what_they_mean_in_process(real: Real, ahead: Ahead) -> None:
    requests = requests_of(4, 4, 0.8, max_lag=5, max_large_fraction=0.5)
    for i, request in enumerate(requests):
        sampling = dataclasses.replace(
            request.sampling, frequency_penalty=0.7, repetition_penalty=1.1
        )
        requests[i] = dataclasses.replace(request, sampling=sampling)
    same(real.run(requests, ahead=ahead), real.expected(requests))


@pytest.mark.parametrize("ahead", [Ahead(), Ahead(16, 2, prompt=True)])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("policy", [IMMEDIATE, Momentum(0.5, 0.4, 0.6)])
def test_revision_log_probabilities_and_policies_are_those_of_the_in_process_loop(
    real: Real, temperature: float, policy: Policy, ahead: Ahead
) -> None:
    requests = requests_of(
        5, 7, temperature, revise_below=0.03, max_lag=9, logprobs=20, proposals=3, policy=policy
    )
    found = real.run(requests, ahead=ahead)
    assert any(record.cause is Cause.REVISION for trace in found for record in trace.records)
    same(found, real.expected(requests))


@pytest.mark.parametrize("ahead", [Ahead(), Ahead(16, 2, prompt=True)])
@pytest.mark.parametrize("ordered", [True, False])
def test_lossless_greedy_is_the_large_model_alone(real: Real, ordered: bool, ahead: Ahead) -> None:
    requests = requests_of(4, 8, 0.0, lossless=True, max_lag=6)
    found = real.run(requests, ordered=ordered, ahead=ahead)
    same(found, real.expected(requests))
    alone = generate_alone(real.local.large, Role.LARGE, real.local.tokenizer, requests)
    expected = [trace.token_ids for _, trace in sorted(alone, key=lambda x: x[0])]
    assert [trace.token_ids for trace in found] == expected


def test_more_log_probabilities_than_a_server_tells_is_one_sentence(real: Real) -> None:
    client = VllmClient([real.small.url])

    async def ask(stream: bool) -> None:
        await client.connect()
        options = {"temperature": 0, "logprobs": MOST_REPORTED + 1}
        try:
            if stream:
                async for _ in client.write([1, 2], 1, lambda _: options):
                    pass
            else:
                await client.next([[1, 2], [1, 2, 3]], options)
        finally:
            await client.close()

    for stream in (True, False):
        with pytest.raises(RequestError, match="start it with a higher --max-logprobs"):
            asyncio.run(ask(stream))


def test_usage_is_the_count_of_the_trace(real: Real) -> None:
    for trace in real.run(requests_of(3, 5, 0.0)):
        large = sum(record.writer is Role.LARGE for record in trace.records)
        assert trace.usage.large_tokens == large
        assert trace.usage.generated_tokens == len(trace.records)


def test_rows_without_an_order_are_left_alone(real: Real) -> None:
    (request,) = requests_of(1, 6, 0.0)
    client = VllmClient([real.small.url])

    async def plain() -> list[int]:
        await client.connect()
        options = {"temperature": 0, "stop_token_ids": list(real.local.small.info.eos_ids)}
        tokens = client.write(request.prompt_ids, request.max_tokens, lambda _: options)
        ids = [token.token_id async for token in tokens]
        await client.close()
        return ids

    found = generate_alone(real.local.small, Role.SMALL, real.local.tokenizer, [request])
    assert asyncio.run(plain()) == list(next(found)[1].token_ids)


def test_an_order_that_makes_no_sense_is_a_400_and_the_server_lives(real: Real) -> None:
    client = VllmClient([real.small.url])

    async def send() -> None:
        await client.connect()
        options = {"temperature": 0, "vllm_xargs": {"crossroads": "{}"}}
        try:
            async for _ in client.write([1, 2], 1, lambda _: options):
                pass
        finally:
            await client.close()

    with pytest.raises(RequestError, match="no order of this version"):
        asyncio.run(send())
    assert real.small.ready()


def test_an_order_with_ids_that_the_model_lacks_is_left_alone_and_the_server_lives(
    real: Real,
) -> None:
    client, beyond = VllmClient([real.small.url]), real.local.small.info.vocab_size
    reserved = ReservedIds(beyond, beyond + 1, beyond + 2)

    async def send(judged: tuple[int, ...]) -> list[WireToken]:
        await client.connect()
        order = Order(Role.LARGE, NEVER, SamplingParams(), 0, 2, reserved, judged=judged)
        found = await client.next([[1, 2]], ordered(order, [])(0))
        await client.close()
        return found

    for judged in ((), (beyond + 7,)):
        (token,) = asyncio.run(send(judged))
        with pytest.raises(EngineError, match="answers without the Crossroads plugin"):
            read_step(token.token_id, token.values, reserved)
    assert real.small.ready()


@pytest.mark.parametrize("prompt", [True, False])
def test_a_prompt_that_was_read_ahead_is_in_the_cache_at_the_first_hand_over(
    real: Real, prompt: bool
) -> None:
    block = 128  # of the CPU build
    tokens = np.random.default_rng(prompt).integers(1, builders.END_OF_TEXT, block + 20)
    request = Request(tuple(map(int, tokens)), max_tokens=1, threshold=0.0)
    before = _hits(real.large)
    (trace,) = real.run([request], ahead=Ahead(prompt=prompt))
    assert trace.usage.large_tokens == 1
    assert _hits(real.large) - before == (block if prompt else 0)


def _hits(server: RunningServer) -> float:
    """Return how many tokens vLLM has found in its prefix cache."""
    with urlopen(f"{server.url}/metrics", timeout=10) as reply:
        found = re.findall(rb"^vllm:prefix_cache_hits_total{.*} (\S+)$", reply.read(), re.M)
    return sum(map(float, found))


def test_routers_that_vllm_cannot_feed_are_refused_by_name(real: Real, tmp_path: Path) -> None:
    from crossroads.vllm.processor import _load

    small = real.local.small.info
    model = SimpleNamespace(
        get_hidden_size=lambda: small.hidden_size, get_vocab_size=lambda: small.vocab_size
    )
    config = SimpleNamespace(model_config=model)
    for name, width, what in (("previous_entropy", 8, "the row's last tokens"),):
        network = build_network("mlp", {"inputs": [name], "widths": [width], "projection": 2,
                                        "width": 4, "depth": 1, "dropout": 0.0,
                                        "members": 1})  # fmt: skip
        card = RouterCard(SmallModelId.of(small), "large", "", "tiny", MIDDLE)
        save_router(tmp_path / name, NeuralRouter("mlp", network, 1.0, 0.0), card)
        with pytest.raises(RouterError, match=what):
            _load(str(tmp_path / name), config)
    other = dataclasses.replace(SmallModelId.of(small), hidden_size=128)
    network = build_network("mlp", {"inputs": ["entropy"], "widths": [1], "projection": 2,
                                    "width": 4, "depth": 1, "dropout": 0.0,
                                    "members": 1})  # fmt: skip
    card = RouterCard(other, "large", "", "tiny", MIDDLE)
    save_router(tmp_path / "other", NeuralRouter("mlp", network, 1.0, 0.0), card)
    with pytest.raises(RouterError, match="hidden size 128"):
        _load(str(tmp_path / "other"), config)
