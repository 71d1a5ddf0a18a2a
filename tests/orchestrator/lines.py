"""The orchestrator between two fake servers, beside the same pair in this process."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from crossroads.decoding.mixed import MixedModels
from crossroads.decoding.request import Request
from crossroads.models.pairs import Pair
from crossroads.models.remote_client import VllmClient
from crossroads.models.scripted import ScriptedLM, ScriptedTokenizer
from crossroads.models.server_pool import Patience
from crossroads.routing.routers.base import Router
from crossroads.routing.routers.heuristics import entropy, never
from crossroads.types import OnLoss, Role, Trace
from crossroads.vllm.between import Ahead, Servers
from crossroads.vllm.engine import VllmEngine
from laws.pairs import VOCAB, scripted_pair
from orchestrator.fake_server import FakeServer, fake_server
from orchestrator.patience import STEADY

MIDDLE = 0.65
SPARE = 3
NOT_AHEAD = Ahead()
AHEAD = (NOT_AHEAD, Ahead(2), Ahead(40, 8), Ahead(16, prompt=True))
"""How far rows go before the large model answers: not at all, hardly, as far as they get, and as
`serve` has it."""


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
    ahead: Ahead = NOT_AHEAD

    @property
    def large(self) -> FakeServer:
        return self.larges[0]

    def engine(self, **fields: Any) -> VllmEngine:
        return VllmEngine(self.models, self.servers, ahead=self.ahead, **fields)

    def run(self, requests: Sequence[Request], roles: Sequence[Role | None] = ()) -> list[Trace]:
        """Return the traces of requests that run together."""

        async def one(engine: VllmEngine, request: Request, role: Role | None) -> Trace:
            events = [event async for event in engine.generate(request, alone=role)]
            trace = events[-1].trace
            assert trace is not None
            assert [e.record for e in events] == list(trace.records)
            return trace

        async def run() -> list[Trace]:
            engine = self.engine(max_rows=4)
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
    patience: Patience = STEADY,
    ahead: Ahead = NOT_AHEAD,
    of_one_mind: bool = False,
) -> Iterator[Line]:
    """Serve a pair. of_one_mind: its large model is the small one."""
    pair, chosen = spare_pair(), router or entropy(VOCAB)
    if of_one_mind:
        pair = dataclasses.replace(pair, large=pair.small)
    second = never(VOCAB) if plugin_in_large else None
    with (
        fake_server(pair.small, chosen) as small,
        fake_server(pair.large, second) as large,
        fake_server(pair.large, second) as other,
    ):
        larges = (large, other)[:replicas]
        models = MixedModels(pair.small, pair.large, chosen, pair.tokenizer, MIDDLE)
        servers = Servers(
            VllmClient([small.url], "small", patience),
            VllmClient([fake.url for fake in larges], "large", patience),
            plugin_in_large,
            on_loss,
        )
        yield Line(small, larges, models, servers, ahead)


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
            assert (record.lag, record.discarded) == (wanted.lag, wanted.discarded)
            assert record.score == pytest.approx(wanted.score, abs=1e-6)
            assert record.entropy == pytest.approx(wanted.entropy, abs=1e-5)
