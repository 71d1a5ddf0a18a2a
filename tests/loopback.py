"""A tiny file of weights and places to fetch it from, all of them on this machine."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from crossroads.models.sources import Source, WeightsFile

PARTS = (b"one" * 5000, b"two" * 7000, b"three" * 11)
CONTENT = b"".join(PARTS)
SHA = hashlib.sha256(CONTENT).hexdigest()


def weights_file(*where: Source, sha256: str = SHA, size: int = len(CONTENT)) -> WeightsFile:
    return WeightsFile("tiny.gguf", sha256, size, where)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def isolate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test a home, a cache, a pip and a hub that know nothing of the machine's own."""
    home = tmp_path / "home"
    home.mkdir()
    for name in [name for name in os.environ if name.startswith(("PIP_", "HF_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("CROSSROADS_CACHE", str(tmp_path / "cache"))
    # pip asks rustc for its version, and rustup's rustc writes settings to a new home.
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return home


class serving:  # noqa: N801  reads as a verb
    """A loopback HTTP server for the length of a block."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))

    def __enter__(self) -> int:
        self.thread.start()
        return self.server.server_address[1]

    def __exit__(self, *_exception: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
