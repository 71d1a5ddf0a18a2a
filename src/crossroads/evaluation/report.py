"""The report of a run: page, numbers, plots and a table of answers, all from the stored answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from crossroads.artifacts import write_json
from crossroads.errors import DataError
from crossroads.evaluation.answers_table import FILE, answers_table, missing_note
from crossroads.evaluation.columns import Columns
from crossroads.evaluation.families import ALONE, families
from crossroads.evaluation.figure import position_drawing, trade_off_drawings
from crossroads.evaluation.folder import RunFolder, RunRecord, slug
from crossroads.evaluation.grids import MOST_TOKENS
from crossroads.evaluation.kinds import SystemKind
from crossroads.evaluation.page import (
    Page,
    Problems,
    ProblemView,
    about_tables,
    marks,
    overview,
    task_view,
    write_page,
)
from crossroads.evaluation.parting import Parting, partings
from crossroads.evaluation.plots import Drawing, write_files
from crossroads.evaluation.summary import TaskResult
from crossroads.evaluation.terminal import terminal_tables
from crossroads.evaluation.traces import Spool, packed, packed_pieces, page_answer
from crossroads.evaluation.usage_patterns import PatternCounter, UsagePatterns
from crossroads.grading import Grade
from crossroads.svg import svg

__all__ = ["check_packages", "terminal_tables", "write_report"]

FORMAT = 1


# By problem, system and sample: c, w or u.
_Letters: TypeAlias = dict[str, dict[str, dict[int, str]]]


@dataclass(slots=True)
class _Gathered:
    """What one pass over all answers leaves behind, by task; the answers wait in the spool."""

    letters: dict[str, _Letters] = field(default_factory=dict)
    patterns: dict[str, dict[str, UsagePatterns]] = field(default_factory=dict)
    partings: dict[str, list[Parting]] = field(default_factory=dict)


def check_packages() -> str | None:
    """Find out, before hours of work, whether a report can be written.

    Returns a sentence that says what will be left out of it, or None.

    Raises:
        EngineError: matplotlib is not installed; there would be no report.
    """
    svg("empty", 1, 1, lambda figure: None)
    return missing_note()


def write_report(
    folder: RunFolder,
    results: Sequence[TaskResult],
    *,
    training: Mapping[str, Any] | None = None,
    most_traces: int | None = None,
) -> Path:
    """Write report.html, results.json, plots and answers.parquet; returns the page's path.

    Effects: each file is replaced atomically; the same input gives the same bytes. Without pyarrow
    there is no answers.parquet, and the page says so. Memory does not grow with the answers' text:
    they are read one at a time.

    Args:
        folder: the run.
        results: what `summarise` returned for it.
        training: the router's report, shown as tables whatever its keys.
        most_traces: how many answers the page may hold at most; whole problems are left out, those
            on which the systems agree first. None: it holds all.

    Raises:
        EngineError: matplotlib is not installed.
        ConfigError: a file cannot be written.
        DataError: the run is damaged.
    """
    record, pieces = folder.record(), folder.pieces()
    groups = families(record.systems)
    with Spool() as spool:
        gathered = _gather(folder, record, spool, pieces)
        chosen = _chosen(folder, record, gathered, most_traces)
        views = []
        for number, result in enumerate(results):
            patterns = gathered.patterns[result.task]
            prefix = f"{slug(result.task)}-"
            drawings = trade_off_drawings(result, groups, prefix)
            positions = position_drawing(patterns, groups, prefix)
            drawings += [positions] if positions else []
            shown = chosen[result.task]
            problems = Problems(
                shown=len(shown),
                left_out=len(gathered.letters[result.task]) - len(shown),
                views=_problems(
                    folder, record, _Where(number, result.task), gathered, shown, spool
                ),
            )
            views.append(
                task_view(
                    result, drawings, patterns, gathered.partings[result.task], pieces, problems
                )
            )
            _write_plots(folder.path, drawings)
        write_json(folder.path / "results.json", _numbers(results, gathered, record, training))
        path = folder.path / "report.html"
        write_page(path, _page(record, results, views, pieces, training))
    return path


def _gather(
    folder: RunFolder, record: RunRecord, spool: Spool, pieces: Mapping[int, bytes]
) -> _Gathered:
    """Read every answer once: into the table, the counts, and the spool."""
    gathered = _Gathered()
    with answers_table(folder.path / FILE) as table:
        for task in record.tasks:
            letters: _Letters = {item.problem.id: {} for item in folder.items(task.name)}
            gathered.letters[task.name] = letters
            patterns = gathered.patterns[task.name] = {}
            for place, system in enumerate(record.systems):
                counter = PatternCounter()
                for answer in folder.answers(task.name, system.name):
                    columns = Columns.of(answer.trace.records)
                    counter.add(columns)
                    if answer.problem_id not in letters:
                        raise DataError(
                            f"{system.name} answered {answer.problem_id!r}, which is not among the "
                            f"problems of {task.name}; evaluate again into another folder"
                        )
                    found = letters[answer.problem_id].setdefault(system.name, {})
                    found[answer.sample] = _letter(answer.grade)
                    spool.add(
                        (task.name, answer.problem_id), page_answer(answer, columns, place, pieces)
                    )
                    if table is not None:
                        table.add(task.name, system.name, answer, columns)
                if system.kind not in ALONE:
                    patterns[system.name] = counter.patterns()
            gathered.partings[task.name] = partings(
                (spool.values((task.name, problem)) for problem in letters),
                [system.name for system in record.systems],
                [s.name for s in record.systems if s.kind is SystemKind.ROUTER],
            )
    return gathered


def _letter(grade: Grade) -> str:
    return "c" if grade.correct else "u" if grade.unparsed else "w"


def _disputed(letters: Mapping[str, Mapping[int, str]]) -> bool:
    """Return whether some systems are right more often than others."""
    shares = {
        sum(letter == "c" for letter in found.values()) / len(found)
        for found in letters.values()
        if found
    }
    return len(shares) > 1


def _chosen(
    folder: RunFolder, record: RunRecord, gathered: _Gathered, most: int | None
) -> dict[str, list[str]]:
    """Return the problems that the page holds, by task, in the tasks' order."""
    every = [
        (task.name, item.problem.id) for task in record.tasks for item in folder.items(task.name)
    ]
    by_interest = sorted(every, key=lambda key: not _disputed(gathered.letters[key[0]][key[1]]))
    left = most
    kept = set()
    for task, problem in by_interest:
        if left is not None:
            left -= sum(len(found) for found in gathered.letters[task][problem].values())
            if left < 0:
                break
        kept.add((task, problem))
    return {
        task.name: [
            problem for name, problem in every if name == task.name and (name, problem) in kept
        ]
        for task in record.tasks
    }


@dataclass(frozen=True, slots=True)
class _Where:
    number: int
    task: str


def _problems(
    folder: RunFolder,
    record: RunRecord,
    where: _Where,
    gathered: _Gathered,
    shown: Sequence[str],
    spool: Spool,
) -> Iterator[ProblemView]:
    """Yield the problems of a task, each packed when its turn comes."""
    systems = [system.name for system in record.systems]
    kept = set(shown)
    for index, item in enumerate(folder.items(where.task)):
        problem = item.problem
        if problem.id not in kept:
            continue
        letters = gathered.letters[where.task][problem.id]
        verdicts = [[letters.get(s, {})[i] for i in sorted(letters.get(s, {}))] for s in systems]
        answers = spool.values((where.task, problem.id))
        answers.sort(key=lambda answer: (answer["system"], answer["sample"]))
        yield ProblemView(
            anchor=f"p{where.number}-{index}",
            id=problem.id,
            disputed=_disputed(letters),
            flags=",".join("".join(sorted(set(found))) for found in verdicts),
            marks=marks(verdicts, systems),
            data=packed(
                {
                    "id": problem.id,
                    "messages": [[m.role, m.content] for m in problem.messages],
                    "gold": problem.answer or "",
                    "answers": answers,
                }
            ),
        )


def _write_plots(path: Path, drawings: Sequence[Drawing]) -> None:
    for drawing in drawings:
        write_files(path / "plots", drawing)


def _numbers(
    results: Sequence[TaskResult],
    gathered: _Gathered,
    record: RunRecord,
    training: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return every number of the page as JSON."""
    return {
        "format": FORMAT,
        "tasks": [result.to_json() for result in results],
        "usage": {
            task: {name: found.to_json(MOST_TOKENS) for name, found in patterns.items()}
            for task, patterns in gathered.patterns.items()
        },
        "partings": {
            task: [parting.to_json() for parting in found]
            for task, found in gathered.partings.items()
        },
        "training": None if training is None else dict(training),
        "provenance": dict(record.provenance),
    }


def _page(
    record: RunRecord,
    results: Sequence[TaskResult],
    views: Sequence[Any],
    pieces: Mapping[int, bytes],
    training: Mapping[str, Any] | None,
) -> Page:
    systems = tuple(system.name for system in record.systems)
    note = missing_note()
    return Page(
        tasks=tuple(views),
        systems=systems,
        overview=overview(results),
        shared=packed({"systems": systems, "pieces": packed_pieces(pieces)}),
        about=about_tables(record, training),
        notes=(note,) if note else (),
    )
