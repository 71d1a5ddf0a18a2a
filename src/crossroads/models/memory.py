"""How much memory models will take, said before they are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crossroads.errors import EngineError
from crossroads.models.llamacpp_native import UBATCH, NativeModel

_GIB = 2**30
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """What a loaded model takes, in bytes: its weights, the caches of all rows, and scratch."""

    name: str
    weights: int
    caches: int
    scratch: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.caches + self.scratch


def estimate_gguf(path: Path, context_length: int, max_rows: int) -> MemoryEstimate:
    """Return what llama.cpp will take for a GGUF file: read from its header, weights untouched."""
    native = NativeModel(path, vocab_only=True)
    try:
        trained = native.number("context_length", context_length)
        return MemoryEstimate(
            name=path.stem,
            weights=path.stat().st_size,
            caches=native.cache_bytes * max_rows * min(context_length, trained),
            scratch=UBATCH * int(native.llama.llama_vocab_n_tokens(native.vocab)) * 4,
        )
    finally:
        native.close()


def check_memory(
    estimates: Sequence[MemoryEstimate], free: int | None, *, context_length: int, max_rows: int
) -> None:
    """Refuse to load what will not fit. free: bytes, None where nobody can tell.

    Raises:
        EngineError: says what is needed for what, and how much is free.
    """
    needed = sum(estimate.total for estimate in estimates)
    if free is None or needed <= free:
        return
    names = " and ".join(estimate.name for estimate in estimates)
    weights, caches = (
        sum(getattr(estimate, part) for estimate in estimates) / _GIB
        for part in ("weights", "caches")
    )
    raise EngineError(
        f"{names} need about {needed / _GIB:.1f} GiB (weights {weights:.1f}, caches of "
        f"{max_rows} rows of {context_length} tokens {caches:.1f}) and {free / _GIB:.1f} GiB are "
        "free; load with fewer rows or a shorter context, or choose smaller models"
    )


def free_memory() -> int | None:
    """Return how many bytes this process can still get; None on systems that do not say.

    Pages of files count as free: the system drops them when it needs the room.
    """
    found = [value for value in (_free_of_machine(), _free_of_group()) if value is not None]
    return min(found, default=None)


def _free_of_machine() -> int | None:
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kib = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return kib[0] * 1024 if kib else None


def _free_of_group() -> int | None:
    """Return what a container's limit leaves (control groups, version 2)."""
    try:
        limit = int((_CGROUP / "memory.max").read_text(encoding="ascii"))
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        stats = (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):  # no such group, or no limit: "max"
        return None
    droppable = sum(int(line.split()[1]) for line in stats if line.startswith("inactive_file "))
    return limit - used + droppable
