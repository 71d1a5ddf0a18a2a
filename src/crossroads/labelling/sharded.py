"""Labelling by several workers: what one is told, and the order of the whole.

Who runs the workers is a `Runner`: Ray (`labelling.ray_workers`), or anything else that can call a
function with plain data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from crossroads.artifacts import exclusive
from crossroads.errors import ConfigError
from crossroads.labelling.judges.base import JudgeContext
from crossroads.labelling.judges.chosen import ChosenJudges
from crossroads.labelling.run import LabelConfig, check_problems, label
from crossroads.labelling.shards import gather, scatter
from crossroads.models.pairs import Pair
from crossroads.types import Problem, Progress


class PairSource(Protocol):
    """Names a pair and loads it. Plain data: it travels to workers, a loaded pair does not."""

    def load(self, *, max_rows: int) -> Pair:
        """Load the pair where this is called; see models.pairs.load_pair."""


@dataclass(frozen=True, slots=True)
class LabelOrder:
    """What to label, with what, and where; all of it plain data.

    judges: their texts, `NAME:KEY=VALUE,...`. cache: where judges that cost keep their replies.
    """

    folder: Path
    problems: tuple[Problem, ...]
    pair: PairSource
    judges: tuple[str, ...]
    stages: tuple[str, ...]
    config: LabelConfig
    cache: Path


Runner = Callable[[Sequence[LabelOrder], Progress], None]
"""Carries out orders at the same time, each by `work`, in a process of its own or not.

The first CrossroadsError of a worker stops the others and is raised.
"""


def work(order: LabelOrder, progress: Progress) -> None:
    """Carry out one order in this process; raises as `label` and `load_pair` do."""
    rows = order.config.max_rows + 1
    chosen = ChosenJudges(order.judges, JudgeContext(None, rows, order.cache))
    with order.pair.load(max_rows=rows) as pair, chosen.with_pair(pair) as judges:
        label(
            pair,
            order.problems,
            judges,
            order.folder,
            progress,
            order.config,
            stages=order.stages,
        )


def label_in_shards(order: LabelOrder, workers: int, run: Runner, progress: Progress) -> Path:
    """Carry out `order` with `workers` workers at once and return its folder.

    Effects: the dataset is the one that `work` alone would have made. Finished work stays after a
    stop, in shards or in the folder, and is used by the next run of any number of workers.

    Raises:
        DataError: duplicate ids, no problem, or what a worker met.
        ConfigError: the folder holds a run of other problems, models, judges or settings.
        EngineError: a worker cannot go on; run again later.
    """
    check_problems(order.problems)
    if workers < 1:
        raise ConfigError(f"labelling needs at least one worker, got {workers}")
    folder = order.folder.resolve()
    sharded = tuple(stage for stage in order.stages if stage != "build")
    with exclusive(folder):
        gather(folder, order.problems)
        if sharded:
            shards = scatter(folder, order.problems, workers)
            orders = [
                replace(order, folder=shard.folder, problems=shard.problems, stages=sharded)
                for shard in shards
            ]
            run(orders, progress)
            gather(folder, order.problems)
    if "build" in order.stages:  # by a worker, too: it is where the models are
        run([replace(order, folder=folder, stages=("build",))], progress)
    return folder
