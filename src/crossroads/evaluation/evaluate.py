"""Tasks x systems: run all of them into one folder, matched where asked, then summarise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from crossroads.artifacts import exclusive
from crossroads.decoding.request import Request, check_request
from crossroads.errors import ConfigError, DataError, RequestError
from crossroads.evaluation.folder import (
    RunFolder,
    RunRecord,
    SystemEntry,
    TaskEntry,
    check_names,
)
from crossroads.evaluation.matching import matched_threshold
from crossroads.evaluation.run import Bench, RunSettings, run_system
from crossroads.evaluation.systems import System
from crossroads.grading.rules import rule_by_name
from crossroads.models.pairs import Pair
from crossroads.provenance import provenance
from crossroads.tasks.evaluation import EvaluationTask
from crossroads.types import Role, Usage

PILOT = 12
"""Items on which a matched threshold is found, unless said otherwise."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the run of one system on one task was: its threshold there, its large_fraction."""

    threshold: float | None
    large_fraction: float


def evaluate(
    bench: Bench,
    tasks: Sequence[EvaluationTask],
    systems: Sequence[System],
    *,
    pilot: int = PILOT,
    say: Callable[[str], None] = lambda text: None,
    facts: dict[str, Any] | None = None,
) -> None:
    """Answer every task with every system, in the order given; `summarise` reads the folder.

    Args:
        bench: the pair, the run folder, the settings, and who is told of progress.
        tasks: what to answer.
        systems: who answers; a system that is matched to another comes after it.
        pilot: items on which a matched threshold is found.
        say: hears which system is next.
        facts: more for the provenance.

    Effects: the folder holds every finished answer; the same call after a kill goes on from there.
    Systems may be added to a finished run by calling again with more of them.

    Raises:
        DataError: a task without items, or an item without an answer.
        EngineError: an answer rule needs what this machine has not.
        ConfigError: the folder holds another run, or a system needs more of the large model than
        its server tells.
    """
    check(tasks, systems)
    check_large(bench.pair, bench.settings, systems)
    with exclusive(bench.folder.path):
        earlier = bench.folder.earlier()
        if earlier is not None:
            _check_same_tasks(bench.folder, earlier, tasks)
        for task in tasks:
            bench.folder.write_items(task.name, task.items)
        found: dict[tuple[str, str], Found] = {}
        for task in tasks:
            for system in systems:
                say(f"{task.name}: {system.name}")
                found[task.name, system.name] = _run(bench, task, system, found, pilot)
        record = _record(bench, tasks, systems, found, {**(facts or {}), "pilot": pilot})
        bench.folder.write_record(_joined(earlier, record))


def _check_same_tasks(
    folder: RunFolder, earlier: RunRecord, tasks: Sequence[EvaluationTask]
) -> None:
    before, now = ([task.name for task in some] for some in (earlier.tasks, tasks))
    if before != now:
        raise ConfigError(
            f"{folder.path} holds a run of {', '.join(before)}, not of {', '.join(now)}; "
            "systems can be added to it, tasks cannot: give another output folder"
        )


def _joined(earlier: RunRecord | None, record: RunRecord) -> RunRecord:
    """Return the record with the systems that earlier calls ran, in their order."""
    if earlier is None:
        return record
    new = {system.name: system for system in record.systems}
    kept = tuple(new.pop(system.name, system) for system in earlier.systems)
    past = [*earlier.provenance.get("earlier", []), {**earlier.provenance, "earlier": []}]
    return replace(
        record,
        systems=(*kept, *new.values()),
        provenance={**record.provenance, "earlier": past},
    )


def check(tasks: Sequence[EvaluationTask], systems: Sequence[System]) -> None:
    """Refuse what could only fail after hours.

    Raises:
        DataError: two tasks or systems of one name, a task without items, an item without answer.
        EngineError: an answer rule needs what this machine has not.
    """
    check_names([task.name for task in tasks], "tasks")
    check_names([system.name for system in systems], "systems")
    for task in tasks:
        if not task.items:
            raise DataError(f"the task {task.name} has no items; there is nothing to answer")
        for item in task.items:
            if not (item.problem.answer or "").strip():
                raise DataError(
                    f"{task.name}: the problem {item.problem.id!r} has no answer to grade against"
                )
        rule_by_name(task.rule).check()


def check_large(pair: Pair, settings: RunSettings, systems: Sequence[System]) -> None:
    """Refuse systems that need more of the large model than its server tells.

    Raises:
        ConfigError: names the system, and what it needs.
    """
    info = pair.large.info
    if info.most_top is None:
        return
    for system in systems:
        if system.oracle_ratio is not None:
            raise ConfigError(
                f"the system {system.name} reads the large model's whole distributions, which the "
                f"server of {info.name} does not tell; leave it out"
            )
        # vLLM draws a whole answer by itself.
        if system.role is Role.SMALL or (system.role is Role.LARGE and info.looks_back):
            continue
        request = Request((0,), sampling=settings.sampling, **system.options)
        try:
            check_request(request, [info])
        except RequestError as error:
            raise ConfigError(f"the system {system.name} cannot run: {error}") from error


def _run(
    bench: Bench,
    task: EvaluationTask,
    system: System,
    found: dict[tuple[str, str], Found],
    pilot: int,
) -> Found:
    threshold = system.threshold
    if system.matched:
        fraction = system.fraction
        if system.like is not None:
            fraction = found[task.name, system.like].large_fraction
        assert fraction is not None
        threshold = matched_threshold(bench, task, system, fraction, pilot)
    run_system(bench, task, replace(system, threshold=threshold))
    usages = (a.trace.usage for a in bench.folder.answers(task.name, system.name))
    bench.folder.add_pieces(_pieces(bench, task.name, system.name))
    return Found(threshold, sum(usages, Usage()).large_fraction)


def _pieces(bench: Bench, task: str, system: str) -> dict[int, bytes]:
    """Return the bytes of every id that a system's traces hold."""
    ids = {
        i
        for answer in bench.folder.answers(task, system)
        for record in answer.trace.records
        for i in (record.token_id, record.proposed_id)
        if i is not None
    }
    pieces = bench.pair.tokenizer.pieces()
    return {i: (pieces[i] or b"") if i < len(pieces) else b"" for i in ids}


def _record(
    bench: Bench,
    tasks: Sequence[EvaluationTask],
    systems: Sequence[System],
    found: dict[tuple[str, str], Found],
    facts: dict[str, Any],
) -> RunRecord:
    pair, settings = bench.pair, bench.settings
    limit = max(settings.limit(task) for task in tasks)
    return RunRecord(
        pair=pair.name,
        small=asdict(pair.small.info),
        large=asdict(pair.large.info),
        tasks=tuple(TaskEntry(t.name, t.rule, len(t.items), dict(t.card)) for t in tasks),
        systems=tuple(_entry(system, tasks, found) for system in systems),
        settings={**asdict(settings), "max_tokens": limit},
        provenance=provenance(**facts),
    )


def _entry(
    system: System,
    tasks: Sequence[EvaluationTask],
    found: dict[tuple[str, str], Found],
) -> SystemEntry:
    thresholds = {task.name: found[task.name, system.name].threshold for task in tasks}
    fraction = None if system.fraction is None else f"large_fraction {system.fraction:g}"
    return SystemEntry(
        name=system.name,
        kind=system.kind,
        router=system.router.name if system.router and not system.options else None,
        router_parameters=system.router.parameters if system.router else 0,
        threshold=system.threshold,
        matched_to=system.like or fraction,
        recall=system.recall,
        positive_rate=system.positive_rate,
        thresholds={k: v for k, v in thresholds.items() if v is not None} or None,
    )
