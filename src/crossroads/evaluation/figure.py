"""The figures of a report: what accuracy costs, and where the large model is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crossroads.evaluation.families import ALONE, Family
from crossroads.evaluation.kinds import SystemKind
from crossroads.evaluation.plots import Drawing, Palette, quiet_axes
from crossroads.evaluation.summary import SystemResult, TaskResult
from crossroads.evaluation.usage_patterns import Bin, UsagePatterns
from crossroads.statistics import Interval
from crossroads.svg import MARKERS

_NEAR = 0.02  # of the axis: closer points are drawn side by side
_SHIFT_POINTS = 3.5
_LEGEND_ROW = 0.22  # inches
_FEW = 50  # tokens; a share of fewer is noise
_MOST_STRETCHES = 40


@dataclass(frozen=True, slots=True)
class Point:
    """A system's place in a figure, in percent; `across` is None where x has no interval."""

    system: str
    kind: SystemKind
    x: float
    y: float
    across: Interval | None
    up: Interval


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats: none is as far left and as high, and better in one.

    From left to right.
    """
    front = [
        point
        for point in points
        if not any(
            other.x <= point.x and other.y >= point.y and (other.x, other.y) != (point.x, point.y)
            for other in points
        )
    ]
    return sorted(front, key=lambda point: (point.x, point.y))


def fraction_points(result: TaskResult) -> list[Point]:
    """Return accuracy against large_fraction."""
    return [
        _point(system, 100 * system.large_fraction.value, system.large_fraction.interval)
        for system in result.systems
    ]


def cost_points(result: TaskResult) -> list[Point]:
    """Return accuracy against cost: percent of the large model alone, or billions without it."""
    alone = large_cost(result)
    scale = 100 / alone if alone else 1e-9
    return [_point(system, system.cost * scale, None) for system in result.systems]


def large_cost(result: TaskResult) -> float | None:
    """Return what an answer of the large model alone costs; None where it was not run."""
    costs = (s.cost for s in result.systems if s.kind is SystemKind.LARGE and s.cost)
    return next(costs, None)


def trade_off_drawings(
    result: TaskResult, groups: Sequence[Family], prefix: str = ""
) -> list[Drawing]:
    """Return accuracy against large_fraction and against cost."""
    unit = "% of the large model alone" if large_cost(result) else "billions"
    front = (
        "Filled marks on the broad line are the Pareto front: no other system here is as cheap and "
        "as accurate. Thin lines through the marks are 95 % intervals; a line joins one router's "
        "thresholds."
    )
    return [
        _trade_off(
            f"{prefix}accuracy",
            "Accuracy against the large model\u2019s share",
            f"{front} The dashed line joins the two models alone: what picking one of them by "
            "chance would give; a router is worth its training where it lies above. Marks at "
            "nearly the same share are drawn side by side.",
            _Axis("generated tokens written by the large model (%)", 100.0),
            fraction_points(result),
            groups,
        ),
        _trade_off(
            f"{prefix}cost",
            "Accuracy against cost",
            f"{front} Cost is tokens per answer times active parameters per token: the long "
            "answer pays for its length, and every proposal that was thrown away counts.",
            _Axis(f"active parameters per answer ({unit})", None),
            cost_points(result),
            groups,
        ),
    ]


def position_drawing(
    patterns: Mapping[str, UsagePatterns], groups: Sequence[Family], prefix: str = ""
) -> Drawing | None:
    """Return where along a response the large model is asked, or None where nothing routed.

    One line for each router: of the first of its systems.
    """
    shown = [(g, patterns[g.members[0]]) for g in groups if g.members[0] in patterns]
    if not shown:
        return None
    height = 4.8 + _LEGEND_ROW * -(-len(shown) // 2)

    def draw(figure: Any, palette: Palette) -> None:
        along = figure.add_axes((0.115, 1 - 1.95 / height, 0.855, 1.85 / height))
        at = figure.add_axes((0.115, 1 - 4.25 / height, 0.855, 1.75 / height))
        for group, pattern in shown:
            _draw_steps(along, pattern.relative, 100 / len(pattern.relative), group, palette)
            bins, width = coarser(pattern.absolute, pattern.width)
            _draw_steps(at, bins, width, group, palette, label=False)
        along.set_xlim(0, 100)
        at.set_xlim(left=0)
        for axes in (along, at):
            axes.set_ylim(bottom=0)
        quiet_axes(along, palette, "part of the response (%)", "of its tokens (%)")
        quiet_axes(at, palette, "tokens since the start", "of them (%)")
        figure.legend(loc="lower left", ncols=2, frameon=False, borderaxespad=0.2)

    return Drawing(
        f"{prefix}positions",
        "Where along a response the large model is asked",
        "Share of the tokens at which the large model was asked, by twentieths of each response "
        "and by tokens from its start; stretches of fewer than "
        f"{_FEW} tokens are left out. One line for each router, of its first system.",
        height,
        draw,
    )


def coarser(bins: Sequence[Bin], width: int) -> tuple[tuple[Bin, ...], int]:
    """Join neighbouring bins until there are few enough to draw; returns them and their width."""
    while len(bins) > _MOST_STRETCHES:
        pairs = [bins[i : i + 2] for i in range(0, len(bins), 2)]
        bins = [Bin(sum(b.tokens for b in p), sum(b.asked for b in p)) for p in pairs]
        width *= 2
    return tuple(bins), width


@dataclass(frozen=True, slots=True)
class _Axis:
    """The horizontal one; `end` None: as far as the points go."""

    label: str
    end: float | None


def _point(system: SystemResult, x: float, across: Interval | None) -> Point:
    if across is not None:
        across = Interval(100 * across.low, 100 * across.high)
    up = system.accuracy.interval
    return Point(
        system.system,
        system.kind,
        x,
        100 * system.accuracy.value,
        across,
        Interval(100 * up.low, 100 * up.high),
    )


def _trade_off(
    name: str,
    title: str,
    caption: str,
    axis: _Axis,
    points: Sequence[Point],
    groups: Sequence[Family],
) -> Drawing:
    height = 3.2 + _LEGEND_ROW * -(-(len(groups) + 1) // 2)

    def draw(figure: Any, palette: Palette) -> None:
        axes = figure.add_axes((0.115, 1 - 2.6 / height, 0.855, 2.5 / height))
        end = axis.end or 1.05 * max((point.x for point in points), default=0.0) or 1.0
        _draw_front(axes, points, palette)
        _draw_chord(axes, points, palette)
        _draw_systems(axes, points, groups, end, palette)
        axes.set_xlim(-0.03 * end, 1.03 * end)
        axes.set_ylim(-3, 103)
        quiet_axes(axes, palette, axis.label, "correct answers (%)")
        figure.legend(loc="lower left", ncols=2, frameon=False, borderaxespad=0.2, numpoints=1)

    return Drawing(name, title, caption, height, draw)


def _draw_front(axes: Any, points: Sequence[Point], palette: Palette) -> None:
    front = pareto_front(points)
    axes.plot(
        [point.x for point in front],
        [point.y for point in front],
        drawstyle="steps-post",
        color=palette.rule,
        linewidth=6,
        solid_capstyle="round",
        zorder=1,
    )


def _draw_chord(axes: Any, points: Sequence[Point], palette: Palette) -> None:
    ends = {point.kind: point for point in points if point.kind in ALONE}
    if len(ends) == 2:
        across, up = zip(*((point.x, point.y) for point in ends.values()), strict=True)
        style = {"linestyle": (0, (5, 4)), "linewidth": 1, "color": palette.muted}
        axes.plot(across, up, zorder=1.5, **style)


def _draw_systems(
    axes: Any, points: Sequence[Point], groups: Sequence[Family], end: float, palette: Palette
) -> None:
    front = {point.system for point in pareto_front(points)}
    shifts = dict(
        zip((p.system for p in points), _shifts([p.x / end for p in points]), strict=True)
    )
    by_name = {point.system: point for point in points}

    def marks(names: Sequence[str], colour: str, marker: str, label: str | None) -> None:
        for name in names:
            filled = name in front
            _draw_point(axes, by_name[name], _Mark(colour, marker, filled, shifts[name]))
        axes.plot([], [], marker=marker, markersize=6, color=colour, linestyle="none", label=label)

    for group in groups:
        colour = palette.series[group.number % len(palette.series)]
        members = [name for name in group.members if name in by_name]
        along = sorted((by_name[name].x, by_name[name].y) for name in members)
        axes.plot(*zip(*along, strict=True), color=colour, linewidth=1.2, zorder=2)
        marks(members, colour, MARKERS[group.number % len(MARKERS)], group.label)
    alone = [point for point in points if point.kind in ALONE]
    if alone:
        marks([point.system for point in alone], palette.ink, "X", "a model alone")


@dataclass(frozen=True, slots=True)
class _Mark:
    colour: str
    marker: str
    filled: bool
    shift: float


def _draw_point(axes: Any, point: Point, mark: _Mark) -> None:
    from matplotlib.transforms import ScaledTranslation  # noqa: PLC0415

    moved = axes.transData + ScaledTranslation(mark.shift / 72, 0, axes.figure.dpi_scale_trans)
    line = {
        "color": mark.colour, "linewidth": 1.0, "alpha": 0.45, "transform": moved, "zorder": 2.5,
    }  # fmt: skip
    axes.plot([point.x, point.x], [point.up.low, point.up.high], **line)
    if point.across is not None:
        axes.plot([point.across.low, point.across.high], [point.y, point.y], **line)
    axes.plot(
        [point.x],
        [point.y],
        marker=mark.marker,
        markersize=6,
        color=mark.colour,
        markerfacecolor=mark.colour if mark.filled else "none",
        linestyle="none",
        transform=moved,
        zorder=3,
    )


def _draw_steps(
    axes: Any,
    bins: Sequence[Bin],
    width: float,
    group: Family,
    palette: Palette,
    *,
    label: bool = True,
) -> None:
    shares = [100 * b.share if b.tokens >= _FEW else math.nan for b in bins]
    if all(map(math.isnan, shares)):
        shares = [0.0 for _ in shares]  # matplotlib has no place for a line without a point
    axes.stairs(
        shares,
        [width * place for place in range(len(bins) + 1)],
        baseline=None,
        color=palette.series[group.number % len(palette.series)],
        linewidth=1.5,
        label=group.label if label else None,
    )


def _shifts(places: Sequence[float]) -> list[float]:
    """Return how many points to move each marker, so that nearly equal places stay apart."""
    shifts = [0.0] * len(places)
    order = sorted(range(len(places)), key=lambda i: places[i])
    group: list[int] = []
    for index in [*order, None]:
        if index is not None and (not group or places[index] - places[group[-1]] < _NEAR):
            group.append(index)
            continue
        for place, member in enumerate(group):
            shifts[member] = (place - (len(group) - 1) / 2) * _SHIFT_POINTS
        group = [] if index is None else [index]
    return shifts
