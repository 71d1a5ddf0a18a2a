"""Where a chat writes: answers and tables on standard output, what is said of them beside it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Literal

import click

from crossroads.cli.answer import is_coloured, visible

if TYPE_CHECKING:
    from rich.console import RenderableType


class Screen:
    """A terminal, or two streams of text without one."""

    def __init__(self, choice: str = "auto") -> None:
        """Colour always, never, or auto: what is a terminal and may be coloured."""
        self.coloured = is_coloured(choice)
        fixed = {"always": True, "never": False}
        self._beside = fixed.get(choice, False if os.environ.get("NO_COLOR") else None)

    def note(self, text: str) -> None:
        """Say a sentence on standard error."""
        click.secho(visible(text), dim=True, err=True, color=self._beside)

    def error(self, text: str) -> None:
        """Say what went wrong on standard error."""
        click.secho(f"error: {visible(text)}", fg="red", err=True, color=self._beside)

    def show(self, *parts: RenderableType) -> None:
        """Draw tables and texts on standard output. They must have gone through `visible`."""
        from rich.console import Console

        console = Console(
            highlight=False,
            emoji=False,
            markup=False,
            force_terminal=self.coloured,
            color_system=self._colours(),
        )
        for part in parts:
            console.print(part)

    def _colours(self) -> Literal["auto", "256"] | None:
        if not self.coloured:
            return None
        return "auto" if sys.stdout.isatty() else "256"
