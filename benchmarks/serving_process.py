"""A server process of its own for the benchmarks of serving; see serving_probe.py."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
START_SECONDS, STOP_SECONDS = 180, 90

TINY_CONTEXT = 256
"""Tokens of a row of the tiny pair, prompt included."""


class ServerProcess:
    """A running `crossroads serve` and what it holds."""

    def __init__(self, options: Sequence[str], log: Path) -> None:
        """Start it on a free port and wait until it serves; its log goes to `log`."""
        self.log = log
        self._told = False
        command = [sys.executable, str(HERE / "serving_probe.py"), "--port", "0", *options]
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.url = self._wait_for_url()
        self.held()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def _wait_for_url(self) -> str:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            text = self.log.read_text(encoding="utf-8")
            if found := re.search(r"with router .*: (http://\S+)\n", text):
                return found[1]
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        self._process.kill()
        raise SystemExit(f"the server did not start:\n{self.log.read_text(encoding='utf-8')}")

    def ask(self, do: str, **values: Any) -> Any:
        """Return the answer of serving_probe.py to an order."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **values}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def held(self, *, collect: bool = True) -> dict[str, float]:
        """Return what the process holds now; collect: garbage aside."""
        held: dict[str, float] = self.ask("held", collect=collect)
        return held

    def settled(self, seconds: float = 10.0) -> dict[str, float]:
        """Return what it holds once no request is open, `seconds` from now at the latest."""
        end = time.monotonic() + seconds
        while True:
            held = self.held()
            busy = held["open_requests"] or held["rows"] or held["caches"]
            if not busy or time.monotonic() > end:
                return held
            time.sleep(0.05)

    def signal(self) -> None:
        """Tell it to stop."""
        self._told = True
        self._process.send_signal(signal.SIGTERM)

    def end(self) -> float:
        """Return how many seconds it takes to stop, told once; kill it if it does not."""
        started = time.monotonic()
        if not self._told:
            self.signal()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        return time.monotonic() - started

    def tracebacks(self) -> int:
        """Return how many tracebacks are in its log."""
        return self.log.read_text(encoding="utf-8").count("Traceback (most recent call last)")


def tiny_pair(folder: Path) -> list[str]:
    """Write two tiny random models into a folder; return the options that serve them.

    They end no answer by themselves, so that it has the length that was asked for.
    """
    sys.path.append(str(HERE.parent / "tests"))
    import builders  # noqa: PLC0415

    tiny_weights = builders.tiny_weights

    def endless(*arguments: Any, **named: Any) -> Any:
        weights = tiny_weights(*arguments, **named)
        weights["lm_head.weight"][builders.IM_END] = 0  # a logit far below the best of 290
        return weights

    builders.tiny_weights = endless
    small = builders.tiny_gguf(folder / "small.gguf", 2, agrees_with=1)
    large = builders.tiny_gguf(folder / "large.gguf", 1)
    models = ["--small", str(small), "--large", str(large), "--context", str(TINY_CONTEXT)]
    return [*models, "--router", "entropy", "--threshold", "0.68"]


@contextmanager
def server(*options: str, tiny: bool = False) -> Iterator[ServerProcess]:
    """Serve the default pair, or the tiny one, until the block ends."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        models = tiny_pair(folder) if tiny else []
        process = ServerProcess([*models, *options], folder / "log")
        try:
            yield process
        finally:
            process.end()
