"""A run as one page that loads nothing: what each part of it shows, as text."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from crossroads.artifacts import atomic_path
from crossroads.evaluation import grids, words
from crossroads.evaluation.folder import RunRecord
from crossroads.evaluation.grids import Grid
from crossroads.evaluation.parting import Parting
from crossroads.evaluation.plots import Drawing, inline
from crossroads.evaluation.summary import TaskResult
from crossroads.evaluation.tables import Table, tables_of
from crossroads.evaluation.usage_patterns import UsagePatterns


@dataclass(frozen=True, slots=True)
class Mark:
    """How a system did on a problem: a class of the page's and what it shows."""

    style: str
    text: str


@dataclass(frozen=True, slots=True)
class ProblemView:
    """A problem's line in the list. flags: the verdict letters of each system, for the filters.

    data: the problem and its answers, packed.
    """

    anchor: str
    id: str
    disputed: bool
    flags: str
    marks: tuple[Mark, ...]
    data: str


@dataclass(frozen=True, slots=True)
class Problems:
    """The problems that the page holds, made one at a time, and how many it leaves out."""

    shown: int
    left_out: int
    views: Iterable[ProblemView]


@dataclass(frozen=True, slots=True)
class FigureView:
    """A figure and its words."""

    title: str
    drawing: Markup
    caption: str


@dataclass(frozen=True, slots=True)
class TaskView:
    """Everything that the page says of a task."""

    name: str
    headline: tuple[str, ...]
    ranking: tuple[str, ...]
    grids: tuple[Grid, ...]
    comparisons: tuple[Grid, ...]
    figures: tuple[FigureView, ...]
    overlaps: Grid | None
    partings: tuple[Grid, ...]
    tokens: tuple[Grid, ...]
    card: tuple[Table, ...]
    problems: Problems


@dataclass(frozen=True, slots=True)
class Page:
    """The whole page. shared: what every packed problem needs, packed."""

    tasks: tuple[TaskView, ...]
    systems: tuple[str, ...]
    overview: Grid | None
    shared: str
    about: tuple[Table, ...]
    notes: tuple[str, ...]


def write_page(path: Path, page: Page) -> None:
    """Write the page, atomically, a problem at a time.

    Raises:
        ConfigError: the file cannot be written.
    """
    folder = resources.files("crossroads.evaluation")
    style, script = (
        folder.joinpath(f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")
    )
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = folder.joinpath("report.html.j2").read_text(encoding="utf-8")
    # A text that got past the escaping still could not run: only this script may.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = environment.from_string(source).generate(
        page=page,
        style=Markup(style),  # noqa: S704  ours, as is the script
        script=Markup(script),  # noqa: S704
        script_hash=f"sha256-{digest}",
    )
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="\n") as file,
    ):
        file.writelines(parts)


def task_view(
    result: TaskResult,
    drawings: Sequence[Drawing],
    patterns: Mapping[str, UsagePatterns],
    partings: Sequence[Parting],
    texts: Mapping[int, bytes],
    problems: Problems,
) -> TaskView:
    """Return what the page says of a task; `texts` are the bytes of token ids.

    Raises:
        EngineError: matplotlib is not installed.
    """
    return TaskView(
        name=result.task,
        headline=tuple(words.headline(result)),
        ranking=tuple(words.ranking_sentences(result)),
        grids=(grids.results(result), grids.costs(result), grids.endings(result)),
        comparisons=tuple(filter(None, (grids.differences(result), grids.curves(result)))),
        figures=tuple(_figure(drawing) for drawing in drawings),
        overlaps=grids.overlaps(result, patterns),
        partings=grids.partings(partings),
        tokens=tuple(grids.tokens(name, found, texts) for name, found in patterns.items()),
        card=tuple(tables_of(result.card, "What was asked")),
        problems=problems,
    )


def about_tables(record: RunRecord, training: Mapping[str, Any] | None) -> tuple[Table, ...]:
    """Return settings, models, training and provenance, whatever their keys."""
    parts = (
        (record.settings, "Settings"),
        ({"pair": record.pair, "small": record.small, "large": record.large}, "Models"),
        (training or {}, "Training"),
        (record.provenance, "Provenance"),
    )
    return tuple(table for value, title in parts for table in tables_of(value, title))


def overview(results: Sequence[TaskResult]) -> Grid | None:
    """Return every system's accuracy on every task; None for a single task."""
    if len(results) < 2:
        return None
    systems = results[0].systems
    rows = []
    for system in systems:
        found = [next((s for s in r.systems if s.system == system.system), None) for r in results]
        cells = [words.NONE if s is None else words.estimate(s.accuracy) for s in found]
        rows.append((system.system, *cells))
    header = ("system", *(f"{result.task}, correct %" for result in results))
    return Grid("All tasks", header, tuple(rows), kinds=tuple(s.kind.value for s in systems))


def marks(letters: Sequence[Sequence[str]], systems: Sequence[str]) -> tuple[Mark, ...]:
    """Return a problem's marks; `letters` has c, w or u of every sample, for every system."""
    found = []
    for verdicts, system in zip(letters, systems, strict=True):
        correct = verdicts.count("c")
        if len(verdicts) > 1:
            style = {len(verdicts): "correct", 0: "wrong"}.get(correct, "mixed")
            found.append(Mark(style, f"{correct}/{len(verdicts)} {system}"))
        elif verdicts:
            style, sign = {
                "c": ("correct", "\u2713"), "w": ("wrong", "\u2717"), "u": ("unparsed", "?"),
            }[verdicts[0]]  # fmt: skip
            found.append(Mark(style, f"{sign} {system}"))
    return tuple(found)


def _figure(drawing: Drawing) -> FigureView:
    # matplotlib escapes the names
    return FigureView(drawing.title, Markup(inline(drawing)), drawing.caption)  # noqa: S704
