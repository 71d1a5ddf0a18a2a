"""What it is worth that the large model reads a prompt while the small one begins (`Ahead.prompt`).

    python benchmarks/vllm_prompt.py --small SMALL --large LARGE --out results/vllm-prompt.json

SMALL and LARGE are folders of safetensors; both servers are started here (the Python that runs this
needs vLLM). Rows have one hand-over, at a token that is the same in all of them, so that
nothing but the prompt makes a difference. Both ways take turns, on prompts that no cache has seen.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from pathlib import Path

import numpy as np

from crossroads.artifacts import write_json
from crossroads.decoding.request import Request
from crossroads.models.remote_client import VllmClient
from crossroads.models.vllm_server import RunningServer
from crossroads.provenance import provenance
from crossroads.vllm.asking import has_plugin
from crossroads.vllm.between import Ahead, Servers
from crossroads.vllm.engine import VllmEngine
from crossroads.vllm.pair import ElsewherePair, describe_pair
from vllm_cost import problem, started

NEVER_BY_SCORE = 1.5


def main() -> None:
    """Start, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", required=True)
    parser.add_argument("--large", required=True)
    parser.add_argument("--args", default="", help="more of vLLM's arguments, for both servers")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--prompts", type=int, nargs="+", default=[64, 256], help="their lengths")
    parser.add_argument("--at", type=int, default=8, help="small tokens before the hand-over")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", nargs=2, metavar=("SMALL", "LARGE"), help="as in vllm_cost.py")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.router = "entropy"
    pair = describe_pair(
        options.small, options.large, options.router, None, context_length=options.context
    )
    with started(pair, options, 1) as running:
        found = asyncio.run(_measure(pair, running, options))
    print(found)
    write_json(options.out, {"seconds_to_the_hand_over": found, "provenance": provenance()})


async def _measure(
    pair: ElsewherePair, running: dict[str, RunningServer], options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    small, large = VllmClient([running["small"].url]), VllmClient([running["large"].url])
    await small.connect()
    await large.connect()
    servers = Servers(small, large, await has_plugin(large, pair.models))
    engines = {
        name: VllmEngine(pair.models, servers, max_rows=1, ahead=Ahead(16, prompt=ahead))
        for name, ahead in (("at the hand-over", False), ("ahead", True))
    }
    generator = np.random.default_rng(time.time_ns())
    found: dict[str, dict[str, float]] = {}
    for length in options.prompts:
        times: dict[str, list[float]] = {name: [] for name in engines}
        for repeat in range(-1, options.repeats):
            for name, engine in engines.items():
                seconds = await _row(engine, _prompt(pair, generator, length), options.at)
                if repeat >= 0:  # the first warms up
                    times[name].append(seconds)
        found[str(length)] = {name: statistics.median(each) for name, each in times.items()}
    for engine in engines.values():
        await engine.close()
    return found


def _prompt(pair: ElsewherePair, generator: np.random.Generator, length: int) -> tuple[int, ...]:
    """Return word problems one after the other, the last of them cut off, so that it goes on."""
    tokens: list[int] = []
    while len(tokens) < length:
        tokens += problem(pair, generator, generator)
    return tuple(tokens[:length])


async def _row(engine: VllmEngine, prompt: tuple[int, ...], at: int) -> float:
    """Return the seconds until the large model has written its first token."""
    request = Request(prompt, max_tokens=at + 1, threshold=NEVER_BY_SCORE, max_lag=at)
    started_at = time.perf_counter()
    events = [event async for event in engine.generate(request)]
    trace = events[-1].trace
    assert trace is not None
    if (len(trace.records), trace.usage.large_tokens) != (at + 1, 1):
        raise SystemExit("a row ended before its hand-over")
    return time.perf_counter() - started_at


if __name__ == "__main__":
    main()
