"""`crossroads serve` in a process that can be asked what it holds, for the benchmarks of serving.

    python benchmarks/serving_probe.py --port 0 --threads 1

Takes the options of `crossroads serve`. Each line of standard input is a JSON object with `do`,
each line of standard output its answer: `held` (memory, tasks, threads, files, rows), `fail` (a
model's next calls raise an error), `bare` (chats through the mixed loop itself, without a server).
The process ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from crossroads.cli.main import main
from crossroads.decoding.mixed import generate
from crossroads.errors import EngineError
from crossroads.serving import app
from crossroads.serving.protocol import parse_chat
from crossroads.serving.service import Service


@dataclass
class Probe:
    """What the process knows of the server that runs in it."""

    ready: threading.Event = field(default_factory=threading.Event)
    service: Service | None = None
    loop: asyncio.AbstractEventLoop | None = None
    failures: dict[str, int] = field(default_factory=dict)

    def watch(self, service: Service) -> None:
        """Remember the server, and let its models fail when they are told to."""
        self.service, self.loop = service, asyncio.get_running_loop()
        models = service.engine.models
        for name, model in (("small", models.small), ("large", models.large)):
            model.extend = self._failing(name, model.extend)  # type: ignore[method-assign]
        self.ready.set()

    def _failing(self, name: str, extend: Any) -> Any:
        def failing(*arguments: Any) -> Any:
            if self.failures.get(name, 0) > 0:
                self.failures[name] -= 1
                raise EngineError(f"{name} was told to fail")
            return extend(*arguments)

        return failing

    def answer(self, order: dict[str, Any]) -> Any:
        """Do what a line of standard input asks."""
        self.ready.wait()
        return getattr(self, f"do_{order.pop('do')}")(**order)

    def do_held(self, collect: bool = False) -> dict[str, float]:
        """Return what the process holds; collect: after a garbage collection."""
        assert self.service is not None
        assert self.loop is not None
        if collect:
            gc.collect()
        engine = self.service.engine
        process = psutil.Process()
        times = process.cpu_times()
        return {
            "cpu_seconds": times.user + times.system,
            "rss_mib": process.memory_info().rss / 2**20,
            "private_mib": _private() / 2**20,
            "tasks": len(asyncio.all_tasks(self.loop)),
            "threads": process.num_threads(),
            "files": process.num_fds(),
            "open_requests": len(engine._open),
            "rows": len(engine._rows),
            "caches": sum(
                m.info.max_rows - len(m._free_slots)
                for m in (engine.models.small, engine.models.large)
            )
            - len(getattr(engine, "_kept", ())),  # of ended rows, for those that begin alike
        }

    def do_fail(self, model: str, calls: int) -> None:
        """Let the next calls of a model fail."""
        self.failures[model] = calls

    def do_bare(self, bodies: list[dict[str, Any]], rows: int) -> dict[str, int]:
        """Return the tokens of chats that went through the loop alone, `rows` at a time.

        The server's engine must be idle: the models are its own.
        """
        assert self.service is not None
        chats = [parse_chat(json.dumps(body).encode()) for body in bodies]
        requests = [self.service.chat_work(chat).requests[0] for chat in chats]
        found = [trace for _, trace in generate(self.service.models, requests, max_rows=rows)]
        return {"tokens": sum(len(trace.records) for trace in found)}


def _private() -> int:
    """Return the bytes of memory that hold no file: the system does not take them back."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def listen(probe: Probe) -> None:
    """Answer lines until there are no more; then end the process."""
    try:
        for line in sys.stdin:
            print(json.dumps(probe.answer(json.loads(line))), flush=True)
    finally:  # whoever asked may be gone before the answer
        os.kill(os.getpid(), signal.SIGTERM)


def serve() -> None:
    """Run the command with a probe in it."""
    probe, create_app = Probe(), app.create_app

    def watched(service: Service, *rest: Any) -> Any:
        probe.watch(service)
        return create_app(service, *rest)

    app.create_app = watched
    threading.Thread(target=listen, args=[probe], daemon=True).start()
    main(["serve", *sys.argv[1:]])


if __name__ == "__main__":
    serve()
