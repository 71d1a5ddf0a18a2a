"""Does a server grow? Steady load on a tiny pair for an hour, its process looked at all the while.

    python benchmarks/serve_soak.py --minutes 60 --out benchmarks/results/serve-soak.json

A few clients send requests of every kind, some of them wrong, some left in the middle, with a
pause between. Memory, tasks, threads and open files are sampled; the verdict is on the slope of
memory over the second half: means of two minutes, least squares, 95 % interval. `private` leaves
out the pages of files, which the system takes and gives back as it likes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from crossroads.artifacts import write_json
from crossroads.provenance import provenance
from serving_client import chat, post
from serving_process import ServerProcess, server

SAMPLE_SECONDS, BLOCK_SECONDS = 10.0, 120.0
FLAT_MIB_PER_HOUR = 1.0

KINDS: dict[str, dict[str, Any]] = {
    "stream": {},
    "small alone": {"model": "small"},
    "large alone": {"model": "large"},
    "whole": {"stream": False, "stream_options": None},
    "trace": {"routing": {"trace": True}},
    "revises": {"routing": {"revise_below": 0.1, "max_large_fraction": 0.3}},
    "logprobs": {"logprobs": True, "top_logprobs": 5},
    "two choices, sampled": {"n": 2, "temperature": 1.0},
    "left in the middle": {},
    "wrong": {"temperature": -1},
}


def main() -> None:
    """Load, sample, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--pause", type=float, default=0.2, help="seconds between two requests")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with server("--threads", "1", tiny=True) as process:
        outcomes, samples = asyncio.run(_soak(process, options))
        tracebacks = process.tracebacks()
    result: dict[str, Any] = {
        "minutes": options.minutes,
        "clients": options.clients,
        "requests": sum(outcomes.values()),
        "outcomes": dict(sorted(outcomes.items())),
        "tracebacks": tracebacks,
        "memory": {name: verdict(samples, name) for name in ("private_mib", "rss_mib")},
        "first": samples[0],
        "last": samples[-1],
        "most": {name: max(s[name] for s in samples) for name in samples[0]},
    }
    print(json.dumps(result, indent=2))
    if options.out:
        result |= {"samples": samples, "provenance": provenance(threads=1)}
        write_json(options.out, result)


async def _soak(
    process: ServerProcess, options: argparse.Namespace
) -> tuple[Counter[str], list[dict[str, float]]]:
    outcomes: Counter[str] = Counter()
    samples: list[dict[str, float]] = []
    started = time.monotonic()
    end = started + 60 * options.minutes
    clients = [
        asyncio.create_task(_client(process.url, seed, end, options.pause, outcomes))
        for seed in range(options.clients)
    ]
    while time.monotonic() < end:
        held = await asyncio.to_thread(process.held, collect=False)
        await asyncio.to_thread(_scrape, process.url)
        seconds = round(time.monotonic() - started, 1)
        samples.append({"seconds": seconds, "requests": sum(outcomes.values()), **held})
        if len(samples) % 30 == 1:
            print(samples[-1], flush=True)
        await asyncio.sleep(SAMPLE_SECONDS)
    await asyncio.gather(*clients)
    held = await asyncio.to_thread(process.settled)
    samples.append({"seconds": round(time.monotonic() - started, 1), "requests": 0, **held})
    samples[-1]["requests"] = sum(outcomes.values())
    return outcomes, samples


async def _client(url: str, seed: int, end: float, pause: float, outcomes: Counter[str]) -> None:
    generator = random.Random(seed)
    while time.monotonic() < end:
        kind = generator.choice(list(KINDS))
        body = chat(generator.randrange(10**9), generator.randint(8, 160), **KINDS[kind])
        leave = generator.randint(1, 40) if kind == "left in the middle" else None
        reply = await post(url, body, leave_after=leave)
        outcomes[f"{kind}: {'left' if leave and not reply.done else reply.outcome}"] += 1
        await asyncio.sleep(pause)


def _scrape(url: str) -> None:
    for path in ("/metrics", "/v1/routing"):
        with urllib.request.urlopen(url + path, timeout=30) as reply:
            reply.read()


def verdict(samples: list[dict[str, float]], name: str) -> dict[str, Any]:
    """Return the slope of a memory over the second half in MiB/h, and what its interval says."""
    begun = samples[-1]["seconds"] / 2
    late = [s for s in samples if s["seconds"] >= begun]
    blocks: dict[int, list[float]] = {}
    for sample in late:
        blocks.setdefault(int(sample["seconds"] // BLOCK_SECONDS), []).append(sample[name])
    if len(blocks) < 3:
        return {"verdict": "too short to say"}
    hours = np.array(list(blocks)) * BLOCK_SECONDS / 3600
    fit = stats.linregress(hours, [float(np.mean(values)) for values in blocks.values()])
    margin = float(stats.t.ppf(0.975, len(blocks) - 2) * fit.stderr)
    low, high = fit.slope - margin, fit.slope + margin
    if high < FLAT_MIB_PER_HOUR:
        word = "flat"
    else:
        word = "grows" if low > FLAT_MIB_PER_HOUR else "undecided"
    return {
        "mib_per_hour": float(fit.slope),
        "interval": [float(low), float(high)],
        "blocks": len(blocks),
        "verdict": word,
    }


if __name__ == "__main__":
    main()
