"""Files and repositories of the model hub, from a hub on the loopback interface."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from crossroads.errors import WeightsError
from crossroads.models import hub
from crossroads.models.sources import HubSource
from crossroads.models.weights import fetch
from loopback import CONTENT, SHA, isolate, serving, weights_file


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return isolate(tmp_path, monkeypatch)


FILES = {"config.json": b"{}", "model.safetensors": CONTENT}
COMMIT = "0" * 40


class FakeHub(BaseHTTPRequestHandler):
    """The three addresses of the hub that are asked for, over `FILES`."""

    protocol_version = "HTTP/1.1"
    asked: list[str] = []  # noqa: RUF012  emptied by the fixture

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        self.asked.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
        if self.path.startswith("/api/models/org/tiny"):
            siblings = [
                {"rfilename": name, "size": len(content), "lfs": _lfs(name, content)}
                for name, content in {**FILES, "README.md": b"no"}.items()
            ]
            listing = {"id": "org/tiny", "sha": COMMIT, "siblings": siblings, "tags": []}
            self._send(200, json.dumps(listing).encode(), body, {})
            return
        name = self.path.split("?")[0].rpartition("/")[2]
        content = {**FILES, "tiny.gguf": CONTENT}.get(name)
        if content is None or not self.path.startswith("/org/tiny/resolve/"):
            self._send(404, b"", body, {"X-Error-Code": "EntryNotFound"})
            return
        etag = hashlib.sha256(content).hexdigest()
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if start else 200, content[start:], body, headers)

    def _send(self, status: int, content: bytes, body: bool, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_arguments: object) -> None: ...


def _lfs(name: str, content: bytes) -> dict[str, object] | None:
    if not name.endswith(".safetensors"):
        return None
    sha = hashlib.sha256(content).hexdigest()
    return {"sha256": sha, "size": len(content), "pointerSize": 134}


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    FakeHub.asked.clear()
    with serving(FakeHub) as port:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        yield FakeHub.asked


def test_a_file_comes_from_the_hub_and_nothing_else_is_written(
    fake_hub: list[str], tmp_path: Path, home: Path
) -> None:
    path = fetch(weights_file(HubSource("org/tiny", "tiny.gguf")))
    assert path.read_bytes() == CONTENT
    assert list(home.rglob("*")) == []
    assert {p.name for p in tmp_path.iterdir()} == {"home", "cache"}
    left = {p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()}
    assert left == {"tiny.gguf", "tiny.gguf.json", f"{SHA}.lock"}
    assert any(line.startswith("GET /org/tiny/resolve/main/tiny.gguf") for line in fake_hub)


def test_another_file_on_the_hub_is_refused_before_the_download(fake_hub: list[str]) -> None:
    with pytest.raises(
        WeightsError, match=rf"hub org/tiny: it has another file \(sha256 {SHA[:12]}"
    ):
        fetch(weights_file(HubSource("org/tiny", "tiny.gguf"), sha256="f" * 64))
    assert [line for line in fake_hub if line.startswith("GET")] == []


def test_what_the_hub_lacks_is_said(fake_hub: list[str]) -> None:
    with pytest.raises(WeightsError, match="hub org/tiny: the repository has no such file"):
        fetch(weights_file(HubSource("org/tiny", "other.gguf")))
    assert fake_hub


def test_an_unreachable_hub_and_one_switched_off_are_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = weights_file(HubSource("org/tiny", "tiny.gguf"))
    with pytest.raises(WeightsError, match="hub org/tiny: the hub cannot be reached"):
        fetch(file)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError, match=r"the hub is switched off \(HF_HUB_OFFLINE\)"):
        fetch(file)


def test_a_repository_is_fetched_verified_and_kept(fake_hub: list[str], home: Path) -> None:
    repo = hub.HubRepo("org/tiny")
    with pytest.raises(WeightsError, match="run: crossroads pull org/tiny"):
        hub.require_repo(repo, "org/tiny")
    path = hub.fetch_repo(repo)
    assert {p.name: p.read_bytes() for p in path.iterdir() if p.name in FILES} == FILES
    assert {p.name for p in path.iterdir()} == {*FILES, ".crossroads.json"}
    assert path == hub.require_repo(repo, "org/tiny")
    assert list(home.rglob("*")) == []
    fake_hub.clear()
    assert hub.fetch_repo(repo) == path
    assert fake_hub == []
    before = (path / "model.safetensors").stat()
    (path / "model.safetensors").write_bytes(b"x" + CONTENT[1:])
    os.utime(path / "model.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))
    told: list[str] = []
    hub.fetch_repo(repo, verify=True, tell=told.append)
    assert (path / "model.safetensors").read_bytes() == CONTENT
    assert "model.safetensors is damaged" in told[0]


def test_half_a_repository_is_not_taken_for_a_whole_one(fake_hub: list[str]) -> None:
    repo = hub.HubRepo("org/tiny")
    path = hub.fetch_repo(repo)
    (path / "config.json").unlink()
    assert hub.repo_bytes(repo) is None
    assert hub.fetch_repo(repo) == path
    assert (path / "config.json").exists()
    assert fake_hub
