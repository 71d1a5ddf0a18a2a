"""Fixtures that many tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
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


def pytest_configure(config: pytest.Config) -> None:
    """Give each worker of a parallel run cores of its own, and so whatever it starts.

    Engines take a thread for every core that they may use, and wait for each other in a loop: two
    of them on the same cores are many times slower than one after the other.
    """
    worker = getattr(config, "workerinput", None)
    if worker is None or not hasattr(os, "sched_setaffinity"):
        return
    number = int(worker["workerid"].removeprefix("gw"))
    cores = sorted(os.sched_getaffinity(0))
    own = cores[number % len(cores) :: worker["workercount"]]
    os.sched_setaffinity(0, own)
    torch.set_num_threads(len(own))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long, or at the end one worker would wait for another."""
    long = {
        item.path
        for item in items
        if item.get_closest_marker("slow") or item.get_closest_marker("pair")
    }
    items.sort(key=lambda item: item.path not in long)


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
