"""What rows see when the large model's vLLM server dies, comes back, stands still, or is full.

    python benchmarks/vllm_faults.py --small SMALL --large LARGE --out faults.json

SMALL and LARGE are folders of safetensors; both servers are started here. Each fault happens in
the middle of the same greedy requests, and their tokens are compared with an undisturbed run's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import re
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np

from crossroads.artifacts import write_json
from crossroads.decoding.request import Request
from crossroads.errors import CrossroadsError
from crossroads.models.remote_client import VllmClient
from crossroads.models.server_pool import Patience
from crossroads.models.vllm_server import RunningServer, ServerPlan, free_port, wait_until_ready
from crossroads.provenance import provenance
from crossroads.types import Cause, OnLoss, Trace
from crossroads.vllm.asking import has_plugin
from crossroads.vllm.between import Ahead, Servers
from crossroads.vllm.engine import VllmEngine
from crossroads.vllm.pair import ElsewherePair, describe_pair

Fault = Callable[["Line"], Awaitable[None]]


@dataclasses.dataclass
class Line:
    """Both servers, and where the large one is."""

    pair: ElsewherePair
    small: RunningServer
    large: RunningServer

    def restart(self, rows: int | None = None) -> None:
        """Start the large server again where it was, for so many rows at a time."""
        plan = self.large.plan
        plan = dataclasses.replace(plan, rows=plan.rows if rows is None else rows)
        self.large = RunningServer(plan, self.large.port)

    async def wait(self) -> None:
        """Wait for the large server."""
        await asyncio.to_thread(wait_until_ready, {"large": self.large}, 1800, print)


def main() -> None:
    """Start, disturb, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", required=True)
    parser.add_argument("--large", required=True)
    parser.add_argument("--args", default="", help="more of vLLM's arguments, for both servers")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=120)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument(
        "--ahead", type=int, nargs=2, default=[16, 2], metavar=("TOKENS", "ASKS"),
        help="how far rows go before the large model answers; not at all in the undisturbed run",
    )  # fmt: skip
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    pair = describe_pair(
        options.small, options.large, "random", 0.8, context_length=options.context
    )
    context = min(m.info.context_length for m in (pair.models.small, pair.models.large))
    with tempfile.TemporaryDirectory() as folder:
        plans = [
            ServerPlan(name, model, router, context, 4, Path(folder) / f"{name}.log", options.args)
            for name, model, router in (
                ("small", options.small, "random"), ("large", options.large, "never")
            )
        ]  # fmt: skip
        line = Line(pair, *(RunningServer(plan, free_port()) for plan in plans))
        try:
            wait_until_ready({"small": line.small, "large": line.large}, 1800, print)
            found = asyncio.run(_all(line, options))
        finally:
            line.small.stop()
            line.large.stop()
    print(json.dumps(found, indent=2))
    if options.out:
        write_json(options.out, {"faults": found, "provenance": provenance()})


async def _all(line: Line, options: argparse.Namespace) -> dict[str, Any]:
    requests = _requests(line.pair, options.requests, options.tokens)
    expected, quiet = await _run(line, requests, OnLoss.FAIL)
    found: dict[str, Any] = {"undisturbed": {"seconds": quiet, "answered": len(expected)}}
    for name, fault, on_loss, give_up in (
        ("killed and restarted", _kill_and_restart, OnLoss.FAIL, 600.0),
        ("stopped for 10 s", _freeze, OnLoss.FAIL, 600.0),
        ("killed for good, fail", _kill, OnLoss.FAIL, 10.0),
        ("killed for good, small", _kill, OnLoss.SMALL, 10.0),
    ):
        if line.large.process.poll() is not None:
            line.restart()
            await line.wait()
        ahead = Ahead(*options.ahead)
        disturb = partial(_after, 0.3 * quiet, fault, line)
        traces, seconds = await _run(line, requests, on_loss, give_up, ahead=ahead, disturb=disturb)
        found[name] = {"seconds": seconds, **_compare(traces, expected)}
    found["full: one row at a time"] = await _fill(line, requests, expected, Ahead(*options.ahead))
    return found


async def _fill(
    line: Line,
    requests: Sequence[Request],
    expected: Sequence[Trace | CrossroadsError],
    ahead: Ahead,
) -> dict[str, Any]:
    """Let all rows run at once where the large server takes one at a time; return what they see.

    waiting: requests in that server's queue, at most, of those that were counted.
    """
    line.large.stop()
    line.restart(rows=1)
    await line.wait()
    counting = asyncio.create_task(_count_waiting(line))
    traces, seconds = await _run(
        line, requests, OnLoss.FAIL, 600.0, rows=len(requests), ahead=ahead
    )
    counting.cancel()
    (waiting,) = await asyncio.gather(counting)
    return {"seconds": seconds, "waiting": waiting, **_compare(traces, expected)}


async def _count_waiting(line: Line) -> int:
    """Look at the large server's queue until cancelled; return the longest that was seen."""
    most = 0
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            text = await asyncio.to_thread(_metrics, line.large.url)
            found = re.findall(r"^vllm:num_requests_waiting\{[^}]*\} (\S+)", text, re.MULTILINE)
            most = max([most, *(int(float(value)) for value in found)])
            await asyncio.sleep(0.1)
    return most


def _metrics(url: str) -> str:
    with urlopen(f"{url}/metrics", timeout=10) as reply:
        return str(reply.read().decode())


async def _after(seconds: float, fault: Fault, line: Line) -> None:
    await asyncio.sleep(seconds)
    await fault(line)


def _server(line: Line) -> int:
    """Return the process, and its group, that the large server's guard has started."""
    guard = line.large.process.pid
    return int(Path(f"/proc/{guard}/task/{guard}/children").read_text().split()[0])


async def _kill(line: Line) -> None:
    os.killpg(_server(line), signal.SIGKILL)
    await asyncio.to_thread(line.large.process.wait)


async def _kill_and_restart(line: Line) -> None:
    await _kill(line)
    line.restart()


async def _freeze(line: Line) -> None:
    group = _server(line)
    os.killpg(group, signal.SIGSTOP)
    await asyncio.sleep(10)
    os.killpg(group, signal.SIGCONT)


async def _run(
    line: Line,
    requests: Sequence[Request],
    on_loss: OnLoss,
    give_up: float = 60.0,
    rows: int = 4,
    ahead: Ahead = Ahead(),  # noqa: B008
    disturb: Callable[[], Awaitable[None]] | None = None,
) -> tuple[list[Trace | CrossroadsError], float]:
    """Return what became of the requests, and the seconds that they took.

    A server that has just started takes its time for its first request; that is before.
    """
    patience = Patience(token=60.0, down=1.0, give_up=give_up)
    small = VllmClient([line.small.url], "small", patience)
    large = VllmClient([line.large.url], "large", patience)
    servers = Servers(small, large, await has_plugin(large, line.pair.models), on_loss)
    engine = VllmEngine(line.pair.models, servers, max_rows=rows, ahead=ahead)

    async def one(request: Request) -> Trace | CrossroadsError:
        try:
            trace = [event async for event in engine.generate(request)][-1].trace
            assert trace is not None
            return trace
        except CrossroadsError as error:
            return error

    await one(dataclasses.replace(requests[0], max_tokens=4, threshold=0.0))
    started = time.perf_counter()
    disturbing = [] if disturb is None else [asyncio.ensure_future(disturb())]
    traces = await asyncio.gather(*(one(request) for request in requests))
    seconds = time.perf_counter() - started
    await asyncio.gather(*disturbing)
    await engine.close()
    return list(traces), seconds


def _compare(
    found: Sequence[Trace | CrossroadsError], expected: Sequence[Trace | CrossroadsError]
) -> dict[str, int]:
    traces = [t for t in found if isinstance(t, Trace)]
    pairs = [
        (t, e) for t, e in zip(found, expected, strict=True)
        if isinstance(t, Trace) and isinstance(e, Trace)
    ]  # fmt: skip
    lost = [r for t in traces for r in t.records if r.cause is Cause.UNAVAILABLE]
    return {
        "answered": len(traces),
        "errors": len(found) - len(traces),
        "same_tokens": sum(t.token_ids == e.token_ids for t, e in pairs),
        "tokens_without_large": len(lost),
    }


def _requests(pair: ElsewherePair, count: int, tokens: int) -> list[Request]:
    generator = np.random.default_rng(1)
    known = [i for i, piece in enumerate(pair.models.tokenizer.pieces()) if piece]
    return [
        Request(tuple(int(i) for i in generator.choice(known, 32)), max_tokens=tokens)
        for _ in range(count)
    ]


if __name__ == "__main__":
    main()
