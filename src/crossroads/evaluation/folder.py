"""A run folder: everything that an evaluation wrote, and everything that a report reads.

    run.json                   what was run: pair, tasks, systems, settings, provenance
    problems/TASK.jsonl        the items of a task, prompts and gold answers included
    answers/TASK/SYSTEM.jsonl  every answer with its trace and its grade
    pieces.json                the bytes of each token id that occurs
    training.json              how the router was trained, where the run trained it

From these `report` makes results.json, report.html, plots and answers.parquet, without any model.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crossroads.artifacts import ResumableLog, read_json, write_json, write_text
from crossroads.errors import ConfigError, DataError
from crossroads.evaluation.kinds import SystemKind
from crossroads.evaluation.stored import StoredAnswer
from crossroads.tasks.evaluation import Item
from crossroads.types import Cause, Message, Problem

FORMAT = 1


@dataclass(frozen=True, slots=True)
class TaskEntry:
    """A task as `run.json` has it. card: prompt, few-shot, answer rule, source; plain JSON."""

    name: str
    rule: str
    count: int
    card: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SystemEntry:
    """A system as `run.json` has it.

    matched_to: the system whose large_fraction its threshold was chosen for. recall and
    positive_rate are what calibration promised at the threshold. thresholds: by task, where
    matching chose one for each.
    """

    name: str
    kind: SystemKind
    router: str | None = None
    router_parameters: int = 0
    threshold: float | None = None
    matched_to: str | None = None
    recall: float | None = None
    positive_rate: float | None = None
    thresholds: Mapping[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SystemEntry:
        """Return the entry that `to_json` wrote."""
        return cls(**{**value, "kind": SystemKind(value["kind"])})


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The content of `run.json`.

    small and large: name, fingerprint and active_parameters of each model, and more. settings:
    samples, max_tokens, rows, sampling, seed.
    """

    pair: str
    small: Mapping[str, Any]
    large: Mapping[str, Any]
    tasks: tuple[TaskEntry, ...]
    systems: tuple[SystemEntry, ...]
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]


class RunFolder:
    """Reads and writes a run folder; answers come one at a time, never all at once."""

    def __init__(self, path: Path) -> None:
        """Name the folder; nothing is read yet."""
        self.path = path

    def write_record(self, record: RunRecord) -> None:
        """Write `run.json`, atomically."""
        value = {"format": FORMAT, **asdict(record)}
        value["systems"] = [system.to_json() for system in record.systems]
        write_json(self.path / "run.json", value)

    def earlier(self) -> RunRecord | None:
        """Return what an earlier call recorded here; None before the first has finished."""
        return self.record() if (self.path / "run.json").exists() else None

    def record(self) -> RunRecord:
        """Return what was run.

        Raises:
            DataError: the folder holds no run, or one of another format.
        """
        if not self.path.is_dir():
            raise DataError(f"there is no run at {self.path}; `crossroads evaluate` makes one")
        value = read_json(self.path / "run.json", "evaluation run")
        if not isinstance(value, dict) or value.pop("format", None) != FORMAT:
            raise DataError(
                f"{self.path} is not an evaluation run of format {FORMAT}; "
                "evaluate again with this version"
            )
        tasks = tuple(TaskEntry(**task) for task in value.pop("tasks"))
        systems = tuple(SystemEntry.from_json(system) for system in value.pop("systems"))
        return RunRecord(tasks=tasks, systems=systems, **value)

    def write_items(self, task: str, items: Sequence[Item]) -> None:
        """Write the items of a task, atomically, or check that they are what is there.

        Raises:
            ConfigError: the folder holds other items under this name.
        """
        text = "".join(f"{_item_line(item)}\n" for item in items)
        path = self._items_path(task)
        if not path.exists():
            write_text(path, text)
        elif path.read_text(encoding="utf-8") != text:
            raise ConfigError(
                f"{self.path} holds other problems of the task {task}, or other prompts; give "
                "another output folder, or the old settings to go on"
            )

    def items(self, task: str) -> Iterator[Item]:
        """Yield the items of a task in order.

        Raises:
            DataError: the file is missing or damaged.
        """
        path = self._items_path(task)
        if not path.exists():
            raise DataError(f"the run {self.path} has lost {path.name}; evaluate again")
        for value in ResumableLog(path):
            problem = value["problem"]
            messages = tuple(Message(**message) for message in problem["messages"])
            yield Item(Problem(**{**problem, "messages": messages}), value["details"])

    def log(self, task: str, system: str) -> ResumableLog:
        """Return the log of a system's answers to a task."""
        return ResumableLog(self.path / "answers" / slug(task) / f"{slug(system)}.jsonl")

    def answers(self, task: str, system: str) -> Iterator[StoredAnswer]:
        """Yield a system's answers to a task in the order in which they finished."""
        for value in self.log(task, system):
            yield StoredAnswer.from_json(value)

    def add_pieces(self, pieces: Mapping[int, bytes]) -> None:
        """Add the bytes of token ids to `pieces.json`."""
        known = self.pieces()
        if new := {i: piece for i, piece in pieces.items() if i not in known}:
            merged = known | new
            text = {str(i): base64.b64encode(merged[i]).decode() for i in sorted(merged)}
            write_json(self.path / "pieces.json", text)

    def pieces(self) -> dict[int, bytes]:
        """Return the bytes of every token id that occurs; empty for a special token."""
        path = self.path / "pieces.json"
        if not path.exists():
            return {}
        stored = read_json(path, "token texts")
        return {int(i): base64.b64decode(text) for i, text in stored.items()}

    def write_training(self, report: Mapping[str, Any]) -> None:
        """Keep what the page shows of how the router was trained."""
        write_json(self.path / "training.json", dict(report))

    def training(self) -> dict[str, Any] | None:
        """Return what `write_training` kept; None where nothing was."""
        path = self.path / "training.json"
        if not path.exists():
            return None
        report: dict[str, Any] = read_json(path, "training report")
        return report

    def _items_path(self, task: str) -> Path:
        return self.path / "problems" / f"{slug(task)}.jsonl"


def lost_tokens(folder: RunFolder) -> int:
    """Return how many tokens the small model wrote because no large server answered."""
    record = folder.record()
    return sum(
        token.cause is Cause.UNAVAILABLE
        for task in record.tasks
        for system in record.systems
        for answer in folder.answers(task.name, system.name)
        for token in answer.trace.records
    )


def _item_line(item: Item) -> str:
    value = {"problem": asdict(item.problem), "details": dict(item.details)}
    return json.dumps(value, ensure_ascii=False)


def slug(name: str) -> str:
    """Return a file name for a task or a system; different names must not meet in one."""
    return re.sub(r"[^A-Za-z0-9._@~+-]", "-", name)


def check_names(names: Iterable[str], what: str) -> None:
    """Refuse names that would share a file.

    Raises:
        DataError: two names are the same, or the same as files.
    """
    seen: dict[str, str] = {}
    for name in names:
        if slug(name) in seen:
            other = seen[slug(name)]
            raise DataError(f"two {what} are named {other!r} and {name!r}; name them apart")
        seen[slug(name)] = name
