"""A run as one page that loads nothing: what each part of it shows, as text."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from crossroads.artifacts import atomic_path
from crossroads.evaluation import words
from crossroads.evaluation.figure import large_cost
from crossroads.evaluation.folder import RunRecord
from crossroads.evaluation.plots import Drawing, inline
from crossroads.evaluation.summary import SystemResult, TaskResult
from crossroads.evaluation.tables import Table, tables_of
from crossroads.evaluation.usage_patterns import UsagePatterns

MOST_TOKENS = 20  # rows of a table of routed tokens
_VISIBLE = {" ": "\u2423", "\n": "\u23ce", "\t": "\u21e5", "\r": "\u240d"}


@dataclass(frozen=True, slots=True)
class Grid:
    """A table as text, the systems in its rows. kinds: of the systems, to mark the router."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()


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
        grids=(_results(result), _costs(result), _endings(result)),
        comparisons=tuple(filter(None, (_differences(result), _curves(result)))),
        figures=tuple(_figure(drawing) for drawing in drawings),
        tokens=tuple(_tokens(name, found, texts) for name, found in patterns.items()),
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


def visible(piece: bytes, token_id: int) -> str:
    """Return a token's text with its blanks to be seen; the id of a token without text."""
    text = piece.decode("utf-8", "replace")
    if not text:
        return f"\u27e8{token_id}\u27e9"
    return "".join(_VISIBLE.get(character, character) for character in text)


def _results(result: TaskResult) -> Grid:
    # pass@1 is what `correct %` shows.
    ks = sorted({k for system in result.systems for k in system.pass_at if k > 1})
    alone, letters = large_cost(result), words.letters(result)

    def cells(system: SystemResult) -> Iterator[str]:
        yield words.estimate(system.accuracy)
        for k in ks:
            yield words.estimate(system.pass_at[k]) if k in system.pass_at else words.NONE
        yield words.estimate(system.large_fraction)
        yield words.percent(system.replaced_fraction)
        yield words.estimate(system.tokens, 0, 1)
        yield words.percent(system.cost / alone if alone else None)
        yield words.gap_percent(system.recovered)
        yield letters.get(system.system, words.NONE)

    header = (
        "system", "correct %", *(f"pass@{k} %" for k in ks), "large_fraction %", "replaced %",
        "tokens / answer", "cost, % of large alone", "recovered gap %", "letters",
    )  # fmt: skip
    notes = [
        "Brackets are 95 % intervals over problems. large_fraction is the share of generated "
        "tokens that the large model wrote, replaced the share in which it wrote another one than "
        "was proposed. Cost is active parameters per answer. Systems that "
        "share a letter are not separated by these problems."
    ]
    reasons = {s.recovered.reason for s in result.systems if s.recovered}
    notes += [f"No recovered gap: {reason}." for reason in sorted(reasons - {None}, key=str)]
    return _grid("Results", header, result, cells, tuple(notes))


def _costs(result: TaskResult) -> Grid:
    alone = large_cost(result)

    def cells(system: SystemResult) -> Iterator[str]:
        yield words.parameters(system.active_parameters)
        yield f"{system.cost / 1e9:.1f} B"
        yield words.percent(system.cost / alone if alone else None)
        yield words.percent(system.router_share, 2)
        yield f"{system.large_calls:,}"
        yield f"{system.lag_per_call:.1f}"
        yield f"{system.tokens_per_second:.1f}"

    header = (
        "system", "active params / token", "cost / answer", "of large alone %", "router\u2019s %",
        "large calls", "lag / call", "tokens / s",
    )  # fmt: skip
    note = (
        "Active parameters count a model for each token for which it was asked; cost is tokens "
        "times active parameters per token (R2R, arXiv 2505.21600). The router\u2019s share is of "
        "the active parameters. lag: tokens that the large model reads when it is asked."
    )
    return _grid("What it costs", header, result, cells, (note,))


def _endings(result: TaskResult) -> Grid:
    reasons = sorted({reason for system in result.systems for reason in system.finish})

    def cells(system: SystemResult) -> Iterator[str]:
        yield f"{system.unparsed}/{system.problems * system.samples}"
        yield from (f"{system.finish.get(reason, 0)}" for reason in reasons)
        yield words.NONE if system.threshold is None else f"{system.threshold:.4f}"
        yield system.matched_to or words.NONE
        yield words.percent(system.recall)
        yield words.percent(system.positive_rate)

    header = (
        "system", "unparsed", *(f"ended by {reason}" for reason in reasons), "threshold",
        "matched to", "calibration: recall %", "calibration: positive_rate %",
    )  # fmt: skip
    note = (
        "Unparsed answers gave no readable result; they count as not correct. recall and "
        "positive_rate are what calibration promised on labelled tokens, another population: "
        "positive_rate is not large_fraction."
    )
    return _grid("How answers ended, and thresholds", header, result, cells, (note,))


def _grid(
    title: str, header: tuple[str, ...], result: TaskResult, cells: Any, notes: tuple[str, ...]
) -> Grid:
    rows = tuple((system.system, *cells(system)) for system in result.systems)
    return Grid(title, header, rows, notes, tuple(s.kind.value for s in result.systems))


def _differences(result: TaskResult) -> Grid | None:
    router = words.first_router(result)
    found = words.against(result, router.system) if router else []
    if router is None or not found:
        return None
    rows = tuple(
        (
            pair.other,
            words.points(pair.comparison),
            words.p_text(pair.comparison.p_value),
            words.p_text(pair.adjusted_p),
            pair.verdict,
        )
        for pair in found
    )
    tests = " and ".join(sorted({pair.comparison.test for pair in found}))
    note = (
        f"Paired by problem; p values by {tests}. The adjusted ones take account of all pairs of "
        "systems (Holm 1979) and decide."
    )
    header = (
        f"{router.system} minus", "points of accuracy", "p", "adjusted p", f"{router.system} is",
    )  # fmt: skip
    return Grid("Is the difference real?", header, rows, (note,))


def _curves(result: TaskResult) -> Grid | None:
    if not result.against:
        return None
    rows = []
    for found in result.against:
        comparison = found.trade_off.comparison
        numbers = (words.NONE, words.NONE, found.trade_off.reason or words.NONE)
        if comparison is not None:
            numbers = (words.points(comparison), words.p_text(comparison.p_value), "")
        at = words.percent(found.trade_off.large_fraction)
        rows.append((f"{found.system} minus {found.heuristic}", at, *numbers))
    note = (
        "The heuristic\u2019s accuracy is interpolated at the router\u2019s own large_fraction, "
        "along all its thresholds that were run and the models alone. These p values stand alone: "
        "no other comparison is taken into account."
    )
    header = ("at equal large_fraction", "large_fraction %", "points of accuracy", "p", "")
    return Grid("Against the heuristics\u2019 curves", header, tuple(rows), (note,))


def _tokens(system: str, patterns: UsagePatterns, texts: Mapping[int, bytes]) -> Grid:
    rows = tuple(
        (
            visible(texts.get(token.token_id, b""), token.token_id),
            f"{token.token_id}",
            f"{token.proposed:,}",
            f"{token.sent:,}",
            words.percent(token.sent / token.proposed),
            words.percent(token.replaced / token.sent),
        )
        for token in patterns.tokens[:MOST_TOKENS]
    )
    header = ("proposed token", "id", "proposed", "sent", "sent %", "of these replaced %")
    return Grid(system, header, rows)


def _figure(drawing: Drawing) -> FigureView:
    # matplotlib escapes the names
    return FigureView(drawing.title, Markup(inline(drawing)), drawing.caption)  # noqa: S704
