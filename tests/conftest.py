"""Fixtures that many tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from crossroads.dataset import LabelledDataset
from crossroads.errors import CrossroadsError
from crossroads.labelling.judges.likelihood import LikelihoodJudge
from crossroads.labelling.respond import RespondConfig
from crossroads.labelling.run import LabelConfig, label
from crossroads.models.catalogue import find_pair
from crossroads.models.pairs import Pair, load_pair
from crossroads.models.store import locate
from crossroads.types import Message, Problem, SilentProgress
from laws.pairs import scripted_pair

# A busy machine makes a slow example, not a wrong one.
settings.register_profile("crossroads", deadline=None)
settings.load_profile("crossroads")


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


def _labelled(folder: Path, letter: str, count: int) -> LabelledDataset:
    problems = [
        Problem(f"{letter.lower()}{i}", (Message("user", f"{letter}{i}" * 3),), "1")
        for i in range(count)
    ]
    config = LabelConfig(RespondConfig(max_tokens=300))
    label(scripted_pair(), problems, [LikelihoodJudge(0.1)], folder, SilentProgress(), config)
    return LabelledDataset.open(folder)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LabelledDataset:
    """Return 60 problems answered and labelled by the scripted pair."""
    return _labelled(tmp_path_factory.mktemp("labels"), "P", 60)


@pytest.fixture(scope="session")
def second_dataset(tmp_path_factory: pytest.TempPathFactory) -> LabelledDataset:
    """Return 20 other problems of the same pair."""
    return _labelled(tmp_path_factory.mktemp("more-labels"), "R", 20)
