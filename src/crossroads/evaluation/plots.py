"""A drawing for the page, and as files: SVG and PNG in light colours."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossroads.artifacts import atomic_path, write_text
from crossroads.svg import INK, LIGHT, MUTED, RULE, SERIES, svg

_DOTS_PER_INCH = 200


@dataclass(frozen=True, slots=True)
class Palette:
    """What a drawing is coloured with."""

    ink: str
    muted: str
    rule: str
    series: tuple[str, ...]


PAGE = Palette(INK, MUTED, RULE, SERIES)  # stand-ins that the page replaces
PAPER = Palette("#1c1e21", "#5d6269", "#d9dad5", LIGHT)


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure: its file name, what it says, and a function that draws it. height: inches."""

    name: str
    title: str
    caption: str
    height: float
    draw: Callable[[Any, Palette], None]


WIDTH = 5.0


def inline(drawing: Drawing) -> str:
    """Return the SVG element for the page; its ids begin with the drawing's name.

    Raises:
        EngineError: matplotlib is not installed.
    """
    return svg(drawing.name, WIDTH, drawing.height, lambda figure: drawing.draw(figure, PAGE))


def write_files(folder: Path, drawing: Drawing) -> None:
    """Write NAME.svg and NAME.png, atomically; the same drawing gives the same bytes.

    matplotlib must be there: `inline` refuses in words.
    """
    write_text(folder / f"{drawing.name}.svg", _saved(drawing, "svg").decode())
    with atomic_path(folder / f"{drawing.name}.png") as temporary:
        temporary.write_bytes(_saved(drawing, "png"))


def quiet_axes(axes: Any, palette: Palette, x_label: str, y_label: str) -> None:
    """Give axes their labels, a quiet grid and no frame."""
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(visible=True, color=palette.rule, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, which="both")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _saved(drawing: Drawing, form: str) -> bytes:
    import matplotlib  # noqa: PLC0415  takes a second, and only reports need it
    from matplotlib.figure import Figure  # noqa: PLC0415  no pyplot: no display, no state

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "crossroads",
        "text.parse_math": False,
        "font.size": 10,
        "axes.edgecolor": PAPER.rule,
        "axes.labelcolor": PAPER.ink,
        "xtick.color": PAPER.muted,
        "ytick.color": PAPER.muted,
        "text.color": PAPER.ink,
        "figure.facecolor": "white",
    }
    # A file says neither when nor by which version it was written: the same input, the same bytes.
    nothing = {"svg": ("Creator", "Date", "Format", "Type"), "png": ("Software",)}[form]
    buffer = io.BytesIO()
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(WIDTH, drawing.height))
        drawing.draw(figure, PAPER)
        metadata = dict.fromkeys(nothing)
        figure.savefig(buffer, format=form, dpi=_DOTS_PER_INCH, metadata=metadata)
    return buffer.getvalue()
