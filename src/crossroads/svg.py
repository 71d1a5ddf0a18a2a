"""Figures as inline SVG that takes its colours from the page, so that dark and light share one.

A page that shows them defines `--ink`, `--muted`, `--rule`, `--sans` and `--series-0` to
`--series-7`; `LIGHT` and `DARK` are colours for the series that people tell apart.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

from crossroads.errors import EngineError

# Stand-ins that a drawing uses and the page replaces.
INK, MUTED, RULE = "#010203", "#040506", "#070809"
SERIES = tuple(f"#0a0b{number:02x}" for number in range(0x10, 0x18))
MARKERS = "osD^vPX<"
LIGHT = (
    "#0072b2", "#d55e00", "#008a65", "#b0568a", "#8a6d00", "#4b4fa3", "#4d7c0f", "#6b4f3a",
)  # fmt: skip
DARK = (
    "#56b4e9", "#ff8f4a", "#34c79b", "#e79cc4", "#e0c14a", "#a3a7f5", "#a3cf5b", "#c9a78d",
)  # fmt: skip
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    **{colour: f"var(--series-{i})" for i, colour in enumerate(SERIES)},
}


def svg(name: str, width: float, height: float, draw: Callable[[Any], None]) -> str:
    """Return an SVG element that scales with its place; the same drawing is always the same text.

    Args:
        name: of the figure; its ids begin with it, so that a page may hold several.
        width: inches; 5 fill a page's column with text of 10 points.
        height: inches.
        draw: gets a matplotlib figure and draws with the colours of this module alone.

    Raises:
        EngineError: matplotlib is not installed.
    """
    matplotlib, figure_class = _import_matplotlib()
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "crossroads",
        "text.parse_math": False,
        "font.size": 10,
        "axes.edgecolor": RULE,
        "axes.labelcolor": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "text.color": INK,
    }
    buffer = io.StringIO()
    with matplotlib.rc_context(settings):
        figure = figure_class(figsize=(width, height))
        draw(figure)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _inlined(buffer.getvalue(), name)


def plain_axes(axes: Any, x_label: str, y_label: str) -> None:
    """Give axes their labels, a quiet grid and no frame."""
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    quiet(axes)


def quiet(axes: Any) -> None:
    """Give axes a quiet grid and no frame."""
    axes.grid(visible=True, color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, which="both")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _inlined(text: str, name: str) -> str:
    """Return the bare element, with the page's colours and font and ids of its own."""
    text = text[text.index("<svg") :]
    head, body = text.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--sans)", body)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
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
