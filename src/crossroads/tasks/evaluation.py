"""Evaluation tasks: problems with gold answers, prompts, and the rule that grades the answers.

A task is one small TOML file (`evaluation_definition` tells its keys); those in `definitions/`
are built in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from crossroads.artifacts import canonical_hash, sha256_file
from crossroads.errors import ConfigError
from crossroads.names import nearest
from crossroads.tasks.evaluation_definition import Definition, Source
from crossroads.tasks.evaluation_items import (
    Entry,
    Item,
    check_distinct,
    check_examples,
    problem_entry,
    row_entry,
    row_id,
)
from crossroads.tasks.evaluation_rows import read_rows, stem
from crossroads.tasks.evaluation_toml import read_definition
from crossroads.tasks.jsonl import read_problems
from crossroads.tasks.reasoning_gym import LEVELS, generate_problems
from crossroads.types import Problem

__all__ = ["EvaluationTask", "Item", "load_task", "task_names"]

_DEFINITIONS = Path(__file__).parent / "definitions"
_GENERATED = 100  # problems, where the part has no end


@dataclass(frozen=True, slots=True)
class EvaluationTask:
    """Problems to answer and how: `rule` grades the answers, of at most `max_tokens` tokens each.

    card: plain JSON that says what was asked: the definition, where the data came from with
    their hashes, the seed, and how many items of how many.
    """

    name: str
    rule: str
    items: tuple[Item, ...]
    max_tokens: int
    stop: tuple[str, ...]
    card: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Data:
    """All items of a task; `source` and `sha256` say what they were made from."""

    entries: Sequence[Entry]
    source: Mapping[str, Any]
    sha256: str


def task_names() -> list[str]:
    """Return the built-in tasks; `jsonl` and `reasoning_gym` need a file or a data set's name."""
    return sorted(path.stem for path in _DEFINITIONS.glob("*.toml"))


def load_task(text: str, part: slice = slice(None), seed: int = 0) -> EvaluationTask:
    """Return a part of a task's items; ids, options and prompts do not depend on the part.

    Args:
        text: a built-in name or the path of a definition, which ends in `.toml`. After a colon, a
            file that takes the place of the definition's data, or the data set to generate:
            `gsm8k`, `gsm8k:train.jsonl`, `reasoning_gym:chain_sum`, `jsonl:FILE`, `my.toml:FILE`.
        part: which of the items, in order. Where they are generated its end says how many are;
            100 without one.
        seed: of the options' order, and of generated problems.

    Raises:
        ConfigError: no such task, or a part without items.
        DataError: a definition or data that cannot be used: items without an answer, twice, or
            among the few-shot examples. Names the item.
        EngineError: a package that has the data, or opens them, is not installed.
    """
    definition, name = _find(text)
    data = _problems(definition, part, seed) if definition.source.whole else _rows(definition, seed)
    check_distinct(data.entries)
    check_examples(definition, data.entries)
    items = _items(name, data.entries, part)
    return EvaluationTask(
        name=name,
        rule=definition.answer,
        items=items,
        max_tokens=definition.max_tokens,
        stop=definition.stop,
        card=_definition_card(definition)
        | {
            "name": name,
            "source": data.source,
            "data_sha256": data.sha256,
            "seed": seed,
            "part": _written(part),
            "items": len(items),
            "of": len(data.entries),
            "items_sha256": canonical_hash([asdict(item) for item in items]),
        },
    )


def _find(text: str) -> tuple[Definition, str]:
    """Return a task's definition, with the data that `text` gives, and the task's name."""
    where, data = _halves(text)
    if where.endswith(".toml"):
        definition = read_definition(Path(where))
    elif where in task_names():
        definition = read_definition(_DEFINITIONS / f"{where}.toml")
    else:
        raise ConfigError(
            f"there is no evaluation task {where!r} (a file with your own ends in .toml); "
            f"{nearest(where, task_names())}"
        )
    if data == "":
        raise ConfigError(f"the task {text!r} has nothing after its colon; give the data there")
    if data is not None:
        definition = replace(definition, source=_replaced(definition.source, data))
    _check_complete(definition.source, where)
    label = definition.source.dataset or (stem(data) if data else "")
    return definition, f"{definition.name}:{label}" if label else definition.name


def _halves(text: str) -> tuple[str, str | None]:
    """Return what stands before and after the colon; a definition's own path may hold others."""
    if text.endswith(".toml"):
        return text, None
    before, mark, data = text.partition(".toml:")
    if mark:
        return f"{before}.toml", data
    before, mark, data = text.partition(":")
    return before, data if mark else None


def _replaced(source: Source, data: str) -> Source:
    """Return the source that takes the place of a definition's own."""
    if source.kind == "generated":
        return replace(source, dataset=data)
    return Source("problems" if source.kind == "problems" else "file", data)


def _check_complete(source: Source, where: str) -> None:
    if source.kind == "generated" and source.dataset is None:
        raise ConfigError(
            f"the task {where} needs the name of a data set; give for example {where}:chain_sum"
        )
    if source.kind in {"file", "problems"} and source.path is None:
        raise ConfigError(f"the task {where} needs its data; give {where}:FILE")


def _rows(definition: Definition, seed: int) -> _Data:
    """Return the items of a source that gives rows."""
    data = read_rows(definition.source, definition.used_columns)
    entries = [
        row_entry(definition, row, row_id(definition, row, data.part, number), seed)
        for number, row in enumerate(data.rows)
    ]
    texts = [dict(row.texts) for row in data.rows]
    return _Data(entries, data.card, canonical_hash(texts))


def _problems(definition: Definition, part: slice, seed: int) -> _Data:
    """Return the items of a source that gives whole problems."""
    source = definition.source
    problems: list[Problem]
    card: dict[str, Any]
    if source.kind == "generated":
        count = part.stop if part.stop is not None and part.stop > 0 else _GENERATED
        problems = generate_problems(source.dataset or "", count, seed, source.settings)
        settings = LEVELS.get(source.dataset or "") if source.settings is None else source.settings
        made_by = {"package": "reasoning-gym", "version": version("reasoning-gym")}
        card = {"dataset": source.dataset, "settings": settings} | made_by
    else:
        path = Path(source.path or "")
        problems = read_problems(path)
        card = {"path": str(path), "sha256": sha256_file(path)}
    return _Data(
        [problem_entry(definition, problem) for problem in problems],
        {"kind": source.kind} | card,
        canonical_hash([asdict(problem) for problem in problems]),
    )


def _items(name: str, entries: Sequence[Entry], part: slice) -> tuple[Item, ...]:
    """Return the part of the items, which must not be empty."""
    if part.step == 0:
        raise ConfigError(f"the part {_written(part)} of {name} has a step of 0; leave it away")
    items = tuple(entry.item for entry in entries[part])
    if not items:
        raise ConfigError(
            f"the part {_written(part)} of {name} is empty; it has {len(entries)} items"
        )
    return items


def _written(part: slice) -> str:
    ends = [part.start, part.stop] if part.step is None else [part.start, part.stop, part.step]
    return ":".join("" if end is None else str(end) for end in ends)


def _definition_card(definition: Definition) -> dict[str, Any]:
    """Return what a definition says, as plain JSON, without where its data are."""
    values = asdict(definition)
    del values["where"], values["source"]
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain
