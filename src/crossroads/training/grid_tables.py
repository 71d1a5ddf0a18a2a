"""The numbers of an ablation, a learning curve or a search as tables: terminal, Markdown, page.

Every table is made once, as text; three small functions show it in three places.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import rich.table
from rich.box import SIMPLE
from rich.text import Text

_DASH = "\u2013"
_TARGET = 0.95
_SIDE = (0.8, 0.95)
"""Recalls at which a row is set against the heuristics: the issue's two."""
_CURVE = (0.8, 0.9, 0.95)
"""Recalls that a curve's table shows; its JSON has all."""
Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table as text; the first column names the rows.

    strong: rows to point out. words: cells are words rather than numbers.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    strong: frozenset[int] = frozenset()
    words: bool = False

    @property
    def flat_header(self) -> tuple[str, ...]:
        """The header without the line breaks that a terminal needs."""
        return tuple(name.replace("\n", " ") for name in self.header)


def terminal(table: TextTable) -> rich.table.Table:
    """Return the table for a terminal."""
    shown = rich.table.Table(
        title=table.title,
        title_justify="left",
        caption=table.note or None,
        caption_justify="left",
        box=SIMPLE,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    shown.add_column(table.header[0], no_wrap=table.words)
    for column in table.header[1:]:
        shown.add_column(
            column, justify="left" if table.words else "right", no_wrap=not table.words
        )
    for number, row in enumerate(table.rows):
        style = "bold" if number in table.strong else ""
        shown.add_row(*(Text(cell, style) for cell in row))  # Text: a name is not rich markup
    return shown


def markdown(tables: Sequence[TextTable]) -> str:
    """Return the tables as Markdown."""
    parts = []
    for table in tables:
        head = " | ".join(map(_escaped, table.flat_header))
        body = (
            " | ".join(
                f"**{_escaped(cell)}**" if number in table.strong else _escaped(cell)
                for cell in row
            )
            for number, row in enumerate(table.rows)
        )
        rule = " | ".join(["---", *["---:"] * (len(table.header) - 1)])
        lines = "\n".join(f"| {line} |" for line in (head, rule, *body))
        parts.append(f"**{_escaped(table.title)}**\n\n{lines}")
        if table.note:
            parts.append(_escaped(table.note))
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    special = "\\`*_{}[]<>|#&"
    escaped = (f"\\{character}" if character in special else character for character in text)
    return "".join(escaped).replace("\n", " ")


# Ablation


def ablation_tables(result: Values) -> list[TextTable]:
    """Return an ablation's tables per objective: ranking, ratios, calibrated thresholds."""
    tables = []
    for objective in dict.fromkeys(row["objective"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["objective"] == objective]
        tables += [
            _ranking_table(rows, result, objective),
            *(_ratio_table(rows, objective, kind) for kind in rows[0]["at"][0]["ratios"]),
            _calibrated_table(rows, objective),
        ]
    return tables


def _ranking_table(rows: Sequence[Values], result: Values, objective: str) -> TextTable:
    test, seeds = result["counts"]["test"], max(row["seeds"] for row in rows)
    folds = f"{result['folds']} folds, " if result["folds"] > 1 else ""
    header = ("inputs", "AUROC", "AP", *(f"{percent(r)} %" for r in result["recalls"]))
    body = []
    for row in rows:
        areas = [f"{row[name]['mean']:.3f}" for name in ("auroc", "average_precision")]
        rates = [spread(at["positive_rate"], interval=False) for at in row["at"]]
        body.append((row["name"], *areas, *rates))
    return TextTable(
        f"positive_rate % at equal recall of {objective} tokens on test, {seeds} seeds "
        f"({folds}{test['problems']} problems, {test['tokens']} tokens, {test[objective]} "
        f"{objective})",
        header,
        tuple(body),
        "Mean over the seeds \u00b1 their standard deviation. In bold what calibration prefers.",
        frozenset([_first(rows)]),
    )


def _ratio_table(rows: Sequence[Values], objective: str, kind: str) -> TextTable:
    """Return each row's positive_rate, and as a share of a reference's, with intervals."""
    body, names = [], {}
    for row in rows:
        at = {values["recall"]: values for values in row["at"]}
        names = {recall: at[recall]["ratios"][kind]["against"] for recall in _SIDE}
        rate = spread(at[_TARGET]["positive_rate"], deviation=False)
        body.append((row["name"], rate, *(ratio(at[r]["ratios"][kind]) for r in _SIDE)))
    header = (f"x {names[recall]}\nat {percent(recall)} %" for recall in _SIDE)
    what = {
        "heuristic": "The heuristic is the best of them on test itself.",
        "r2r": "r2r is R2R's recipe with its own inputs.",
    }
    return TextTable(
        f"positive_rate at equal recall of {objective} tokens on test, against {kind}",
        ("inputs", f"sent %\nat {percent(_TARGET)} %", *header),
        tuple(body),
        f"Below 1 sends fewer tokens. {what[kind]} [95 % intervals] over problems, shares paired.",
        frozenset([_first(rows)]),
    )


def _calibrated_table(rows: Sequence[Values], objective: str) -> TextTable:
    header = ("inputs", "size", "calibration:\nsent %", "test:\nrecall %", "test:\nsent %")
    body = []
    for row in rows:
        values = next(at for at in row["at"] if at["recall"] == _TARGET)["calibrated"]
        cells = (
            row["name"],
            amount(row["parameters"]) if "parameters" in row else _DASH,
            percent(values["calibration_positive_rate"]),
            spread(values["recall"], deviation=False),
            spread(values["positive_rate"], deviation=False),
        )
        body.append(cells)
    return TextTable(
        f"thresholds calibrated to {percent(_TARGET)} % recall of {objective} tokens",
        header,
        tuple(body),
        "Each seed's threshold is chosen on calibration; sent is positive_rate. [95 % intervals]: "
        "other test problems, the same thresholds.",
        frozenset([_first(rows)]),
    )


def _first(rows: Sequence[Values]) -> int:
    """Return the row that calibration prefers: test does not choose what is pointed out."""
    order = [next(at for at in row["at"] if at["recall"] == _TARGET)["calibrated"] for row in rows]
    return min(range(len(rows)), key=lambda i: order[i]["calibration_positive_rate"])


# Learning curve


def curve_tables(result: Values) -> list[TextTable]:
    """Return a learning curve's tables: the points, then where the laws lead."""
    tables = [_points_table(result), _point_ratios_table(result)]
    if any(curve["laws"] for curve in result["curves"]):
        tables += [_ahead_table(result), _goals_table(result)]
    return tables


def _points_table(result: Values) -> TextTable:
    header = ("router", "problems", "tokens", "positive")
    body = []
    for curve in result["curves"]:
        for point in curve["points"]:
            size = (str(point["problems"]), amount(point["tokens"]), amount(point["positives"]))
            body.append((curve["recipe"], *size, *_rates(point)))
    body += [(row["name"], _DASH, _DASH, _DASH, *_rates(row)) for row in result["heuristics"]]
    test, objective = result["counts"]["test"], result["objective"]
    return TextTable(
        f"positive_rate % at equal recall of {objective} tokens on test, by what was trained on "
        f"({test['problems']} problems, {test['tokens']} tokens, {test[objective]} {objective})",
        (*header, *(f"{percent(recall)} %" for recall in _CURVE)),
        tuple(body),
        "Mean over the seeds \u00b1 their standard deviation; a seed also draws the part.",
    )


def _rates(values: Values) -> list[str]:
    shown = [at["positive_rate"] for at in values["at"] if at["recall"] in _CURVE]
    return [spread(rate, interval=False) for rate in shown]


def _point_ratios_table(result: Values) -> TextTable:
    body, names = [], {}
    for curve in result["curves"]:
        for point in curve["points"]:
            at = {values["recall"]: values for values in point["at"]}
            names = {recall: at[recall]["ratio"]["against"] for recall in _SIDE}
            rate = spread(at[_TARGET]["positive_rate"], deviation=False)
            shares = (ratio(at[recall]["ratio"]) for recall in _SIDE)
            body.append((curve["recipe"], amount(point["tokens"]), rate, *shares))
    header = (f"x {names[recall]}\nat {percent(recall)} %" for recall in _SIDE)
    return TextTable(
        "the same against the best heuristic",
        ("router", "tokens", f"sent %\nat {percent(_TARGET)} %", *header),
        tuple(body),
        "Below 1 sends fewer tokens. [95 % intervals] over problems, shares paired.",
    )


def _laws(result: Values) -> list[tuple[str, Values]]:
    return [
        (f"{curve['recipe']}, {percent(law['recall'])} %", law)
        for curve in result["curves"]
        for law in curve["laws"]
    ]


def _ahead_table(result: Values) -> TextTable:
    laws = _laws(result)
    times = [ahead["tokens"] / laws[0][1]["reference"] for ahead in laws[0][1]["ahead"]]
    header = (
        "router, recall",
        *(f"{t:g} x the\ntokens" for t in times),
        "without\nend",
        "c",
        "fitted\nfrom",
    )
    body = [
        (
            name,
            *(estimate(ahead) for ahead in law["ahead"]),
            estimate(law["asymptote"]),
            f"{law['exponent']['value']:.2f}",
            amount(law["fitted_from"]),
        )
        for name, law in laws
    ]
    return TextTable(
        "where the curve leads: positive_rate % by a + b n^-c",
        header,
        tuple(body),
        "[95 % intervals]: test problems and seeds drawn again, the law fitted again. They hold if "
        "the law does, which a curve cannot tell.",
    )


def _goals_table(result: Values) -> TextTable:
    body = []
    for name, law in _laws(result):
        for goal in law["goals"]:
            far = (tokens(goal["low"]), tokens(goal["high"]))
            body.append(
                (
                    name,
                    f"{goal['share']:g} x {goal['of']}",
                    percent(goal["positive_rate"]),
                    tokens(goal["tokens"]),
                    f"[{far[0]}, {far[1]}]",
                    percent(goal["never"]),
                )
            )
    return TextTable(
        "training tokens that it takes",
        (
            "router, recall",
            "to send",
            "that\nis %",
            "tokens",
            "95 % interval",
            "never,\n% of draws",
        ),
        tuple(body),
    )


# Search


def trials_table(result: Values, count: int = 3) -> TextTable:
    """Return the best trials of a search, one per column, and what they tried."""
    best = result["best_trials"][:count]
    rows = [
        ("sent %", *(percent(trial["positive_rate"]) for trial in best)),
        ("best epoch", *(str(trial["best_epoch"]) for trial in best)),
    ]
    rows += [
        (name, *(_setting(trial["settings"][name]) for trial in best)) for name in result["space"]
    ]
    states = ", ".join(f"{number} {state}" for state, number in result["states"].items())
    return TextTable(
        f"best trials ({states}): positive_rate at {percent(result['target_recall'])} % recall of "
        f"{result['objective']} tokens on calibration",
        ("", *(f"trial {trial['number']}" for trial in best)),
        tuple(rows),
        "Trial 0 is the recipe. The best of many trials on one calibration split looks better than "
        "it is; other seeds and test say what it is worth.",
        frozenset([0]),
    )


def _setting(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value).replace("+", "+\n")


def space_table(result: Values) -> TextTable:
    """Return a search space: what may vary, and over which values."""
    return TextTable(
        f"space of the recipe {result['recipe']}",
        ("setting", "over"),
        tuple(result["space"].items()),
        words=True,
    )


# Cells


def percent(share: float) -> str:
    """Return a share in percent, a digit after the point where it says something."""
    text = f"{100 * share:.1f}"
    return text.removesuffix(".0")


def spread(values: Values, *, interval: bool = True, deviation: bool = True) -> str:
    """Return a Spread's values in percent: `12.3 \u00b10.4 [11.0, 13.9]`."""
    text = f"{100 * values['mean']:.1f}"
    if deviation and values["deviation"] is not None:
        text += f" \u00b1{100 * values['deviation']:.1f}"
    if interval:
        text += f" {_between(values['interval'], 100, 1)}"
    return text


def ratio(values: Values | None) -> str:
    """Return a ratio with its interval."""
    if values is None:
        return _DASH
    return f"{values['value']:.2f} {_between(values['interval'], 1, 2)}"


def estimate(values: Values) -> str:
    """Return a value with its interval, in percent."""
    return f"{100 * values['value']:.1f} {_between(values['interval'], 100, 1)}"


def _between(interval: Mapping[str, float], scale: float, digits: int) -> str:
    return f"[{scale * interval['low']:.{digits}f}, {scale * interval['high']:.{digits}f}]"


def amount(count: float) -> str:
    """Return a count as people read it: 950, 12.3 k, 56 M."""
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.0f}"


def tokens(count: float | None) -> str:
    """Return a number of tokens; None is never."""
    return "never" if count is None or not math.isfinite(count) else amount(count)
