"""Scripted pairs by name, for workers of this process or of another one."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from crossroads.errors import EngineError
from crossroads.labelling.continue_ import ContinueConfig
from crossroads.labelling.respond import RespondConfig
from crossroads.labelling.run import STAGES, LabelConfig
from crossroads.labelling.sharded import LabelOrder
from crossroads.models.pairs import Pair
from crossroads.types import Message, Problem
from laws.pairs import scripted_pair


@dataclass(frozen=True)
class ScriptedSource:
    """Loads the scripted pair."""

    def load(self, *, max_rows: int) -> Pair:
        return scripted_pair(max_rows)


@dataclass(frozen=True)
class BrokenSource:
    """A pair that no worker can load."""

    def load(self, *, max_rows: int) -> Pair:
        raise EngineError("the large model needs 40 GB and 3 are free; give another pair")


@dataclass(frozen=True)
class DeadlySource:
    """Loading it is the end of the process, as when the machine has no memory left."""

    def load(self, *, max_rows: int) -> Pair:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def order(folder: Path, count: int = 12, source=None, stages=STAGES, **responses) -> LabelOrder:
    """Return an order with two judges; ids hold what keys and file names are made of."""
    ids = [f"d{i}" if i % 2 else f"d#{i}@{i}/0" for i in range(count)]
    problems = [
        Problem(name, (Message("user", f"PROBLEM {i * i}"),), "1", f"kind{i % 2}")
        for i, name in enumerate(ids)
    ]
    config = LabelConfig(RespondConfig(max_tokens=40, **responses), ContinueConfig(), max_rows=3)
    return LabelOrder(
        folder,
        tuple(problems),
        source or ScriptedSource(),
        ("likelihood", "convergence"),
        tuple(stages),
        config,
        folder / "cache",
    )
