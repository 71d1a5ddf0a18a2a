"""What a server does to those who misbehave, and when it is stopped or fails, on the tiny pair.

    python benchmarks/serve_faults.py --out benchmarks/results/serve-faults.json
    python benchmarks/serve_faults.py --only mutations --count 2000

Clients that leave in the middle; mutated requests; clients that read slowly or not at all; SIGTERM
under load; a model that fails. Nothing may be leaked, nothing may hang, and every accepted request
is answered or ended with an error: `wrong` counts what is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from crossroads.artifacts import write_json
from crossroads.provenance import provenance
from serving_client import Reply, chat, post, posted
from serving_mutations import mutated
from serving_process import server

AT_ONCE = 16
HUNG_SECONDS = 60.0
PATIENCE = 60.0
"""Seconds that a stream may be left unread; the server's own."""

Result = dict[str, Any]
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def disconnects(count: int) -> Result:
    """Clients that leave at a random token, or, of replies that do not stream, moment."""
    with server("--threads", "1", tiny=True) as process:
        before = process.settled()
        memory: list[float] = []
        endings: Counter[str] = Counter()
        for first in range(0, count, count // 5):
            seeds = range(first, first + count // 5)
            for seeds_now in _groups(list(seeds), AT_ONCE):
                endings.update(await asyncio.gather(*(_leave(process.url, s) for s in seeds_now)))
            memory.append(process.settled()["rss_mib"])
        after = process.settled()
        leaked = _leaked(before, after)
        return {
            "endings": dict(endings),
            "leaked": leaked,
            "rss_mib_after_each_fifth": memory,
            "rss_mib_growth_of_the_last_four_fifths": memory[-1] - memory[0],
            "tracebacks": process.tracebacks(),
            "wrong": sum(leaked.values()),
        }


async def _leave(url: str, seed: int) -> str:
    generator = random.Random(seed)
    model = generator.choice(["mixed", "small", "large"])
    more = generator.choice([{}, {"n": 3, "temperature": 1.0}, {"routing": {"trace": True}}])
    if generator.random() < 0.6:
        body = chat(seed, 160, model, **more)
        reply = await post(url, body, leave_after=generator.randint(1, 60))
        return "had ended" if reply.done else "left a stream"
    body = {**chat(seed, 160, model, **more), "stream": False, "stream_options": None}
    async with posted(url, body) as (reader, _):
        try:
            await asyncio.wait_for(reader.readline(), generator.uniform(0, 0.5))
        except TimeoutError:
            return "left a whole reply"
        return "had ended"


async def mutations(count: int) -> Result:
    """Mutated requests: no status of 500 or more, and every refusal in the API's own words."""
    with server("--threads", "1", tiny=True) as process:
        before = process.settled()
        generator = random.Random(1)
        statuses: Counter[int] = Counter()
        wrong: list[str] = []
        started = time.perf_counter()
        slowest = 0.0
        for group in _groups([mutated(generator) for _ in range(count)], AT_ONCE):
            replies = await asyncio.gather(*(_post(process.url, b, path) for path, b in group))
            for (path, body), reply in zip(group, replies, strict=True):
                statuses[reply.status] += 1
                slowest = max(slowest, reply.seconds)
                if not _is_worded(reply):
                    wrong.append(f"{path} {reply.status} {reply.outcome} {body[:300]!r}")
        leaked = _leaked(before, process.settled())
        return {
            "requests": count,
            "statuses": {str(status): n for status, n in sorted(statuses.items())},
            "seconds": time.perf_counter() - started,
            "slowest": slowest,
            "leaked": leaked,
            "tracebacks": process.tracebacks(),
            "examples": wrong[:10],
            "wrong": len(wrong) + sum(leaked.values()),
        }


def _is_worded(reply: Reply) -> bool:
    if reply.outcome == "answered":
        return True
    if not 400 <= reply.status < 500 or len(reply.bodies) != 1:
        return False
    error = reply.bodies[0].get("error", {})
    return bool(error.get("message")) and {"type", "param", "code"} <= set(error)


async def slow_readers(count: int) -> Result:
    """Clients that read nothing, or little at a time, beside one that reads as it comes."""
    with server("--threads", "1", "--queue", "200", tiny=True) as process:
        before = process.settled()
        alone = [(await _post(process.url, chat(s, 160))).seconds for s in range(10)]
        slow = [asyncio.create_task(_read_slowly(process.url, s)) for s in range(count // 2)]
        slow_ends = Counter(await asyncio.gather(*slow))
        idle = [asyncio.create_task(_read_nothing(process.url, s)) for s in range(count // 2)]
        await asyncio.sleep(2)
        during = process.settled(120)
        started = time.monotonic()
        beside = [(await _post(process.url, chat(s, 160))).seconds for s in range(10)]
        while process.held()["files"] > before["files"]:
            await asyncio.sleep(0.5)
            if time.monotonic() - started > PATIENCE + 30:
                break
        seconds = time.monotonic() - started
        leaked = _leaked(before, process.settled())
        for task in idle:
            task.cancel()
        return {
            "slow": dict(slow_ends),
            "connections_that_read_nothing": during["files"] - before["files"],
            "all_given_up_after_seconds": seconds,
            "ms_per_answer_alone": 1000 * statistics.median(alone),
            "ms_per_answer_beside": 1000 * statistics.median(beside),
            "rss_mib": [before["rss_mib"], during["rss_mib"]],
            "rows_while_they_read_nothing": during["rows"],
            "leaked": leaked,
            "tracebacks": process.tracebacks(),
            "wrong": sum(leaked.values())
            + sum(n for end, n in slow_ends.items() if end != "answered"),
        }


def _much(url: str, seed: int) -> AbstractAsyncContextManager[Connection]:
    """Ask for some megabyte of reply, more than the system holds for so small a window."""
    told = {"logprobs": True, "top_logprobs": 20, "routing": {"trace": True}}
    return posted(url, chat(seed, 140, n=4, temperature=1.0, **told), buffer=4096)


async def _read_nothing(url: str, seed: int) -> None:
    async with _much(url, seed):
        await asyncio.sleep(3600)


async def _read_slowly(url: str, seed: int) -> str:
    async with _much(url, seed) as (reader, _):
        tail = b""
        while part := await reader.read(4096):
            tail = (tail + part)[-64:]
            await asyncio.sleep(0.02)
    return "answered" if b"data: [DONE]" in tail else "cut"


async def sigterm(count: int, shutdown_seconds: float) -> Result:
    """SIGTERM while clients send one request after the other."""
    options = ("--threads", "1", "--shutdown-timeout", str(shutdown_seconds))
    with server(*options, tiny=True) as process:
        told = asyncio.Event()
        clients = [asyncio.create_task(_go_on(process.url, s, told)) for s in range(count)]
        await asyncio.sleep(2)
        process.signal()
        told.set()
        seconds = await asyncio.to_thread(process.end)
        endings: Counter[str] = Counter()
        for done in await asyncio.gather(*clients):
            endings.update(done)
        tracebacks = process.tracebacks()
    bad = ("running: cut", "running: no reply", "running: hung", "later: cut", "later: hung")
    return {
        "shutdown_timeout": shutdown_seconds,
        "endings": dict(sorted(endings.items())),
        "seconds_to_stop": seconds,
        "tracebacks": tracebacks,
        "wrong": sum(endings[name] for name in bad) + tracebacks,
    }


async def _go_on(url: str, seed: int, told: asyncio.Event) -> list[str]:
    """Send requests until the server is gone; tell how those ended that ran then or came later."""
    endings: list[str] = []
    generator = random.Random(seed)
    while "later: not connected" not in endings:
        before = not told.is_set()
        body = chat(generator.randrange(10**6), 140)
        if generator.random() < 0.5:
            body |= {"stream": False, "stream_options": None}
        reply = await _post(url, body)
        if told.is_set():
            endings.append(f"{'running' if before else 'later'}: {reply.outcome}")
    return endings


async def engine_error(count: int, model: str, calls: int) -> Result:
    """A model that fails at its next calls while clients are served, and then works again."""
    with server("--threads", "1", "--rows", str(count), tiny=True) as process:
        before = process.settled()
        bodies = [chat(seed, 140) for seed in range(count)]
        for body in bodies[::2]:
            body |= {"stream": False, "stream_options": None}
        running = asyncio.gather(*(_post(process.url, body) for body in bodies))
        await asyncio.sleep(0.4)
        process.ask("fail", model=model, calls=calls)
        endings = Counter(reply.outcome for reply in await running)
        process.ask("fail", model=model, calls=0)
        again = Counter([(await _post(process.url, body)).outcome for body in bodies])
        leaked = _leaked(before, process.settled())
        return {
            "model": model,
            "calls": calls,
            "endings": dict(endings),
            "afterwards": dict(again),
            "leaked": leaked,
            "tracebacks": process.tracebacks(),
            "wrong": sum(leaked.values())
            + sum(endings[name] for name in ("cut", "no reply", "hung"))
            + sum(n for name, n in again.items() if name != "answered"),
        }


async def _post(url: str, body: dict[str, Any] | bytes, *path: str) -> Reply:
    try:
        return await asyncio.wait_for(post(url, body, *path), HUNG_SECONDS)
    except TimeoutError:
        return Reply(hung=True, ended=time.perf_counter())


def _groups(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _leaked(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    names = ("open_requests", "rows", "caches", "tasks", "files")
    return {name: after[name] - before[name] for name in names}


FAULTS: dict[str, Callable[[int], Awaitable[Result]]] = {
    "disconnects": lambda count: disconnects(count // 10),
    "mutations": mutations,
    "slow readers": lambda _: slow_readers(16),
    "SIGTERM, 30 s": lambda _: sigterm(16, 30),
    "SIGTERM, 0 s": lambda _: sigterm(16, 0),
    "one batch fails": lambda _: engine_error(8, "small", 1),
    "three calls fail": lambda _: engine_error(8, "small", 3),
    "the large model fails": lambda _: engine_error(8, "large", 10**6),
}


def main() -> None:
    """Run, print a table, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--count", type=int, default=10_000, help="mutated requests")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results: dict[str, Result] = {}
    for name in options.only:
        results[name] = asyncio.run(FAULTS[name](options.count))
        print(f"{name:22} wrong {results[name]['wrong']}  {json.dumps(results[name])}", flush=True)
    if options.out:
        write_json(options.out, {**results, "provenance": provenance(threads=1)})


if __name__ == "__main__":
    main()
