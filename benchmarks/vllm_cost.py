"""What a token costs on vLLM: plain decoding, the plugin, routed rows, revision, log-probabilities.

    python benchmarks/vllm_cost.py --small SMALL --large LARGE --out benchmarks/results/vllm.json

SMALL and LARGE are folders of safetensors. Both servers are started here (the Python that runs this
needs vLLM). The router is by default `random`, of which any share of tokens can be routed; how
often the large model then writes what was proposed, which is what running ahead lives on, is only
true to life with a router that looks (`--router entropy`) and with text (`--text`). All ways take
turns; read the ratios. "ideal" is t_small + large_fraction * t_large, each alone.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from crossroads.artifacts import write_json
from crossroads.decoding.request import Request
from crossroads.models.remote_client import VllmClient
from crossroads.models.vllm_server import RunningServer, ServerPlan, free_port, wait_until_ready
from crossroads.provenance import provenance
from crossroads.types import Role
from crossroads.vllm.asking import has_plugin
from crossroads.vllm.between import Ahead, Servers
from crossroads.vllm.engine import VllmEngine
from crossroads.vllm.pair import ElsewherePair, describe_pair

SHARES = (0.05, 0.15, 0.3)
NAMES = ("Ada", "Emil", "Mina", "Otto", "Rosa", "Tom")
THINGS = ("apples", "books", "coins", "marbles", "pencils", "stamps")


@dataclasses.dataclass(frozen=True)
class Timed:
    """Seconds per token and row, the share that the large model wrote, and how.

    agreed: share of its tokens that were proposed. in_vain: small tokens thrown away, per token.
    """

    seconds: float
    large_fraction: float = 0.0
    agreed: float = 0.0
    in_vain: float = 0.0


def main() -> None:
    """Start, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", required=True)
    parser.add_argument("--large", required=True)
    parser.add_argument("--args", default="", help="more of vLLM's arguments, for both servers")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--router", default="random")
    parser.add_argument("--text", action="store_true", help="word problems, not random tokens")
    parser.add_argument(
        "--ahead", action="append", default=[], metavar="TOKENS,ASKS[,PROMPT]",
        help="how far rows go before the large model answers, and whether (1) it reads their "
        "prompts at once; may be given again [0,0 comes first]",
    )  # fmt: skip
    parser.add_argument("--skip", nargs="+", default=[], help="ways that are left out")
    parser.add_argument(
        "--cores", nargs=2, metavar=("SMALL", "LARGE"),
        help="cores of each server on a CPU, as in VLLM_CPU_OMP_THREADS_BIND",
    )  # fmt: skip
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    pair = describe_pair(
        options.small, options.large, options.router, None, context_length=options.context
    )
    with started(pair, options, max(options.rows)) as running:
        found = asyncio.run(_measure(pair, running, options))
    result = {"rows": found, "tokens": options.tokens, "provenance": provenance()}
    print(json.dumps(found, indent=2))
    if options.out:
        write_json(options.out, result)


@contextmanager
def started(
    pair: ElsewherePair, options: argparse.Namespace, rows: int
) -> Iterator[dict[str, RunningServer]]:
    """Yield a running server for each model of the options, `small` and `large`."""
    context = min(m.info.context_length for m in (pair.models.small, pair.models.large))
    with tempfile.TemporaryDirectory() as folder:
        plans = [
            ServerPlan(name, model, router, context, rows, Path(folder) / f"{name}.log",
                       options.args)
            for name, model, router in (
                ("small", options.small, options.router), ("large", options.large, "never")
            )
        ]  # fmt: skip
        running: dict[str, RunningServer] = {}
        try:
            for plan, cores in zip(plans, options.cores or (None, None), strict=True):
                if cores is not None:
                    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = cores
                running[plan.name] = RunningServer(plan, free_port())
            wait_until_ready(running, 1800, print)
            yield running
        finally:
            for server in running.values():
                server.stop()


async def _measure(
    pair: ElsewherePair, running: dict[str, RunningServer], options: argparse.Namespace
) -> dict[str, Any]:
    small, large = VllmClient([running["small"].url]), VllmClient([running["large"].url])
    await small.connect()
    await large.connect()
    servers = Servers(small, large, await has_plugin(large, pair.models))
    aheads = [Ahead(), *map(_ahead, options.ahead)]
    engines = {
        ahead: VllmEngine(pair.models, servers, max_rows=max(options.rows), ahead=ahead)
        for ahead in aheads
    }
    prompts = partial(_requests, pair, tokens=options.tokens, text=options.text)
    thresholds = await _thresholds(engines[Ahead()], prompts(8, -2))
    ways = _ways(engines, servers, thresholds, options.tokens)
    for name in options.skip:
        del ways[name]
    found: dict[str, Any] = {"thresholds": thresholds}
    for rows in options.rows:
        times: dict[str, list[Timed]] = {name: [] for name in ways}
        for repeat in range(-1, options.repeats):
            for name, way in ways.items():
                timed = await way(prompts(rows, repeat))
                print(f"{rows} rows, repeat {repeat}, {name}: {timed}", flush=True)
                if repeat >= 0:  # the first round warms up
                    times[name].append(timed)
        found[str(rows)] = _table(times)
    for engine in engines.values():
        await engine.close()
    return found


def _ahead(text: str) -> Ahead:
    tokens, asks, prompt = [*map(int, text.split(",")), 0][:3]
    return Ahead(tokens, asks, bool(prompt))


async def _thresholds(engine: VllmEngine, requests: Sequence[Request]) -> dict[float, float]:
    """Return for each share the threshold that so many of the router's own scores reach."""
    requests = [dataclasses.replace(r, threshold=1.5) for r in requests]
    traces = await asyncio.gather(*(_trace(engine, r, None) for r in requests))
    scores = [record.score for trace in traces for record in trace.records]
    return {share: float(np.quantile(scores, 1 - share)) for share in SHARES}


Way = Callable[[Sequence[Request]], Awaitable[Timed]]


def _ways(
    engines: Mapping[Ahead, VllmEngine],
    servers: Servers,
    thresholds: Mapping[float, float],
    tokens: int,
) -> dict[str, Way]:
    def mixed(
        threshold: float,
        alone: Role | None = None,
        ahead: Ahead = Ahead(),  # noqa: B008
        **fields: Any,
    ) -> Way:
        engine = engines[ahead]

        async def run(requests: Sequence[Request]) -> Timed:
            requests = [dataclasses.replace(r, threshold=threshold, **fields) for r in requests]
            before, started = engine.discarded_ahead, time.perf_counter()
            traces = await asyncio.gather(*(_trace(engine, r, alone) for r in requests))
            seconds = time.perf_counter() - started
            usage = sum((t.usage for t in traces[1:]), traces[0].usage)
            large = [r for t in traces for r in t.records if r.writer is Role.LARGE]
            return Timed(
                seconds / (usage.generated_tokens / len(requests)),
                usage.large_fraction,
                sum(not r.replaced for r in large) / max(1, len(large)),
                (engine.discarded_ahead - before) / usage.generated_tokens,
            )

        return run

    async def plain(requests: Sequence[Request]) -> Timed:
        started = time.perf_counter()
        await asyncio.gather(*(_plain(servers.small, r, tokens, tokens) for r in requests))
        return Timed((time.perf_counter() - started) / tokens)

    async def one_by_one(requests: Sequence[Request]) -> Timed:
        started = time.perf_counter()
        await asyncio.gather(*(_plain(servers.small, r, tokens, 1) for r in requests))
        return Timed((time.perf_counter() - started) / tokens)

    def name(share: float, ahead: Ahead) -> str:
        going = f", {ahead.tokens} ahead, {ahead.asks} asked" if ahead.tokens else ""
        return f"routed {share:g}{going}{', prompt ahead' if ahead.prompt else ''}"

    return {
        "small, plain": plain,
        "small, plugin": mixed(1.5, Role.SMALL),
        "small, a request per token": one_by_one,
        "large alone": mixed(0.0, Role.LARGE),
        **{
            name(share, ahead): mixed(thresholds[share], ahead=ahead)
            for share in SHARES
            for ahead in engines
        },
        # What it costs to ask at every place of a lag, however little is taken back.
        "routed 0.15, revising": mixed(thresholds[0.15], revise_below=1e-9),
        "routed 0.15, 20 log-probabilities": mixed(thresholds[0.15], logprobs=20),
    }


async def _trace(engine: VllmEngine, request: Request, alone: Role | None) -> Any:
    events = [event async for event in engine.generate(request, alone=alone)]
    return events[-1].trace


async def _plain(client: VllmClient, request: Request, count: int, at_once: int) -> None:
    """Let a server write `count` tokens, so many per request, without the plugin."""
    tokens = list(request.prompt_ids)
    for _ in range(0, count, at_once):
        stream = client.write(tokens, at_once, lambda _: {"temperature": 0})
        tokens += [token.token_id async for token in stream]


def _requests(
    pair: ElsewherePair, rows: int, repeat: int, *, tokens: int, text: bool
) -> list[Request]:
    """Return prompts of about 64 tokens that no cache has seen.

    Those of text are the same in a round but for a number at their beginning, so that all ways
    have much the same to write.
    """
    new = np.random.default_rng(time.time_ns())
    told = np.random.default_rng([rows, repeat + 2])
    return [
        Request(problem(pair, told, new) if text else _noise(pair, new), max_tokens=tokens)
        for _ in range(rows)
    ]


def _noise(pair: ElsewherePair, generator: np.random.Generator) -> tuple[int, ...]:
    known = [i for i, piece in enumerate(pair.models.tokenizer.pieces()) if piece]
    return tuple(int(i) for i in generator.choice(known, 64))


def problem(
    pair: ElsewherePair, generator: np.random.Generator, new: np.random.Generator
) -> tuple[int, ...]:
    """Return a word problem that no cache has seen: `new` numbers it, `generator` is its matter."""
    a, b, c, d = generator.integers(2, 40, 4)
    name, thing = generator.choice(NAMES), generator.choice(THINGS)
    text = (
        f"Problem {new.integers(10**9)}: {name} has {a * b} {thing} and gives {b} of them to "
        f"each of {a // 2} friends. Then {name} buys {c} boxes with {d} {thing} in each of them. "
        f"How many {thing} does {name} have now?\nLet us think step by step.\n"
    )
    return tuple(pair.models.tokenizer.encode(text))


def _table(times: dict[str, list[Timed]]) -> dict[str, Any]:
    middle = {name: statistics.median(t.seconds for t in found) for name, found in times.items()}
    small, large = middle["small, plain"], middle["large alone"]
    table: dict[str, Any] = {}
    for name, found in times.items():
        share = statistics.median(t.large_fraction for t in found)
        row = {"ms_per_token": 1000 * middle[name], "x_small": middle[name] / small}
        if name.startswith("routed"):
            row |= {"large_fraction": share, "x_ideal": middle[name] / (small + share * large)}
            row["x_large"] = large / middle[name]
            row["agreed"] = statistics.median(t.agreed for t in found)
            row["in_vain"] = statistics.median(t.in_vain for t in found)
        table[name] = row
    return table


if __name__ == "__main__":
    main()
