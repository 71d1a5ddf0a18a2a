"""Accuracy against large_fraction as an inline SVG that takes its colours from the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crossroads.evaluation.results import SystemKind, SystemSummary
from crossroads.svg import INK, MUTED, RULE, SERIES, svg

_SERIES = SERIES[:6]
_MARKERS = "osD^vPX<>"
_NEAR = 0.03  # of large_fraction: closer points are drawn side by side
_SHIFT_POINTS = 4.5


def accuracy_figure(summaries: Sequence[SystemSummary]) -> str:
    """Return the SVG element; the same summaries always give the same text.

    The dashed line joins the models alone: what tossing a coin per problem would give.

    Raises:
        EngineError: matplotlib is not installed.
    """
    height = 3.1 + 0.22 * -(-len(summaries) // 2)

    def draw(figure: Any) -> None:
        _draw(figure.add_axes((0.115, 1 - 2.5 / height, 0.855, 2.4 / height)), summaries)
        figure.legend(loc="lower left", ncols=2, frameon=False, borderaxespad=0.2, numpoints=1)

    return svg("accuracy", 5.0, height, draw)


def _draw(axes: Any, summaries: Sequence[SystemSummary]) -> None:
    _draw_chord(axes, summaries)
    shifts = _shifts([summary.large_fraction for summary in summaries])
    coloured = 0
    for number, summary in enumerate(summaries):
        alone = summary.kind in (SystemKind.SMALL, SystemKind.LARGE)
        colour = INK if alone else _SERIES[coloured % len(_SERIES)]
        coloured += not alone
        _draw_point(axes, summary, colour, _MARKERS[number % len(_MARKERS)], shifts[number])
    axes.set_xlim(-3, 103)
    axes.set_ylim(-3, 103)
    axes.set_xlabel("generated tokens written by the large model (%)")
    axes.set_ylabel("correct answers (%)")
    axes.grid(visible=True, color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _draw_chord(axes: Any, summaries: Sequence[SystemSummary]) -> None:
    ends = {s.kind: s for s in summaries if s.kind in (SystemKind.SMALL, SystemKind.LARGE)}
    if len(ends) == 2:
        small, large = ends[SystemKind.SMALL], ends[SystemKind.LARGE]
        across = [100 * small.large_fraction, 100 * large.large_fraction]
        up = [100 * small.accuracy, 100 * large.accuracy]
        axes.plot(across, up, linestyle=(0, (5, 4)), linewidth=1, color=MUTED, zorder=1)


def _draw_point(axes: Any, summary: SystemSummary, colour: str, marker: str, shift: float) -> None:
    from matplotlib.transforms import ScaledTranslation  # noqa: PLC0415

    moved = axes.transData + ScaledTranslation(shift / 72, 0, axes.figure.dpi_scale_trans)
    x, y = 100 * summary.large_fraction, 100 * summary.accuracy
    vertical, horizontal = summary.accuracy_interval, summary.large_fraction_interval
    line = {"color": colour, "linewidth": 1.1, "alpha": 0.65, "transform": moved, "zorder": 2}
    axes.plot([x, x], [100 * vertical.low, 100 * vertical.high], **line)
    axes.plot([100 * horizontal.low, 100 * horizontal.high], [y, y], **line)
    axes.plot(
        [x],
        [y],
        marker=marker,
        markersize=6.5,
        color=colour,
        markeredgecolor="none",
        linestyle="none",
        label=summary.name,
        transform=moved,
        zorder=3,
    )


def _shifts(fractions: Sequence[float]) -> list[float]:
    """Return how many points to move each marker, so that equal fractions stay apart."""
    shifts = [0.0] * len(fractions)
    order = sorted(range(len(fractions)), key=lambda i: fractions[i])
    group: list[int] = []
    for index in [*order, None]:
        if index is not None and (not group or fractions[index] - fractions[group[-1]] < _NEAR):
            group.append(index)
            continue
        for place, member in enumerate(group):
            shifts[member] = (place - (len(group) - 1) / 2) * _SHIFT_POINTS
        group = [] if index is None else [index]
    return shifts
