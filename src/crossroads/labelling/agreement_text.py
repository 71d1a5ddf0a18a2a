"""An agreement report on the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from crossroads.labelling.agreement import (
    AgreementReport,
    Disagreement,
    JudgeSummary,
    PairAgreement,
)
from crossroads.labelling.stored import CONTEXT, JudgeVerdict, future, one_line
from crossroads.statistics import Interval

_NOTE = (
    "Divergent is the positive verdict. Brackets are 95 % bootstrap intervals over problems. "
    "kappa is Cohen's (1960): the agreement beyond what independent judges with the same shares "
    "would reach; it is undefined (\u2013) where both gave one and the same verdict throughout. "
    "Agreement is no accuracy: two judges may be wrong together."
)
_JUDGE_COLUMNS = ("judge", "ok", "failed", "divergent %", "why it failed")
_PAIR_COLUMNS = (
    "judges", "judged by both", "agreement %", "kappa",
    "both divergent", "only first", "only second", "both neutral",
)  # fmt: skip


def judges_table(report: AgreementReport) -> Table:
    """Return the judges one by one as a terminal table."""
    table = _table("judges; [95 % intervals]")
    table.add_column(_JUDGE_COLUMNS[0])
    for column in _JUDGE_COLUMNS[1:4]:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column(_JUDGE_COLUMNS[4], overflow="fold")
    for judge in report.judges:
        table.add_row(*map(Text, _judge_cells(judge)))  # Text: a reason is not rich markup
    return table


def pairs_table(report: AgreementReport) -> Table:
    """Return the pairs as a terminal table that fits 80 columns."""
    table = _table(f"pairs of judges{_sampled(report)}; [95 % intervals]")
    table.add_column(_PAIR_COLUMNS[0])
    headers = (
        "judged\nby both", "agreement %", "kappa",
        "both\ndiv.", "only\nfirst", "only\nsecond", "both\nneutral",
    )  # fmt: skip
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    for pair in report.pairs:
        cells = _pair_cells(pair)
        table.add_row(Text(f"{pair.first}\n{pair.second}"), *map(Text, cells[1:]))
    return table


def disagreement_text(example: Disagreement) -> Text:
    """Return one disagreement for the terminal: where, the texts, both verdicts."""
    title, *lines = _lines(example)
    text = Text(title, style="bold")
    for line in lines:
        text.append(f"\n  {line}", style="not bold")
    return text


def markdown(report: AgreementReport) -> str:
    """Return the whole report as Markdown."""
    parts = [
        "# Agreement of judges",
        _NOTE,
        "## Judges",
        _markdown_table(_JUDGE_COLUMNS, [_judge_cells(judge) for judge in report.judges]),
        f"## Pairs of judges{_sampled(report)}",
        _markdown_table(_PAIR_COLUMNS, [_pair_cells(pair) for pair in report.pairs]),
    ]
    for pair in report.pairs:
        if pair.disagreements:
            parts.append(f"## Where {_escaped(pair.first)} and {_escaped(pair.second)} differ")
        for example in pair.disagreements:
            title, *lines = _lines(example)
            # Indented blocks show every character as it is; fences and inline code do not.
            parts += [f"### {_escaped(title)}", "\n".join(f"    {line}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0)
    )


def _sampled(report: AgreementReport) -> str:
    if report.sample is None:
        return ""
    return f", at most {report.sample} mismatches each (seed {report.seed})"


def _judge_cells(judge: JudgeSummary) -> list[str]:
    reasons = "; ".join(f"{one_line(reason)} ({count})" for reason, count in judge.reasons)
    share = _share(judge.divergent, judge.interval)
    return [judge.name, str(judge.ok), str(judge.failed), share, reasons]


def _pair_cells(pair: PairAgreement) -> list[str]:
    counts = pair.counts
    kappa = "\u2013" if counts.kappa is None else f"{counts.kappa:.2f}"
    return [
        f"{pair.first}, {pair.second}",
        str(counts.total),
        _share(counts.agreement, pair.interval),
        kappa,
        str(counts.both_divergent),
        str(counts.only_first),
        str(counts.only_second),
        str(counts.both_neutral),
    ]


def _share(share: float | None, interval: Interval | None) -> str:
    if share is None or interval is None:
        return "\u2013"
    return f"{100 * share:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _lines(example: Disagreement) -> Iterator[str]:
    """Yield the title and then the lines of one disagreement; the tokens are [[real|small]]."""
    yield f"problem {one_line(example.problem_id)}, token {example.position}"
    if example.real:
        dots = "\u2026" if len(example.context) == CONTEXT else ""
        marked = f"[[{one_line(example.real)}|{one_line(example.small)}]]"
        yield f"{dots}{one_line(example.context)}{marked}"
        yield f"the large model wrote: {one_line(future(example.reference))}"
    for text in example.continuations:
        yield f"after the small token: {one_line(future(text))}"
    yield from (_verdict_line(verdict) for verdict in example.verdicts)


def _verdict_line(found: JudgeVerdict) -> str:
    probability = found.verdict.probability
    shown = "" if probability is None else f" (p {probability:.2f})"
    reason = f": {one_line(found.verdict.reason)}" if found.verdict.reason else ""
    return f"{found.judge} says {found.word}{shown}{reason}"


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head, *body = (" | ".join(map(_escaped, cells)) for cells in (columns, *rows))
    rule = " | ".join(["---", *["---:"] * (len(columns) - 1)])
    return "\n".join(f"| {line} |" for line in (head, rule, *body))


def _escaped(text: str) -> str:
    """Return `text` so that Markdown shows it as it is."""
    special = "\\`*_{}[]<>|#&"
    return "".join(f"\\{character}" if character in special else character for character in text)
