"""Model weights named by size and SHA-256, kept in one cache, whichever source they came from.

Everything is written under `cache_root()` and nowhere else:

    weights/<sha256>/<name>          a verified file; beside it a JSON that remembers it
    repos/<revision>/<org>/<name>/   a verified folder of the model hub (see `hub.py`)
    partial/<sha256>/                what a killed download left; the next one goes on from there
    locks/, hashes/                  one lock per file; remembered hashes of users' own files
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

from crossroads.artifacts import read_json, sha256_file, write_json
from crossroads.errors import CrossroadsError, WeightsError
from crossroads.models.sources import LocalSource, Source, SourceError, WeightsFile, obtain
from crossroads.types import Progress, SilentProgress

Tell = Callable[[str], None]


def ignore(_message: str) -> None:
    """Drop a message."""


class CacheState(StrEnum):
    """What the cache holds of a file, as far as size and the remembered check can tell."""

    READY = "ready"
    UNCHECKED = "unchecked"
    HALF = "half"
    ABSENT = "absent"


def cache_root() -> Path:
    """Return the folder that holds every download; nothing is created."""
    if own := os.environ.get("CROSSROADS_CACHE"):
        return Path(own).expanduser().absolute()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser().absolute() / "crossroads"
    return Path("~/.cache/crossroads").expanduser()


def blob_path(file: WeightsFile) -> Path:
    """Return where the cache keeps `file`, present or not."""
    # The name is kept because engines call a model by its file's name.
    return cache_root() / "weights" / file.sha256 / file.name


def partial_path(key: str) -> Path:
    """Return the folder where downloads of `key` are kept until they are whole."""
    return cache_root() / "partial" / key


def cache_state(file: WeightsFile) -> CacheState:
    """Say what the cache holds of `file`, without reading it."""
    path = blob_path(file)
    if not path.is_file():
        return CacheState.ABSENT
    if path.stat().st_size != file.size:
        return CacheState.HALF
    return CacheState.READY if _remembered(path, _note_of(path)) else CacheState.UNCHECKED


def require(file: WeightsFile, pull: str, progress: Progress | None = None) -> Path:
    """Return the verified path of cached weights; never downloads.

    Raises:
        WeightsError: they are not in the cache, or what is there is damaged; says to pull `pull`.
    """
    state = cache_state(file)
    path = blob_path(file)
    advice = f"run: crossroads pull {pull}"
    if state is CacheState.ABSENT:
        raise WeightsError(f"the weights {file.name} are not in {cache_root()}; {advice}")
    if state is CacheState.HALF:
        size = path.stat().st_size
        raise WeightsError(
            f"the cached weights {file.name} are half a file ({size:,} of {file.size:,} bytes at "
            f"{path}); {advice}"
        )
    if state is CacheState.UNCHECKED and (got := _hash(path, file.name, progress)) != file.sha256:
        raise WeightsError(
            f"the cached weights {file.name} are damaged (sha256 {got[:12]}, expected "
            f"{file.sha256[:12]}, at {path}); {advice}"
        )
    if state is CacheState.UNCHECKED:
        _remember(path, _note_of(path), file.sha256)
    return path


def fetch(
    file: WeightsFile,
    *,
    given: Sequence[Path] = (),
    verify: bool = False,
    progress: Progress | None = None,
    tell: Tell = ignore,
) -> Path:
    """Return the path of `file` in the cache, fetching it if it is not there.

    Sources are tried in order, the user's own paths first; `tell` hears why one was passed over.
    `verify` hashes a cached file again instead of trusting the remembered check.
    Effects: the file and its note appear in the cache. A download that is cut off goes on from
    its finished parts when called again.

    Raises:
        WeightsError: no source has the file; one sentence per source.
    """
    progress = progress or SilentProgress()
    with writable(cache_root()), lock(file.sha256, file.name, tell):
        if _usable(file, verify=verify, progress=progress, tell=tell):
            return blob_path(file)
        own: list[Source] = [LocalSource(tuple(given))] if given else []
        failures: list[str] = []
        for source in (*own, *file.sources):
            if failures:
                tell(f"{file.name}: {failures[-1]}; trying {source.label}")
            try:
                return _fetch_from(source, file, progress)
            except SourceError as error:
                failures.append(f"{source.label}: {error}")
                with suppress(OSError):  # not empty: finished parts wait there for another day
                    partial_path(file.sha256).rmdir()
    reasons = "; ".join(failures) or "no source is known"
    raise WeightsError(f"cannot get {file.name}: {reasons}. A copy can be given with --from PATH")


def _fetch_from(source: Source, file: WeightsFile, progress: Progress) -> Path:
    """Get the file from one source, verify it, and move it into place."""
    partial = partial_path(file.sha256)
    partial.mkdir(parents=True, exist_ok=True)
    candidate = obtain(source, file, partial, progress)
    got_size = candidate.stat().st_size
    got = _hash(candidate, file.name, progress) if got_size == file.size else ""
    if got != file.sha256:
        shutil.rmtree(partial)  # parts included: one of them is bad, and nothing says which
        if not got:
            raise SourceError(f"gave {got_size:,} bytes, expected {file.size:,}; deleted")
        raise SourceError(
            f"gave another file (sha256 {got[:12]}, expected {file.sha256[:12]}); deleted"
        )
    return _install(candidate, file)


def _install(candidate: Path, file: WeightsFile) -> Path:
    """Move a verified file to its place in the cache; the only way a blob gets there."""
    path = blob_path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    with candidate.open("rb") as opened:
        os.fsync(opened.fileno())
    candidate.replace(path)
    _remember(path, _note_of(path), file.sha256)
    shutil.rmtree(partial_path(file.sha256), ignore_errors=True)
    return path


def _usable(file: WeightsFile, *, verify: bool, progress: Progress, tell: Tell) -> bool:
    """Say whether the cached file can be used; one that cannot is named and deleted."""
    path, state = blob_path(file), cache_state(file)
    if state is CacheState.ABSENT:
        return False
    if state is CacheState.HALF:
        size = path.stat().st_size
        tell(f"{path} is half a file ({size:,} of {file.size:,} bytes); fetching it again")
    elif state is CacheState.READY and not verify:
        return True
    elif (got := _hash(path, file.name, progress)) == file.sha256:
        _remember(path, _note_of(path), file.sha256)
        return True
    else:
        tell(
            f"{path} is damaged (sha256 {got[:12]}, expected {file.sha256[:12]}); fetching it again"
        )
    path.unlink()
    _note_of(path).unlink(missing_ok=True)
    return False


def file_sha256(path: Path, progress: Progress | None = None) -> str:
    """Return the hash of a user's own file, remembered in the cache until the file changes."""
    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    note = cache_root() / "hashes" / f"{key}.json"
    if remembered := _remembered(path, note):
        return remembered
    digest = _hash(path, path.name, progress)
    with suppress(CrossroadsError):  # a cache that cannot be written costs time, not the answer
        _remember(path, note, digest)
    return digest


def _hash(path: Path, name: str, progress: Progress | None) -> str:
    progress = progress or SilentProgress()
    progress.start(f"checking {name}", path.stat().st_size, "B")
    try:
        return sha256_file(path, progress.advance)
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    finally:
        progress.finish()


def _note_of(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _remember(path: Path, note: Path, sha256: str) -> None:
    """Write down that `path`, as it is now, was hashed; spares a rehash at every start."""
    status = path.stat()
    write_json(note, {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256})


def _remembered(path: Path, note: Path) -> str | None:
    """Return the hash that `path` had when it was last read, if it has not changed since."""
    try:
        value: Any = read_json(note, "note")
        status = path.stat()
        if (value["size"], value["mtime_ns"]) == (status.st_size, status.st_mtime_ns):
            return str(value["sha256"])
    except (CrossroadsError, OSError, KeyError, TypeError):
        pass  # no note, or one that nobody can read: hash again
    return None


@contextmanager
def writable(root: Path) -> Iterator[None]:
    """Turn a failure to write under `root` into one sentence.

    Raises:
        WeightsError: the cache cannot be written, or its disk is full.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise WeightsError(
            f"cannot write to the cache {root}: {error.strerror or error}; free some space or set "
            "CROSSROADS_CACHE to another folder"
        ) from error


@contextmanager
def lock(key: str, name: str, tell: Tell) -> Iterator[None]:
    """Let one process at a time work on `key`; another waits and says so.

    The operating system drops the lock when its holder dies, so a killed pull blocks nobody.
    """
    if sys.platform == "win32":  # no flock there: two pulls at once only do the work twice
        yield
        return
    import fcntl  # noqa: PLC0415  not on every platform

    path = cache_root() / "locks" / f"{key}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(f"another process is fetching {name}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
