"""An answer on the terminal: its text as it comes, coloured by writer, and what it cost."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

import click

from crossroads.decoding.cost import active_parameters
from crossroads.decoding.mixed import MixedModels
from crossroads.decoding.text_stream import Piece, TextStream
from crossroads.models.base import Tokenizer
from crossroads.types import Role, TokenRecord, Trace

# Controls but line breaks and tabs, soft hyphen, zero width (but the joiners that emoji and scripts
# need), direction, other line ends, tags: what a terminal obeys, and what a reader cannot see.
_HIDDEN = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\xad\\u061c\\u180e\\u200b\\u200e\\u200f\\u2028-\\u202e"
    "\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb\\U000e0000-\\U000e007f]"
)


def visible(text: str) -> str:
    """Return `text` with every character that a terminal may obey, or hides, as its code.

    What a model writes is nobody's word: an escape sequence in it could move the cursor, rename
    the window or write to the clipboard.
    """
    return _HIDDEN.sub(lambda found: f"\u27e8U+{ord(found[0]):04X}\u27e9", text)


def by_large(text: str) -> str:
    """Return text in the colour of what the large model wrote."""
    return click.style(text, fg="bright_magenta", bold=True)


def is_coloured(choice: str = "auto") -> bool:
    """Return whether standard output is to be coloured: always, never, or auto.

    auto: on a terminal that can, unless the environment has NO_COLOR (no-color.org).
    """
    if choice != "auto":
        return choice == "always"
    dumb = os.environ.get("TERM") == "dumb" or bool(os.environ.get("NO_COLOR"))
    return sys.stdout.isatty() and not dumb


class TokenPrinter:
    """Writes an answer as its text becomes certain, what the large model wrote in colour."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...], *, coloured: bool) -> None:
        """Start an answer."""
        self._stream = TextStream(tokenizer, stop)
        self._coloured = coloured
        self._by_large: list[bool] = []

    def add(self, record: TokenRecord) -> None:
        """Write what the next token makes certain."""
        self._by_large.append(record.writer is Role.LARGE)
        self._write(self._stream.add(record.token_id))

    def end(self) -> None:
        """Write what was held back, and a line's end."""
        self._write(self._stream.end())
        click.echo()

    def _write(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            text = visible(piece.text)
            if text and self._coloured and self._by_large[piece.token]:
                click.echo(by_large(text), nl=False, color=True)
            else:
                click.echo(text, nl=False)
        sys.stdout.flush()


def usage_line(models: MixedModels, trace: Trace, seconds: float, first: float) -> str:
    """Return what an answer cost in one line; seconds in all, and to its first token."""
    usage = trace.usage
    active = active_parameters(
        trace.records,
        models.small.info.active_parameters,
        models.large.info.active_parameters,
        models.router.parameters,
    )
    taken_back = f", {usage.discarded_tokens} taken back" if usage.discarded_tokens else ""
    calls = f", asked {usage.large_calls} times" if usage.large_calls != usage.large_tokens else ""
    return (
        f"[{usage.generated_tokens} tokens: {usage.small_tokens} small, {usage.large_tokens} large"
        f"{calls}{taken_back} | large_fraction {usage.large_fraction:.3f}"
        f" | {usage.generated_tokens / seconds:.1f} tokens/s, first after {first:.2f} s"
        f" | {active / 1e9:.2f} B active parameters per token"
        f" | {trace.finish_reason}]"
    )
