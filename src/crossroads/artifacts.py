"""Reading and writing files so that nobody ever sees half of one.

A whole file appears by rename or not at all. A log grows by one line per finished piece of work;
a line torn by a kill is dropped when the log is read again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from crossroads.errors import ConfigError, DataError

_CHUNK = 1 << 20


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` when the block ends without an exception.

    Raises:
        ConfigError: the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror or error}; give a folder that can be written"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` as the whole of `path`, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, what: str) -> Any:
    """Return the JSON in `path`; `what` names the file's role in the error.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"no {what} at {path}") from error
    except OSError as error:
        raise DataError(f"cannot read the {what} {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"the {what} {path} is not valid JSON: {error}") from error


def save_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Write torch tensors as one safetensors file, atomically."""
    from safetensors import SafetensorError  # noqa: PLC0415  keeps `import artifacts` light
    from safetensors.torch import save_file  # noqa: PLC0415

    with atomic_path(path) as temporary:
        try:
            save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, dict(metadata))
        except SafetensorError as error:  # how the library reports a full disk
            raise OSError(str(error)) from error


def load_tensors(path: Path, what: str) -> dict[str, Any]:
    """Return the tensors of a safetensors file.

    Raises:
        DataError: the file is missing or damaged.
    """
    from safetensors import SafetensorError  # noqa: PLC0415
    from safetensors.torch import load_file  # noqa: PLC0415

    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise DataError(f"no {what} at {path}") from error
    except (SafetensorError, OSError) as error:
        raise DataError(f"the {what} {path} is damaged: {error}") from error


def sha256_file(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """Return the hex SHA-256 of a file; `advance` hears of every chunk's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            if advance is not None:
                advance(len(chunk))
    return digest.hexdigest()


def canonical_hash(value: Any) -> str:
    """Return the hex SHA-256 of a JSON value, independent of key order and spacing."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class ResumableLog:
    """A JSON-lines file of finished pieces of work, one line each, flushed as they finish.

    Reading changes nothing, so that one may look on while another process writes: a last line
    without its end is passed over, and cut off by whoever writes next.
    """

    def __init__(self, path: Path) -> None:
        """Name the log; it need not exist."""
        self.path = path
        self._mended = False

    def mend(self) -> None:
        """Cut off a last line that a kill tore, once. For the one process that writes."""
        if self._mended or not self.path.exists():
            return
        self._mended = True
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            whole = _end_of_last_line(file, size)
        if whole != size:  # a whole log is not touched: it may be read-only
            os.truncate(self.path, whole)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield whole lines and where they begin."""
        if not self.path.exists():
            return
        offset = 0
        with self.path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield offset, line
                offset += len(line)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield every finished record.

        Raises:
            DataError: a line is not JSON.
        """
        for number, (_, line) in enumerate(self._lines(), start=1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise DataError(f"{self.path} line {number} is not JSON: {error}") from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record; it survives a kill once this returns."""
        line = _line(record)
        try:
            self.mend()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ConfigError(f"cannot write {self.path}: {error.strerror or error}") from error


def write_log(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write `records` as the whole of a log, atomically; the lines are those of `append`."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(_line(record) for record in records)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def _end_of_last_line(file: BinaryIO, size: int) -> int:
    """Return where the last newline ends, read backwards: a log may be large."""
    end = size
    while end > 0:
        start = max(0, end - _CHUNK)
        file.seek(start)
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


class IndexedLog(ResumableLog):
    """A resumable log that is read by the `key` of its records.

    Only keys and offsets are in memory; a record is read from the disk when it is asked for.
    """

    def __init__(self, path: Path) -> None:
        """Open the log and index it.

        Raises:
            DataError: a record has no key.
        """
        super().__init__(path)
        self._offsets: dict[str, int] = {}
        for offset, line in self._lines():
            record = self._parse(line, offset)
            self._offsets[record["key"]] = offset

    def _parse(self, line: bytes, offset: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{self.path} is not JSON at byte {offset}: {error}") from error
        if not isinstance(record, dict) or not isinstance(record.get("key"), str):
            raise DataError(f"{self.path} has a record without a key at byte {offset}")
        return record

    def __contains__(self, key: object) -> bool:
        """Return whether there is a record of that key."""
        return key in self._offsets

    def __len__(self) -> int:
        """Number of keys."""
        return len(self._offsets)

    def keys(self) -> Iterable[str]:
        """Return the keys in the order in which they were first written."""
        return self._offsets.keys()

    def get(self, key: str) -> dict[str, Any]:
        """Return the newest record of `key`; KeyError without one."""
        offset = self._offsets[key]
        with self.path.open("rb") as file:
            file.seek(offset)
            return self._parse(file.readline(), offset)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record, which replaces an older one of its key; it survives a kill."""
        self.mend()
        offset = self.path.stat().st_size if self.path.exists() else 0
        super().append(record)
        self._offsets[record["key"]] = offset


def ensure_writable(folder: Path) -> None:
    """Create `folder` and prove that files can be written there, before long work starts.

    Raises:
        ConfigError: they cannot.
    """
    with atomic_path(folder / ".writable") as temporary:
        temporary.write_bytes(b"")
    (folder / ".writable").unlink(missing_ok=True)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process alone while the block runs; a kill lets go of it, too.

    Two processes that resume one run would do the same work twice and write into one log.

    Raises:
        ConfigError: another process works there, or the folder cannot be written.
    """
    ensure_writable(folder)
    try:
        import fcntl  # noqa: PLC0415  not on Windows, where nothing is held
    except ImportError:
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another process is working in {folder}; wait until it has ended, or stop it"
            ) from error
        yield


def pin_config(path: Path, config: Mapping[str, Any], what: str) -> None:
    """Write `config` to `path`, or check that it equals what an earlier run wrote there.

    Raises:
        ConfigError: a resumed run was asked for with another config; names what changed.
    """
    if not path.exists():
        write_json(path, dict(config))
        return
    before = read_json(path, what)
    plain = json.loads(json.dumps(dict(config)))
    changed = sorted(k for k in {*before, *plain} if before.get(k) != plain.get(k))
    if changed:
        details = "; ".join(f"{k}: was {before.get(k)!r}, now {plain.get(k)!r}" for k in changed)
        raise ConfigError(
            f"{path.parent} holds {what} of another run ({details}); "
            "give another output folder, or the old settings to go on"
        )
