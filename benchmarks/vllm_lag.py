"""What it costs to hear of a lag from vLLM: as prompts of one token each, or as one long prompt.

    python benchmarks/vllm_lag.py --model LARGE --out results/vllm-lag.json

LARGE is a folder of safetensors; the server is started here (the Python that runs this needs vLLM).
A row grows as it does when the mixed loop revises: so many tokens, of all of which the model is
asked what it thinks. "prompts" are `VllmClient.next` at each place, on the server's prefix cache;
"whole" is `prompt_logprobs`, which vLLM tells only of what it reads anew. Both take turns, each on
rows that no cache has seen, of the same lengths.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np

from crossroads.artifacts import write_json
from crossroads.models.remote_client import VllmClient
from crossroads.models.vllm_server import RunningServer, ServerPlan, free_port, wait_until_ready
from crossroads.provenance import provenance

TOPS = 20
Look = Callable[[Sequence[int], int], Awaitable[object]]


def main() -> None:
    """Start, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--args", default="", help="more of vLLM's arguments")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--prompts", type=int, nargs="+", default=[64, 512], help="their lengths")
    parser.add_argument("--lag", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8, help="lags that follow a prompt")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plan = ServerPlan("large", options.model, "", options.context, 4,
                          Path(folder) / "large.log", options.args)  # fmt: skip
        server = RunningServer(plan, free_port())
        try:
            wait_until_ready({"large": server}, 1800, print)
            found = asyncio.run(_measure(server.url, options))
        finally:
            server.stop()
    print(found)
    write_json(options.out, {"seconds_per_lag": found, "provenance": provenance()})


async def _measure(url: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    client = VllmClient([url])
    await client.connect()

    async def prompts(row: Sequence[int], count: int) -> object:
        places = [row[:end] for end in range(len(row) - count + 1, len(row) + 1)]
        return await client.next(places, {"temperature": 0, "logprobs": TOPS})

    async def whole(row: Sequence[int], count: int) -> object:
        return await client.look_back(row, count, TOPS)

    found: dict[str, dict[str, float]] = {}
    for length in options.prompts:
        times: dict[str, list[float]] = {"prompts": [], "whole": []}
        for repeat in range(-1, options.repeats):
            for name, look in (("prompts", prompts), ("whole", whole)):
                seconds = await _row(look, length, options)
                if repeat >= 0:  # the first warms up
                    times[name].append(seconds)
        found[str(length)] = {name: statistics.median(each) for name, each in times.items()}
    await client.close()
    return found


async def _row(look: Look, length: int, options: argparse.Namespace) -> float:
    """Return the seconds that a lag takes in the middle of a new row."""
    generator = np.random.default_rng(time.time_ns())
    row = [int(i) for i in generator.integers(100, 10_000, length)]
    await look(row, 1)  # the prompt is in the cache, as it would be
    started = time.perf_counter()
    for _ in range(options.steps):
        row += [int(i) for i in generator.integers(100, 10_000, options.lag)]
        await look(row, options.lag)
    return (time.perf_counter() - started) / options.steps


if __name__ == "__main__":
    main()
