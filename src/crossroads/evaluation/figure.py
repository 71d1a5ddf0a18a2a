"""Accuracy against large_fraction as an inline SVG that takes its colours from the page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from crossroads.errors import EngineError
from crossroads.evaluation.results import SystemKind, SystemSummary

# Stand-ins that the drawing uses and the page replaces, so that dark and light share one figure.
_INK, _MUTED, _RULE = "#010203", "#040506", "#070809"
_SERIES = ("#0a0b0c", "#0d0e0f", "#101112", "#131415", "#161718", "#191a1b")
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _RULE: "var(--rule)",
    **{colour: f"var(--series-{i})" for i, colour in enumerate(_SERIES)},
}
_MARKERS = "osD^vPX<>"
_NEAR = 0.03  # of large_fraction: closer points are drawn side by side
_SHIFT_POINTS = 4.5


def accuracy_figure(summaries: Sequence[SystemSummary]) -> str:
    """Return the SVG element; the same summaries always give the same text.

    The dashed line joins the models alone: what tossing a coin per problem would give.

    Raises:
        EngineError: matplotlib is not installed.
    """
    matplotlib, figure_class = _import_matplotlib()
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "crossroads",
        "text.parse_math": False,
        "font.size": 10,
        "axes.edgecolor": _RULE,
        "axes.labelcolor": _INK,
        "xtick.color": _MUTED,
        "ytick.color": _MUTED,
        "text.color": _INK,
    }
    buffer = io.StringIO()
    with matplotlib.rc_context(settings):
        rows = -(-len(summaries) // 2)
        height = 3.1 + 0.22 * rows
        figure = figure_class(figsize=(5.0, height))
        axes = figure.add_axes((0.115, 1 - 2.5 / height, 0.855, 2.4 / height))
        _draw(axes, summaries)
        figure.legend(loc="lower left", ncols=2, frameon=False, borderaxespad=0.2, numpoints=1)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _inlined(buffer.getvalue())


def _draw(axes: Any, summaries: Sequence[SystemSummary]) -> None:
    _draw_chord(axes, summaries)
    shifts = _shifts([summary.large_fraction for summary in summaries])
    coloured = 0
    for number, summary in enumerate(summaries):
        alone = summary.kind in (SystemKind.SMALL, SystemKind.LARGE)
        colour = _INK if alone else _SERIES[coloured % len(_SERIES)]
        coloured += not alone
        _draw_point(axes, summary, colour, _MARKERS[number % len(_MARKERS)], shifts[number])
    axes.set_xlim(-3, 103)
    axes.set_ylim(-3, 103)
    axes.set_xlabel("generated tokens written by the large model (%)")
    axes.set_ylabel("correct answers (%)")
    axes.grid(visible=True, color=_RULE, linewidth=0.6)
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
        axes.plot(across, up, linestyle=(0, (5, 4)), linewidth=1, color=_MUTED, zorder=1)


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


def _inlined(svg: str) -> str:
    """Return the bare element, with the page's colours and font, scaling with its width."""
    svg = svg[svg.index("<svg") :]
    head, body = svg.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--sans)", body)
    return f'{head} aria-hidden="true">{body}'


def _import_matplotlib() -> tuple[Any, Any]:
    try:
        import matplotlib  # noqa: PLC0415  takes a second, and only pages need it
        from matplotlib.figure import Figure  # noqa: PLC0415  no pyplot: no display, no state
    except ImportError as error:
        raise EngineError(
            'the page needs the package matplotlib; `pip install "crossroads-lm[evaluate]"`'
        ) from error
    return matplotlib, Figure
