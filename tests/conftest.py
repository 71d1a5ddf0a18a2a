"""Fixtures that many tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from crossroads.errors import CrossroadsError
from crossroads.models.catalogue import find_pair
from crossroads.models.pairs import Pair, load_pair
from crossroads.models.store import locate


@pytest.fixture(scope="session")
def small_gguf_path() -> Path:
    """Return the default pair's small model; skip where it was not pulled."""
    spec = find_pair("qwen2.5-coder")
    try:
        return locate(spec.small, pull=spec.name)
    except CrossroadsError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def real_pair(small_gguf_path: Path) -> Iterator[Pair]:
    """Return the default pair, loaded for a few short rows."""
    del small_gguf_path
    with load_pair("qwen2.5-coder", context_length=512, max_rows=4) as pair:
        yield pair
