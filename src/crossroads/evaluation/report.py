"""The results on the terminal, and as one page with every coloured trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import rich.table
from markupsafe import Markup
from rich.box import SIMPLE
from rich.text import Text

from crossroads.artifacts import write_text
from crossroads.evaluation.figure import accuracy_figure
from crossroads.evaluation.results import (
    GradedTrace,
    SystemKind,
    SystemRun,
    SystemSummary,
    summarise_run,
)
from crossroads.evaluation.tables import tables_of
from crossroads.statistics import Difference, Interval, paired_difference
from crossroads.types import Role, TokenRecord

__all__ = ["summarise_run", "terminal_table", "write_html"]

_SEED = 0  # of the paired bootstrap; fixed, so that the same runs always give the same page
_COLUMNS = (
    "correct %",
    "large_fraction %",
    "tokens/s",
    "tokens/answer",
    "active params/token",
    "threshold",
    "recall %",
    "positive_rate %",
    "unparsed",
)
_TERMINAL_COLUMNS = (
    "correct %",
    "large_fraction %",
    "tokens/s",
    "active params/token",
    "recall %",
    "positive_rate %",
)


@dataclass(frozen=True, slots=True)
class _Comparison:
    """The first router's accuracy minus another system's, on the same problems."""

    other: str
    difference: str
    verdict: str


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    style: str
    title: str


@dataclass(frozen=True, slots=True)
class _Answer:
    system: str
    verdict: str
    detail: str
    tokens: tuple[_Token, ...]


@dataclass(frozen=True, slots=True)
class _ProblemView:
    id: str
    domain: str
    prompt: tuple[tuple[str, str], ...]
    gold: str
    answers: tuple[_Answer, ...]

    @property
    def disputed(self) -> bool:
        """Whether some systems are right and some are not."""
        return len({answer.verdict == "correct" for answer in self.answers}) > 1


def terminal_table(summaries: Sequence[SystemSummary], rows: int | None = None) -> rich.table.Table:
    """Return the summary rows as a table that fits 80 columns; brackets are 95 % intervals.

    `rows` is how many answers ran at a time, which the speeds belong to. The page has the rest.
    """
    problems = max((summary.n_problems for summary in summaries), default=0)
    at_a_time = "" if rows is None else f", at most {rows} at a time"
    table = rich.table.Table(
        title=f"{problems} problems{at_a_time}; [95 % intervals]",
        title_justify="left",
        box=SIMPLE,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("system", no_wrap=True)
    for column in ("correct %", "large_\nfraction %", "tokens\n/s", "params\n/token"):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("test\nrecall %", "positive_\nrate %"):
        table.add_column(column, justify="right", no_wrap=True)
    for summary in summaries:
        cells = dict(zip(_COLUMNS, _cells(summary), strict=True))
        shown = [summary.name, *(cells[column] for column in _TERMINAL_COLUMNS)]
        table.add_row(*(Text(cell) for cell in shown))  # Text: a name is not rich markup
    return table


def write_html(
    path: Path,
    summaries: Sequence[SystemSummary],
    runs: Sequence[SystemRun],
    tokenizer_text: Callable[[int], str],
    training: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> None:
    """Write the page: headline, table, figure, every trace, training report, provenance.

    It is one file that loads nothing, and the same input gives the same bytes.

    Args:
        path: where; replaced atomically.
        summaries: one row per run, in the order to show.
        runs: the graded traces behind the rows.
        tokenizer_text: text of a token id.
        training: the router's report, shown as tables whatever its keys.
        provenance: shown at the end.

    Raises:
        EngineError: matplotlib is not installed.
        ConfigError: the file cannot be written.
    """
    source = resources.files("crossroads.evaluation").joinpath("report.html.j2")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(source.read_text(encoding="utf-8"))
    page = template.render(
        headline=_headline(summaries),
        columns=_COLUMNS,
        rows=[(summary.name, summary.kind.value, _cells(summary)) for summary in summaries],
        compared=_compared_name(runs),
        comparisons=_comparisons(runs),
        figure=Markup(accuracy_figure(summaries)),  # noqa: S704  matplotlib escapes the names
        problems=_problem_views(runs, tokenizer_text),
        training=tables_of(training, "Training"),
        provenance=tables_of(provenance, "Provenance"),
    )
    write_text(path, page)


def _cells(summary: SystemSummary) -> list[str]:
    """Return the row's numbers in the order of `_COLUMNS`."""
    return [
        _with_interval(summary.accuracy, summary.accuracy_interval),
        _with_interval(summary.large_fraction, summary.large_fraction_interval),
        f"{summary.tokens_per_second:.1f}",
        f"{summary.mean_tokens:.0f}",
        f"{summary.active_parameters_per_token / 1e9:.2f} B",
        "\u2013" if summary.threshold is None else f"{summary.threshold:.4f}",
        _percent(summary.recall),
        _percent(summary.positive_rate),
        f"{summary.unparsed}/{summary.n_problems}",
    ]


def _percent(share: float | None) -> str:
    return "\u2013" if share is None else f"{100 * share:.1f}"


def _whole_percent(share: float) -> str:
    """Return the share for running text; the space does not break."""
    return f"{100 * share:.0f}\u00a0%"


def _with_interval(share: float, interval: Interval) -> str:
    if interval.low == interval.high == share:
        return f"{100 * share:.0f}"
    return f"{100 * share:.0f} [{100 * interval.low:.0f}, {100 * interval.high:.0f}]"


def _headline(summaries: Sequence[SystemSummary]) -> str:
    """Return the result in a sentence, as far as the systems it needs were run."""
    first = {summary.kind: summary for summary in reversed(summaries)}
    router = first.get(SystemKind.ROUTER)
    if router is None:
        return "No trained router was run; the systems are compared below."
    sentence = (
        f"Over {router.n_problems} problems the large model wrote "
        f"{_whole_percent(router.large_fraction)} of the tokens and {router.name} answered "
        f"{_whole_percent(router.accuracy)} correctly"
    )
    alone = [
        f"{_whole_percent(first[kind].accuracy)} for the {kind.value} model alone"
        for kind in (SystemKind.SMALL, SystemKind.LARGE)
        if kind in first
    ]
    return f"{sentence}, against {' and '.join(alone)}." if alone else f"{sentence}."


def _compared_name(runs: Sequence[SystemRun]) -> str:
    return next((run.name for run in runs if run.kind is SystemKind.ROUTER), "")


def _comparisons(runs: Sequence[SystemRun]) -> list[_Comparison]:
    """Compare the first router with every other system on the problems that both answered."""
    router = next((run for run in runs if run.kind is SystemKind.ROUTER), None)
    if router is None:
        return []
    mine = {graded.problem.id: graded.grade.correct for graded in router.graded}
    found = []
    for run in runs:
        pairs = [
            (mine[graded.problem.id], graded.grade.correct)
            for graded in run.graded
            if graded.problem.id in mine
        ]
        if run is not router and pairs:
            first, second = zip(*pairs, strict=True)
            difference = paired_difference(first, second, seed=_SEED)
            found.append(_comparison(run.name, difference))
    return found


def _comparison(other: str, difference: Difference) -> _Comparison:
    low, high = difference.interval.low, difference.interval.high
    if low > 0:
        verdict = "more correct"
    elif high < 0:
        verdict = "less correct"
    else:
        verdict = "no difference seen with this many problems"
    numbers = f"{100 * difference.value:+.0f} [{100 * low:+.0f}, {100 * high:+.0f}]"
    return _Comparison(other, numbers, verdict)


def _problem_views(
    runs: Sequence[SystemRun], tokenizer_text: Callable[[int], str]
) -> list[_ProblemView]:
    """Return every problem with every system's answer to it, in the first run's order."""
    problems = {graded.problem.id: graded.problem for run in runs for graded in run.graded}
    answers: dict[str, list[_Answer]] = {identity: [] for identity in problems}
    for run in runs:
        for graded in run.graded:
            answers[graded.problem.id].append(_answer(run.name, graded, tokenizer_text))
    return [
        _ProblemView(
            id=problem.id,
            domain=problem.domain,
            prompt=tuple((message.role, message.content) for message in problem.messages),
            gold=problem.answer or "",
            answers=tuple(answers[problem.id]),
        )
        for problem in problems.values()
    ]


def _answer(system: str, graded: GradedTrace, tokenizer_text: Callable[[int], str]) -> _Answer:
    trace, grade = graded.trace, graded.grade
    verdict = "correct" if grade.correct else "unparsed" if grade.unparsed else "wrong"
    usage = trace.usage
    parts = [
        f"answer {grade.parsed}" if grade.parsed is not None else grade.reason,
        f"{usage.generated_tokens} tokens, {100 * usage.large_fraction:.0f} % by the large model",
        f"ended by {trace.finish_reason.value}",
    ]
    tokens = tuple(_token(record, tokenizer_text) for record in trace.records)
    return _Answer(system, verdict, " \u00b7 ".join(parts), tokens)


def _token(record: TokenRecord, tokenizer_text: Callable[[int], str]) -> _Token:
    """Return the span: styles are s (small wrote), k (large kept the proposal), c (changed it)."""
    text = tokenizer_text(record.token_id) or f"\u27e8{record.token_id}\u27e9"
    parts = [f"{record.writer.value} model"]
    if record.score is not None:
        parts.append(f"score {record.score:.3f}")
    if record.entropy is not None:
        parts.append(f"entropy {record.entropy:.2f} nats")
    style = "s"
    if record.writer is Role.LARGE:
        style = "k" if record.proposed_id in (None, record.token_id) else "c"
        if record.proposed_id == record.token_id:
            parts.append("small proposed the same")
        elif record.proposed_id is not None:
            parts.append(f"small proposed {tokenizer_text(record.proposed_id)!r}")
    return _Token(text, style, " \u00b7 ".join(parts))
