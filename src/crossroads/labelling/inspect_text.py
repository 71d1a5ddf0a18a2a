"""A labelled dataset on the terminal: what it is made of, and a response with its labels."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from crossroads.labelling.inspect import (
    DatasetSummary,
    ResponseView,
    TokenView,
    percent,
    rate_cells,
)
from crossroads.labelling.stored import future, one_line, visible

_STYLES = {
    "identical": "",
    "neutral": "yellow",
    "divergent": "bold red underline",
    "unjudged": "bright_black",
}
_MARKS = {"neutral": "[{}|{}]", "divergent": "[[{}|{}]]", "unjudged": "?{}|{}?"}
"""How a label looks without colours: the token as it is, and what the small model proposes."""
_CONTEXT, _FUTURE = 50, 140  # characters that are shown; the page has the rest


def summary_parts(summary: DatasetSummary) -> Iterator[RenderableType]:
    """Yield what the dataset is made of: a few lines, base rates, failures, what is missing."""
    rule = f", combined by {summary.combine}" if summary.combine else ""
    lines = [
        f"pair       {summary.pair}: {summary.small} beside {summary.large}",
        f"judges     {len(summary.judges) or 'unknown'}{rule}",
        *(f"           {judge}" for judge in summary.judges),
        f"responses  {summary.responses:,} to {summary.problems:,} problems, "
        f"{summary.positions:,} tokens; {summary.unfinished} unfinished ones left out",
    ]
    yield Text("\n".join(map(one_line, lines)) + "\n")
    yield _rates_table(summary)
    if summary.failures:
        yield _failures_table(summary)
    if summary.missing:
        yield Text("\n".join(summary.missing), style="yellow")


def response_parts(response: ResponseView, *, colours: bool) -> Iterator[RenderableType]:
    """Yield one response with its labels, then its mismatches; without `colours`, with marks."""
    row, counts = response.row, response.counts
    labels = ", ".join(f"{counts[name]} {name}" for name in _STYLES if counts[name])
    title = f"problem {one_line(row.problem_id)}, sample {row.sample}"
    yield Text(title, style="bold")
    yield Text(f"{one_line(row.domain)}, {row.split} split; {row.positions} tokens: {labels}")
    for message in response.messages:
        yield Text(f"{message.role}: {visible(message.content)}", style="dim")
    yield _legend(colours)
    yield response_text(response, colours=colours)
    if response.mismatches:
        yield _mismatches_table(response)


def response_text(response: ResponseView, *, colours: bool) -> Text:
    """Return every token of the response, coloured or marked by its label."""
    text = Text()
    for token in response.tokens:
        if colours or token.label not in _MARKS:
            text.append(visible(token.text), style=_STYLES[token.label])
        else:
            breaks = "\n" * token.text.count("\n")
            text.append(_marked(token) + breaks)
    return text


def _marked(token: TokenView) -> str:
    return _MARKS[token.label].format(one_line(token.text), one_line(token.proposal))


def _legend(colours: bool) -> Text:
    legend = Text()
    for name, mark in _MARKS.items():
        shown = name if colours else f"{name}: {mark.format('large wrote', 'small proposes')}"
        legend.append(shown, style=_STYLES[name] if colours else "")
        legend.append("  ")
    return legend


def _table(title: str) -> Table:
    return Table(
        title=Text(title),
        title_justify="left",
        box=SIMPLE,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )


def _rates_table(summary: DatasetSummary) -> Table:
    table = _table("labels, in percent of the judged tokens")
    table.add_column("")
    for column in ("tokens", "identical", "neutral", "divergent", "unjudged"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in summary.rates:
        table.add_row(*map(Text, (one_line(row.group), *rate_cells(row))))
    return table


def _failures_table(summary: DatasetSummary) -> Table:
    table = _table("what failed, by reason without its numbers")
    table.add_column("stage")
    table.add_column("times", justify="right")
    table.add_column("reason", overflow="fold")
    for failure in summary.failures:
        cells = (failure.stage, f"{failure.count:,}", one_line(failure.reason))
        table.add_row(*map(Text, cells))
    return table


def _mismatches_table(response: ResponseView) -> Table:
    table = _table("mismatches: [[large wrote|small proposes]], and the large model's p of both")
    table.add_column("token", justify="right", no_wrap=True)
    table.add_column("where", ratio=3, overflow="fold")
    table.add_column("verdicts", ratio=2, overflow="fold")
    table.add_column("futures", ratio=4, overflow="fold")
    for token in response.mismatches:
        table.add_row(Text(str(token.position)), *_mismatch_cells(token), end_section=True)
    return table


def _mismatch_cells(token: TokenView) -> tuple[Text, Text, Text]:
    found = token.mismatch
    assert found is not None
    where = Text(_tail(one_line(found.context)))
    where.append(_marked(token), style=_STYLES[token.label])
    where.append(f"\np {percent(token.p_large_real)} | {percent(token.p_large_small)}")
    verdicts = [f"{v.judge}: {v.word}" for v in found.verdicts] or [token.label]
    futures = Text(f"wrote: {_head(found.reference)}")
    for text in found.continuations:
        futures.append(f"\nafter small: {_head(text)}")
    return where, Text("\n".join(verdicts)), futures


def _tail(text: str) -> str:
    return text if len(text) <= _CONTEXT else f"\u2026{text[-_CONTEXT:]}"


def _head(text: str) -> str:
    text = one_line(future(text))
    return text if len(text) <= _FUTURE else f"{text[:_FUTURE]}\u2026"
