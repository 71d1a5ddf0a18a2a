"""Output folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crossroads.errors import ConfigError


def is_filled(folder: Path) -> bool:
    """Return whether something is at `folder` that a new folder would overwrite.

    Raises:
        ConfigError: it is a file, or cannot be read.
    """
    try:
        return any(folder.iterdir())
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ConfigError(
            f"cannot write the folder {folder}: {error.strerror or error}; give another one"
        ) from error


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `folder` when the block ends without an exception.

    Effects: remains of an earlier call that was killed are removed; an empty `folder` is replaced.

    Raises:
        ConfigError: the folder cannot be written.
    """
    # One name for every process: what a kill left is gigabytes, and the next run must find it.
    temporary = folder.parent / f".{folder.name}.partial"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        _flush(temporary)
        temporary.replace(folder)
    except OSError as error:
        raise ConfigError(
            f"cannot write {folder}: {error.strerror or error}; give a folder that can be written"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Put every file on the disk: a rename must not outlive the content after a power cut."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
