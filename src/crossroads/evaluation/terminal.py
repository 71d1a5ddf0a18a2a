"""The results on the terminal: tables that fit 80 columns. The page has the rest."""

from __future__ import annotations

from collections.abc import Sequence

import rich.table
from rich.box import SIMPLE
from rich.text import Text

from crossroads.evaluation import words
from crossroads.evaluation.summary import SystemResult, TaskResult

_NAME_WIDTH = 20  # a longer name goes on in the next line; a number is never cut


def terminal_tables(results: Sequence[TaskResult]) -> list[rich.table.Table]:
    """Return for every task its numbers, and the first router's differences to the others.

    Brackets are 95 % intervals. Where the problems do not rank the systems, a line below says so.
    """
    tables = []
    for result in results:
        tables.append(_numbers(result))
        router = words.first_router(result)
        differences = words.against(result, router.system) if router else []
        if differences:
            tables.append(_differences(result, differences))
        sentences = words.ranking_sentences(result)
        tables[-1].caption = Text(" ".join(sentences)) if sentences else None
        tables[-1].caption_justify = "left"
    return tables


def _numbers(result: TaskResult) -> rich.table.Table:
    first = result.systems[0]
    samples = "" if first.samples == 1 else f", {first.samples} answers each"
    title = f"{result.task}: {first.problems} problems{samples}; [95 % intervals]"
    table = _table(title, "system")
    for column in (
        "correct %", "large_\nfraction %", "tokens\n/answer", "params\n/token", "recovered\ngap %",
    ):  # fmt: skip
        table.add_column(column, justify="right", no_wrap=True)
    letters = words.letters(result)
    if letters:
        table.add_column("group", no_wrap=True)
    for system in result.systems:
        cells = [*_cells(system), *([letters.get(system.system, "")] if letters else [])]
        table.add_row(*(Text(cell) for cell in cells))  # Text: a name is not rich markup
    return table


def _cells(system: SystemResult) -> list[str]:
    return [
        system.system,
        words.estimate(system.accuracy, 0),
        words.percent(system.large_fraction.value),
        f"{system.tokens.value:.0f}",
        words.parameters(system.active_parameters),
        words.gap_percent(system.recovered, 0),
    ]


def _differences(result: TaskResult, found: Sequence[words.Against]) -> rich.table.Table:
    title = f"{result.task}: {found[0].system} minus another, on the same problems"
    table = _table(title, "other")
    for column in ("points", "p", "adjusted p"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=False)
    for pair in found:
        comparison, adjusted = pair.comparison, words.p_text(pair.adjusted_p)
        cells = (words.points(comparison, 0), words.p_text(comparison.p_value), adjusted)
        table.add_row(*(Text(cell) for cell in (pair.other, *cells, pair.verdict)))
    return table


def _table(title: str, first: str) -> rich.table.Table:
    table = rich.table.Table(
        title=Text(title),
        title_justify="left",
        box=SIMPLE,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column(first, overflow="fold", max_width=_NAME_WIDTH)
    return table
