"""A plot as data: causes say what to draw, the page draws it, the terminal leaves it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Style = Literal["line", "dashed", "points", "bars"]


@dataclass(frozen=True, slots=True)
class Series:
    """Some x and y of one name; `low` and `high` are the ends of intervals of y, where known."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: Style = "line"
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure: what it shows, in a sentence, and its series. `log_x`: a logarithmic x axis."""

    title: str
    caption: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
