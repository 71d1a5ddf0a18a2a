"""An ablation or a learning curve as one page that loads nothing: figures, then tables."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from crossroads.artifacts import write_text
from crossroads.svg import INK, MUTED, SERIES, quiet, svg
from crossroads.training.grid_tables import (
    TextTable,
    ablation_tables,
    amount,
    curve_tables,
    percent,
    ratio,
    spread,
)

_SERIES = SERIES[:6]
_MARKERS = "osD^vP"
_SHOWN = (0.95, 0.8)
_WIDTH = 7.2  # inches
_NAME_WIDTH = 48  # characters beside the plot
Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Figure:
    title: str
    svg: Markup
    caption: str


def write_ablation_page(path: Path, result: Values) -> None:
    """Write the page of `ablation.json`'s content; the same content gives the same bytes.

    Raises:
        EngineError: matplotlib is not installed. ConfigError: the file cannot be written.
    """
    figures = []
    for objective in dict.fromkeys(row["objective"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["objective"] == objective]
        figures += [_forest(rows, objective, recall) for recall in _SHOWN]
    _write(path, "Ablation", _ablation_lead(result), figures, ablation_tables(result), result)


def write_curve_page(path: Path, result: Values) -> None:
    """Write the page of `learning-curve.json`'s content; the same content gives the same bytes.

    Raises:
        EngineError: matplotlib is not installed. ConfigError: the file cannot be written.
    """
    figures = [_curve(result, recall) for recall in _SHOWN]
    _write(path, "Learning curve", _curve_lead(result), figures, curve_tables(result), result)


def _write(
    path: Path,
    title: str,
    lead: str,
    figures: Sequence[_Figure],
    tables: Sequence[TextTable],
    result: Values,
) -> None:
    source = resources.files("crossroads.training").joinpath("grid_page.html.j2")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(source.read_text(encoding="utf-8"))
    sizes = [(split, list(counts.items())) for split, counts in result["counts"].items()]
    page = template.render(
        title=title,
        lead=lead,
        figures=figures,
        tables=tables,
        sizes=sizes,
        folds=result.get("folds", 1),
        provenance=_flat(result["provenance"]),
    )
    write_text(path, page)


def _flat(values: Values, prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{name} \u203a ")
        else:
            found.append((name, str(value)))
    return found


def _at(row: Values, recall: float) -> Values:
    found: Values = next(values for values in row["at"] if values["recall"] == recall)
    return found


def _ablation_lead(result: Values) -> str:
    """Return the result in a sentence, about the row that calibration prefers."""
    objective = result["rows"][0]["objective"]
    trained = [
        row for row in result["rows"] if row["kind"] == "router" and row["objective"] == objective
    ]
    best = min(trained, key=lambda row: _at(row, 0.95)["calibrated"]["calibration_positive_rate"])
    at = _at(best, 0.95)
    against = at["ratios"]["heuristic"]
    return (
        f"At 95 % recall of {objective} tokens on test, \u201c{best['name']}\u201d, the row that "
        f"calibration prefers, sends {spread(at['positive_rate'])} % of the tokens to the large "
        f"model: {ratio(against)} times what {against['against']} sends, the best heuristic. "
        f"{_verdict(against['interval'])}"
    )


def _verdict(interval: Mapping[str, float]) -> str:
    if interval["high"] < 1:
        return "The interval is below 1: fewer tokens, beyond chance."
    if interval["low"] > 1:
        return "The interval is above 1: more tokens, beyond chance."
    return "The interval holds 1: no difference seen with this many problems."


def _curve_lead(result: Values) -> str:
    parts = []
    for curve in result["curves"]:
        last = curve["points"][-1]
        rate = spread(_at(last, 0.95)["positive_rate"])
        parts.append(f"{curve['recipe']} sends {rate} % after {last['tokens']:.0f} training tokens")
    rates = {row["name"]: _at(row, 0.95)["positive_rate"]["mean"] for row in result["heuristics"]}
    name = min(rates, key=rates.__getitem__)
    return (
        f"At 95 % recall of {result['objective']} tokens on test, {'; '.join(parts)}. "
        f"The best heuristic there, {name}, sends {percent(rates[name])} %."
    )


# Figures


def _forest(rows: Sequence[Values], objective: str, recall: float) -> _Figure:
    """Return every row's positive_rate with its interval, and the best heuristic as a line."""
    height = 0.75 + 0.24 * len(rows)
    name = f"forest-{objective}-{percent(recall)}"
    drawing = _svg(name, height, lambda figure: _draw_forest(figure, rows, recall, height))
    return _Figure(
        f"positive_rate at {percent(recall)} % recall of {objective} tokens",
        drawing,
        "Left is better. Points: mean over the seeds; lines: 95 % intervals over problems; small "
        "marks: single seeds' extremes. The dashed line is the best heuristic on test.",
    )


def _draw_forest(figure: Any, rows: Sequence[Values], recall: float, height: float) -> None:
    axes = figure.add_axes((0.46, 0.5 / height, 0.52, (height - 0.6) / height))
    recipes = list(dict.fromkeys(row.get("recipe", "heuristic") for row in rows))
    rest = []
    for place, row in enumerate(reversed(rows)):
        rate = _at(row, recall)["positive_rate"]
        number = recipes.index(row.get("recipe", "heuristic"))
        heuristic = row["kind"] == "heuristic"
        colour = MUTED if heuristic else _SERIES[number % len(_SERIES)]
        ends = [100 * rate["interval"]["low"], 100 * rate["interval"]["high"]]
        axes.plot(ends, [place, place], color=colour, linewidth=1.4, alpha=0.65)
        extremes = [100 * rate["least"], 100 * rate["most"]]
        axes.plot(extremes, [place, place], "|", color=colour, markersize=5, alpha=0.8)
        marker = "x" if heuristic else _MARKERS[number % len(_MARKERS)]
        axes.plot([100 * rate["mean"]], [place], marker, color=colour, markersize=5)
        if heuristic and row["name"] != "random":
            rest.append(100 * rate["mean"])
    if rest:
        axes.axvline(min(rest), color=MUTED, linewidth=1, linestyle=(0, (5, 4)))
    names = [textwrap.fill(row["name"], _NAME_WIDTH) for row in reversed(rows)]
    axes.set_yticks(range(len(rows)), names)
    axes.tick_params(axis="y", labelcolor=INK, labelsize=9)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    most = [100 * _at(r, recall)["positive_rate"]["interval"]["high"] for r in rows]
    sane = [m for m, row in zip(most, rows, strict=True) if row["name"] != "random"]
    axes.set_xlim(0, 1.05 * max(sane or most))  # random is far to the right, and says nothing
    axes.set_xlabel("tokens sent to the large model (%)")
    quiet(axes)


def _curve(result: Values, recall: float) -> _Figure:
    name = f"curve-{percent(recall)}"
    drawing = _svg(name, 4.4, lambda figure: _draw_curves(figure, result, recall))
    return _Figure(
        f"positive_rate at {percent(recall)} % recall against training tokens",
        drawing,
        "Points: mean over the seeds, with 95 % intervals over problems. Lines: the fitted power "
        "law, drawn on beyond the data; shaded: its 95 % interval, if the law holds. Flat lines: "
        "the heuristics, which learn nothing.",
    )


def _draw_curves(figure: Any, result: Values, recall: float) -> None:
    axes = figure.add_axes((0.09, 0.27, 0.89, 0.71))
    for number, curve in enumerate(result["curves"]):
        _draw_curve(axes, curve, recall, number)
    dashes = iter([(5, 4), (2, 2), (7, 2, 2, 2)])
    for row in result["heuristics"]:
        if row["name"] != "random":
            rate = 100 * _at(row, recall)["positive_rate"]["mean"]
            axes.axhline(
                rate, color=MUTED, linewidth=1, linestyle=(0, next(dashes)), label=row["name"]
            )
    axes.set_xscale("log")
    # The library's own labels of powers are formulas, which the page would show as source.
    axes.xaxis.set_major_formatter(lambda at, _: amount(at))
    axes.xaxis.set_minor_formatter(lambda *_: "")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("training tokens")
    axes.set_ylabel("tokens sent (%)")
    quiet(axes)
    figure.legend(loc="lower left", ncols=3, frameon=False, borderaxespad=0.2, numpoints=1)


def _draw_curve(axes: Any, curve: Values, recall: float, number: int) -> None:
    colour, marker = _SERIES[number % len(_SERIES)], _MARKERS[number % len(_MARKERS)]
    rates = [_at(point, recall)["positive_rate"] for point in curve["points"]]
    tokens = [point["tokens"] for point in curve["points"]]
    for at, rate in zip(tokens, rates, strict=True):
        ends = [100 * rate["interval"]["low"], 100 * rate["interval"]["high"]]
        axes.plot([at, at], ends, color=colour, linewidth=1.1, alpha=0.65)
    means = [100 * rate["mean"] for rate in rates]
    axes.plot(
        tokens, means, marker, color=colour, markersize=5.5, linestyle="none",
        label=curve["recipe"],
    )  # fmt: skip
    for law in curve["laws"]:
        if law["recall"] != recall:
            continue
        band = [step for step in law["band"] if step["tokens"] >= 0.9 * law["fitted_from"]]
        at = [step["tokens"] for step in band]
        axes.plot(at, [100 * step["value"] for step in band], color=colour, linewidth=1.2)
        low = [100 * step["interval"]["low"] for step in band]
        high = [100 * step["interval"]["high"] for step in band]
        axes.fill_between(at, low, high, color=colour, alpha=0.12, linewidth=0)


def _svg(name: str, height: float, draw: Callable[[Any], None]) -> Markup:
    return Markup(svg(name, _WIDTH, height, draw))  # noqa: S704  matplotlib escapes the names
