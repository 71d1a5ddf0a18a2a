"""One run's problems in several folders, so that several workers can label at once.

    OUT/shards/00, 01, ...   a run folder each (see `labelling.run`), without the dataset

Whatever was done before, by one process or by any number of workers, is first gathered in OUT;
then the problems are dealt anew, and every shard is given what there is of its own. So nothing is
done twice, however often the number of workers changes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from crossroads.artifacts import (
    IndexedLog,
    atomic_path,
    exclusive,
    pin_config,
    read_json,
    write_log,
)
from crossroads.labelling.compare import comparison_path
from crossroads.labelling.records import problem_of
from crossroads.labelling.respond import problems_hash
from crossroads.tasks.jsonl import write_problems
from crossroads.types import Problem

SHARDS = "shards"

_ANSWERS = ("respond/responses.jsonl", "respond/unfinished.jsonl")
_LOGS = (*_ANSWERS, "continue/continuations.jsonl", "judges/*/verdicts.jsonl")
_CONFIGS = ("respond", "compare", "continue", "judges/*")
_RESPOND = Path("respond/config.json")


@dataclass(frozen=True, slots=True)
class Shard:
    """A run folder, and the problems that it is for."""

    folder: Path
    problems: tuple[Problem, ...]


def deal(
    problems: Sequence[Problem], count: int, answered: Collection[str]
) -> list[tuple[Problem, ...]]:
    """Return the problems in `count` parts, none of them empty, each in the given order.

    They are dealt in turn, and those in `answered` after all others: what is left to do is spread
    evenly, though an earlier run may have come further with some problems.
    """
    ranks = sorted(range(len(problems)), key=lambda i: (problems[i].id in answered, i))
    parts = (sorted(ranks[start::count]) for start in range(min(count, len(problems))))
    return [tuple(problems[i] for i in part) for part in parts]


def scatter(folder: Path, problems: Sequence[Problem], count: int) -> list[Shard]:
    """Return `count` shards (fewer if there are fewer problems) with what `folder` has of each.

    Effects: `folder` keeps what it has. Comparisons are linked, or copied where links cannot be.

    Raises:
        ConfigError: `folder` holds a run of other problems.
    """
    _pin(folder, problems)
    answered = {problem_of(key)[0] for name in _ANSWERS for key in _keys(folder / name)}
    shards = [
        Shard(folder / SHARDS / f"{number:02}", part)
        for number, part in enumerate(deal(problems, count, answered))
    ]
    for relative in _find([folder], [f"{name}/config.json" for name in _CONFIGS]):
        for shard in shards:
            _copy_config(folder / relative, shard.folder / relative, shard.problems)
    shard_of = {problem.id: shard.folder for shard in shards for problem in shard.problems}
    for relative in _find([folder], _LOGS):
        _scatter_log(folder, relative, shard_of)
    for key in _keys(folder / _ANSWERS[0]):
        path = comparison_path(folder / "compare", key)
        if path.exists():
            _link(path, shard_of[problem_of(key)[0]] / "compare" / path.name)
    return shards


def gather(folder: Path, problems: Sequence[Problem]) -> None:
    """Move what the shards in `folder` have done into `folder` itself, whatever their number.

    Effects: the logs are rewritten in the order of the problems, and the shards are gone. A kill
    on the way loses nothing: what was moved is found in `folder`, the rest in the shards.

    Raises:
        ConfigError: the shards are of other problems, models or settings than `folder`, or of
            several; or a worker of an earlier run is still there.
    """
    shards = sorted((folder / SHARDS).glob("[0-9]*"))
    if not shards:
        return
    _pin(folder, problems)
    with ExitStack() as held:
        for shard in shards:
            held.enter_context(exclusive(shard))
        for shard in shards:
            for relative in _find([shard], [f"{name}/config.json" for name in _CONFIGS]):
                _copy_config(shard / relative, folder / relative, problems)
        for relative in _find([folder, *shards], _LOGS):
            _gather_log([folder, *shards], relative, problems)
        for shard in shards:
            for path in (shard / "compare").glob("*.safetensors"):
                path.replace(folder / "compare" / path.name)
    shutil.rmtree(folder / SHARDS)
    if not (folder / "problems.jsonl").exists():
        write_problems(folder / "problems.jsonl", problems)


def _pin(folder: Path, problems: Sequence[Problem]) -> None:
    """Refuse a folder of other problems, by the pin of its responses or else of its shards."""
    pinned = {"problems": problems_hash(problems)}
    if (folder / _RESPOND).exists():
        before = read_json(folder / _RESPOND, "responses")
        pin_config(folder / _RESPOND, {**before, **pinned}, "responses")
    pin_config(folder / SHARDS / "config.json", pinned, "shards")


def _keys(log: Path) -> list[str]:
    return list(IndexedLog(log).keys())


def _find(folders: Sequence[Path], patterns: Sequence[str]) -> list[Path]:
    """Return the files of a stage that any of the folders has, relative to it."""
    found = {
        path.relative_to(folder)
        for folder in folders
        for pattern in patterns
        for path in folder.glob(pattern)
    }
    return sorted(found)


def _copy_config(source: Path, target: Path, problems: Sequence[Problem]) -> None:
    config = read_json(source, "config")
    if source.parent.name == _RESPOND.parent.name:
        config = {**config, "problems": problems_hash(problems)}
    pin_config(target, config, "work")


def _scatter_log(folder: Path, relative: Path, shard_of: Mapping[str, Path]) -> None:
    log = IndexedLog(folder / relative)
    keys: dict[Path, list[str]] = {}
    for key in _keys(folder / relative):
        keys.setdefault(shard_of[problem_of(key)[0]], []).append(key)
    for shard, own in keys.items():
        write_log(shard / relative, (log.get(key) for key in own))


def _gather_log(folders: Sequence[Path], relative: Path, problems: Sequence[Problem]) -> None:
    """Write the union of a log; a shard's record is newer than the one that it was given."""
    rank = {problem.id: number for number, problem in enumerate(problems)}
    newest: dict[str, IndexedLog] = {}
    for folder in folders:
        log = IndexedLog(folder / relative)
        newest |= dict.fromkeys(log.keys(), log)

    def place(key: str) -> tuple[int, tuple[int, ...]]:
        problem_id, numbers = problem_of(key)
        return rank[problem_id], numbers

    keys = sorted(newest, key=place)
    write_log(folders[0] / relative, (newest[key].get(key) for key in keys))


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
