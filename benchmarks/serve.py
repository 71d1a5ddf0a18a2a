"""Latency and throughput of a server under load, and what serving costs over the bare loop.

    python benchmarks/serve.py --out benchmarks/results/serve.json -- --threads 1
    python benchmarks/serve.py --tiny --overhead 7 --out benchmarks/results/serve-tiny.json
    python benchmarks/serve.py --url http://127.0.0.1:8000 --models large --clients 1 4

Load: so many clients at once, each sending one streaming chat after the other; options after `--`
are the server's own. Overhead: the same chats through the mixed loop in the server's own process
and over HTTP, by turns. `wall` is from sending to the last byte, the client's work included; `cpu`
is the processor time of the server's process, in which others on the machine do not take part.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from crossroads.artifacts import write_json
from crossroads.provenance import provenance
from serving_client import Reply, chat, post
from serving_process import ServerProcess, server

MODELS = ("mixed", "small", "large")
PERCENTILES = (50, 90, 99)
VARIANTS: dict[str, dict[str, Any]] = {"http": {}, "http, trace": {"routing": {"trace": True}}}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="of a running server; else one is started")
    parser.add_argument("--pid", type=int, help="of that server, to read its processor time")
    parser.add_argument("--tiny", action="store_true", help="serve two tiny random models")
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--requests", type=int, default=8, help="fewest requests of each point")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--overhead", type=int, default=0, help="repeats of that comparison")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8], help="for the overhead")
    parser.add_argument("--note", help="what else the machine was doing")
    parser.add_argument("--out", type=Path)
    parser.add_argument("server", nargs="*", help="options of the server that is started")
    options = parser.parse_args()
    if options.url:
        result = asyncio.run(_load(options.url, options))
    else:
        with server(*options.server, tiny=options.tiny) as process:
            options.pid = process.pid
            result = asyncio.run(_load(process.url, options))
            if options.overhead:
                result["overhead"] = [
                    asyncio.run(_overhead(process, rows, options)) for rows in options.rows
                ]
    if options.out:
        result |= {"note": options.note, "provenance": provenance()}
        write_json(options.out, result)


# Load


async def _load(url: str, options: argparse.Namespace) -> dict[str, Any]:
    points = []
    for model, clients in itertools.product(options.models, options.clients):
        await post(url, chat(0, 4, model))  # what is made at the first use is made
        points.append(await _point(url, model, clients, options))
        print(_line(points[-1]), flush=True)
    return {"max_tokens": options.max_tokens, "load": points}


async def _point(url: str, model: str, clients: int, options: argparse.Namespace) -> dict[str, Any]:
    seeds = iter(range(max(options.requests, clients)))
    replies: list[Reply] = []

    async def client() -> None:
        for seed in seeds:
            replies.append(await post(url, chat(seed, options.max_tokens, model)))

    cpu = _cpu_seconds(options.pid)
    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = time.perf_counter() - started
    cpu = _cpu_seconds(options.pid) - cpu
    answered = [reply for reply in replies if reply.outcome == "answered"]
    tokens = sum(reply.tokens for reply in answered)
    gaps = [gap for reply in answered for gap in reply.gaps]
    return {
        "model": model,
        "clients": clients,
        "requests": len(replies),
        "answered": len(answered),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "requests_per_second": len(answered) / seconds,
        "cpu_ms_per_token": 1000 * cpu / tokens,
        "first_token_ms": _percentiles([reply.first for reply in answered]),
        "between_tokens_ms": _percentiles(gaps),
    }


def _cpu_seconds(pid: int | None) -> float:
    """Return a process's time on processors; 0 if it is not known which."""
    if pid is None:
        return 0.0
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def _percentiles(seconds: list[float]) -> dict[str, float]:
    values = np.percentile(seconds, PERCENTILES) * 1000
    return {f"p{p}": float(value) for p, value in zip(PERCENTILES, values, strict=True)}


def _line(point: dict[str, Any]) -> str:
    first, between = point["first_token_ms"], point["between_tokens_ms"]
    return (
        f"{point['model']:6} {point['clients']:3} clients {point['answered']:4} answers "
        f"{point['tokens_per_second']:8.1f} tokens/s {point['requests_per_second']:7.2f} requests/s"
        f"  cpu {point['cpu_ms_per_token']:.1f} ms/token"
        f"  first token {' '.join(f'{v:.0f}' for v in first.values())} ms"
        f"  between {' '.join(f'{v:.1f}' for v in between.values())} ms"
    )


# Overhead


async def _overhead(
    process: ServerProcess, rows: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Return milliseconds a token of each way, and the medians of their ratios to the bare loop."""
    bodies = [chat(seed, options.max_tokens) for seed in range(max(rows, 2))]
    ways = ["bare", *VARIANTS]
    found: dict[str, dict[str, list[float]]] = {c: {w: [] for w in ways} for c in ("wall", "cpu")}
    for repeat in range(options.overhead + 1):
        for way in ways[repeat % 3 :] + ways[: repeat % 3]:
            before = process.held()["cpu_seconds"]
            started = time.perf_counter()
            tokens = await _tokens(process, bodies, rows, way)
            wall = time.perf_counter() - started
            cpu = process.held(collect=False)["cpu_seconds"] - before
            if repeat:  # the first warms up
                found["wall"][way].append(1000 * wall / tokens)
                found["cpu"][way].append(1000 * cpu / tokens)
    result = {"rows": rows, **{clock: _ratios(costs) for clock, costs in found.items()}}
    print({c: v if c == "rows" else v["ratio"] for c, v in result.items()}, flush=True)
    return result


def _ratios(costs: dict[str, list[float]]) -> dict[str, Any]:
    bare = costs["bare"]
    ratios = {w: [a / b for a, b in zip(costs[w], bare, strict=True)] for w in VARIANTS}
    return {
        "ms_per_token": {way: statistics.median(values) for way, values in costs.items()},
        "ratio": {way: statistics.median(values) for way, values in ratios.items()},
        "ratios": ratios,
    }


async def _tokens(process: ServerProcess, bodies: list[dict[str, Any]], rows: int, way: str) -> int:
    """Answer the chats, `rows` at a time, and return how many tokens they have."""
    if way != "bare":
        return await _over_http(process.url, bodies, rows, VARIANTS[way])
    return int((await asyncio.to_thread(process.ask, "bare", bodies=bodies, rows=rows))["tokens"])


async def _over_http(
    url: str, bodies: list[dict[str, Any]], rows: int, more: dict[str, Any]
) -> int:
    waiting = iter(bodies)
    tokens = 0

    async def client() -> None:
        nonlocal tokens
        for body in waiting:
            reply = await post(url, {**body, **more})
            tokens += reply.tokens

    await asyncio.gather(*(client() for _ in range(rows)))
    return tokens


if __name__ == "__main__":
    main()
