"""What loading will take is said before it is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

import builders
from crossroads.errors import EngineError
from crossroads.models import memory
from crossroads.models.memory import MemoryEstimate, check_memory, estimate_gguf, free_memory

pytest.importorskip("llama_cpp")
GIB = 2**30


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builders.tiny_gguf(tmp_path_factory.mktemp("memory") / "tiny.gguf")


def test_an_estimate_is_weights_caches_and_scratch(gguf: Path) -> None:
    one = estimate_gguf(gguf, context_length=32, max_rows=1)
    assert one.weights == gguf.stat().st_size
    assert one.caches > 0
    assert one.scratch > 0
    assert estimate_gguf(gguf, context_length=32, max_rows=3).caches == 3 * one.caches
    assert estimate_gguf(gguf, context_length=16, max_rows=1).caches == one.caches // 2
    # A context longer than what the model was trained for is not opened, and not counted.
    longest = estimate_gguf(gguf, context_length=10**6, max_rows=1)
    assert longest.caches == estimate_gguf(gguf, context_length=10**9, max_rows=1).caches


def test_what_fits_is_loaded_and_what_nobody_can_tell_is_tried() -> None:
    model = MemoryEstimate("m", weights=2 * GIB, caches=GIB, scratch=0)
    check_memory([model], 3 * GIB, context_length=10, max_rows=1)
    check_memory([model], None, context_length=10, max_rows=1)


def test_what_does_not_fit_is_refused_with_the_estimate() -> None:
    small = MemoryEstimate("small", GIB, GIB // 2, 0)
    large = MemoryEstimate("large", 2 * GIB, GIB, 0)
    with pytest.raises(EngineError) as caught:
        check_memory([small, large], 4 * GIB, context_length=4096, max_rows=8)
    assert str(caught.value) == (
        "small and large need about 4.5 GiB (weights 3.0, caches of 8 rows of 4096 tokens 1.5) "
        "and 4.0 GiB are free; load with fewer rows or a shorter context, or choose smaller models"
    )


def test_a_pair_that_does_not_fit_is_not_loaded(
    gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crossroads.models.pairs import load_pair, resolve_pair

    monkeypatch.setattr(memory, "free_memory", lambda: 1000)
    with pytest.raises(EngineError, match="GiB are free"):
        load_pair(resolve_pair(small=str(gguf), large=str(gguf)))


def test_this_machine_says_what_is_free_or_nothing() -> None:
    free = free_memory()
    assert free is None or free > 0
