"""What `serve --backend vllm` makes of its options, over fake servers."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest

from crossroads.cli.serve_vllm import VllmOptions, make_engine
from crossroads.decoding.request import Request
from crossroads.errors import EngineError
from crossroads.routing.choose import ChosenRouter
from crossroads.types import Trace
from crossroads.vllm.pair import ElsewherePair
from laws.pairs import VOCAB, mixed, random_requests
from orchestrator.lines import MIDDLE, SPARE, Line, line, same, spare_pair


def options_for(found: Line, *large_url: str, prompt_ahead: bool = True) -> VllmOptions:
    return VllmOptions(
        found.small.url, large_url, "", "", None, None, "python", Path("logs"), 1.0,
        16, 0, prompt_ahead, "fail",
    )  # fmt: skip


def run(found: Line, options: VllmOptions, requests: list[Request]) -> list[Trace]:
    models = found.models
    pair = ElsewherePair("p", models, ChosenRouter(models.router, models.threshold))

    async def serve() -> list[Trace]:
        engine = await make_engine(options, pair, 4, 4)
        try:
            traces = []
            for request in requests:
                events = [event async for event in engine.generate(request)]
                assert events[-1].trace is not None
                traces.append(events[-1].trace)
            return traces
        finally:
            await engine.close()

    return asyncio.run(asyncio.wait_for(serve(), 60))


def requests_of(count: int) -> list[Request]:
    return [
        dataclasses.replace(request, threshold=0.0)
        for request in random_requests(count, 2, vocab=VOCAB - SPARE)
    ]


@pytest.mark.parametrize("commas", [True, False])
def test_replicas_come_with_commas_or_one_by_one(commas: bool) -> None:
    requests = requests_of(16)
    with line(replicas=2) as found:
        urls = [large.url for large in found.larges]
        given = [",".join(urls)] if commas else urls
        same(
            run(found, options_for(found, *given), requests), mixed(spare_pair(), requests, MIDDLE)
        )
        assert all(large.asks for large in found.larges)


@pytest.mark.parametrize("ahead", [True, False])
def test_prompts_are_read_ahead_unless_that_is_switched_off(ahead: bool) -> None:
    requests = requests_of(3)
    with line() as found:
        run(found, options_for(found, found.large.url, prompt_ahead=ahead), requests)
        read = [body for body in found.large.requests if body not in found.large.asks]
        assert len(read) == (3 if ahead else 0)


def test_a_small_server_without_the_plugin_is_named() -> None:
    with line() as found:
        found.small.router = None
        with pytest.raises(EngineError, match="has no Crossroads plugin; install crossroads-lm"):
            run(found, options_for(found, found.large.url), requests_of(1))
