"""A training report in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text


def report_table(rows: Sequence[Mapping[str, Any]], objective: str, target_recall: float) -> Table:
    """Return the rows (as JSON) at one recall target, in percent; 100 columns are enough."""
    chosen = [row for row in rows if row["target_recall"] == target_recall]
    target = f"{100 * target_recall:g} %"
    table = _table(
        f"routers calibrated to {target} recall of {objective} tokens, on the test split "
        f"({chosen[0]['test']['point']['positives']} of them; [95 % intervals])",
        ("threshold", "recall %", "positive_rate %", f"positive_rate %\nat {target} on test"),
    )
    for row in chosen:
        test = row["test"]
        table.add_row(
            Text(row["router"]),  # Text: a name is not rich markup
            f"{test['point']['threshold']:.4f}",
            _percent(test["point"]["recall"], test["recall"]),
            _percent(test["point"]["positive_rate"], test["positive_rate"]),
            _estimate(row.get("same_recall")),
        )
    return table


def recalls_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return each router's recall and positive_rate on test at every recall target, in percent."""
    recalls = sorted({row["target_recall"] for row in rows})
    table = _table(
        "recall / positive_rate on the test split, by the recall asked of calibration",
        [f"{100 * target:g} %" for target in recalls],
    )
    for name in dict.fromkeys(row["router"] for row in rows):
        points = {
            row["target_recall"]: row["test"]["point"] for row in rows if row["router"] == name
        }
        cells = (
            f"{100 * points[t]['recall']:.1f} / {100 * points[t]['positive_rate']:.1f}"
            for t in recalls
        )
        table.add_row(Text(name), *cells)
    return table


def quality_table(quality: Sequence[Mapping[str, Any]]) -> Table:
    """Return the numbers that no threshold takes part in; 100 columns are enough."""
    table = _table(
        "ranking and probabilities on the test split ([95 % intervals]; a heuristic's score is no "
        "probability)",
        ("AUROC %", "average precision %", "Brier", "calibration error %"),
    )
    for row in quality:
        table.add_row(
            Text(row["router"]),
            _estimate(row["auroc"]),
            _estimate(row["average_precision"]),
            f"{row['brier']['value']:.4f}",
            _estimate(row["calibration_error"]),
        )
    return table


def comparison_lines(comparisons: Sequence[Mapping[str, Any]], recall: float) -> list[str]:
    """Return one sentence per other router: how many of its calls the first one makes."""
    return [
        f"At {100 * recall:g} % recall on test {c['router']} sends {c['ratio']['value']:.2f} "
        f"[{c['ratio']['interval']['low']:.2f}, {c['ratio']['interval']['high']:.2f}] times what "
        f"{c['other']} sends: {verdict(c['ratio']['interval'])}."
        for c in comparisons
        if c["recall"] == recall
    ]


def verdict(ratio: Mapping[str, float]) -> str:
    """Return what the interval of a ratio of positive_rates says."""
    if ratio["high"] < 1:
        return "fewer"
    return "more" if ratio["low"] > 1 else "no difference seen with this many problems"


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(
        title=title, title_justify="left", box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0)
    )
    table.add_column("router")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _estimate(value: Mapping[str, Any] | None) -> str:
    return "\u2013" if value is None else _percent(value["value"], value["interval"])


def _percent(value: float, interval: Mapping[str, float]) -> str:
    return f"{100 * value:.1f} [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"
