"""Plots of a diagnosis as inline SVG that takes its colours from the page."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from crossroads.diagnosis.plots import Plot, Series
from crossroads.diagnosis.verdict import Verdict
from crossroads.svg import MUTED, SERIES, quiet, svg

_SERIES = SERIES[:4]
_MARKERS = "osD^"


def plot_figure(plot: Plot) -> str:
    """Return a plot's SVG element; the same plot always gives the same text.

    Raises:
        EngineError: matplotlib is not installed.
    """
    rows = -(-len(plot.series) // 2)
    name = re.sub(r"\W+", "-", plot.title.lower())
    return _svg(name, 3.1 + 0.24 * rows, 2.5, lambda axes: _draw(axes, plot), legend=True)


def points_figure(verdicts: Sequence[Verdict]) -> str:
    """Return each cause's points as a bar with its interval; at least one verdict has points."""
    shown = [verdict for verdict in verdicts if verdict.points is not None]
    height = 0.9 + 0.3 * len(shown)
    return _svg("points", height, height - 0.55, lambda axes: _draw_points(axes, shown), left=0.34)


def _svg(
    name: str,
    height: float,
    plot_height: float,
    draw: Callable[[Any], None],
    *,
    left: float = 0.125,
    legend: bool = False,
) -> str:
    def draw_all(figure: Any) -> None:
        place = (left, 1 - (0.1 + plot_height) / height, 0.97 - left, plot_height / height)
        axes = figure.add_axes(place)
        draw(axes)
        quiet(axes)
        if legend:
            figure.legend(loc="lower left", ncols=2, frameon=False, borderaxespad=0.2, numpoints=1)

    return svg(name, 5.0, height, draw_all)


def _draw(axes: Any, plot: Plot) -> None:
    for number, series in enumerate(plot.series):
        _draw_series(axes, series, number)
    if plot.log_x:
        axes.set_xscale("log")
        # The default labels are formulas, which the page would show as their source.
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda *_: "")
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)


def _draw_series(axes: Any, series: Series, number: int) -> None:
    colour = _SERIES[number % len(_SERIES)]
    x, y = list(series.x), list(series.y)
    if series.low is not None and series.high is not None:
        for at, low, high in zip(x, series.low, series.high, strict=True):
            axes.plot([at, at], [low, high], color=colour, linewidth=1.1, alpha=0.65)
    if series.style == "points":
        axes.plot(
            x, y, linestyle="none", marker=_MARKERS[number % len(_MARKERS)], color=colour,
            markersize=6.5, label=series.name,
        )  # fmt: skip
        return
    axes.plot(
        x, y, color=colour, linewidth=1.5, label=series.name,
        linestyle=(0, (4, 3)) if series.style == "dashed" else "-",
        marker="o" if len(x) < 12 else None, markersize=3.5,
    )  # fmt: skip


def _draw_points(axes: Any, verdicts: Sequence[Verdict]) -> None:
    names = []
    for number, verdict in enumerate(reversed(verdicts)):
        points = verdict.points
        assert points is not None
        found = verdict.status.value == "found"
        colour = _SERIES[1] if found else MUTED
        axes.plot([0, 100 * points.value], [number, number], color=colour, linewidth=6, alpha=0.6)
        if points.interval is not None:
            ends = [100 * points.interval.low, 100 * points.interval.high]
            axes.plot(ends, [number, number], color=colour, linewidth=1.2)
        names.append(verdict.name)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.set_xlabel("points of positive_rate")
