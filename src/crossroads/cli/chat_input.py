"""What a person, or a pipe, writes to a chat: lines, and messages of many lines."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import click

from crossroads.errors import RequestError

BLOCK = '"""'
_PROMPT, _MORE = "> ", ". "


@dataclass(frozen=True, slots=True)
class Entry:
    """A message or a command. A `verbatim` one is a message whatever it begins with."""

    text: str
    verbatim: bool = False


class ChatInput:
    """Reads entries; with line editing, history and completion where the system has readline.

    A line that ends in a backslash goes on in the next one; all between two lines of three double
    quotes is one message.
    """

    def __init__(self, commands: Iterable[str], *, interactive: bool, coloured: bool) -> None:
        """Prepare the terminal, if there is one; `commands` are what Tab completes."""
        self._interactive = interactive
        self._readline = _readline(sorted(commands)) if interactive else None
        self._bold = coloured and self._counts_invisible

    @property
    def _counts_invisible(self) -> bool:
        """Whether the prompt may hold escapes: GNU readline is told that they take no room."""
        return self._readline is not None and "libedit" not in (self._readline.__doc__ or "")

    def read(self) -> Entry | None:
        """Return the next entry that is not blank; None at the end of the input.

        Raises:
            RequestError: a block without an end, or what is no text. KeyboardInterrupt: Ctrl-C.
        """
        while (line := self._line(_PROMPT)) is not None:
            if line.strip() == BLOCK:
                text, verbatim = self._block(), True
            else:
                text, verbatim = self._joined(line), False
            if text.strip():
                return Entry(_checked(text), verbatim)
        return None

    def _joined(self, line: str) -> str:
        parts = [line]
        while parts[-1].endswith("\\"):
            parts[-1] = parts[-1][:-1]
            if (line_or_end := self._line(_MORE)) is None:
                break
            parts.append(line_or_end)
        return "\n".join(parts)

    def _block(self) -> str:
        lines: list[str] = []
        while (line := self._line(_MORE)) is not None:
            if line.strip() == BLOCK:
                return "\n".join(lines)
            lines.append(line)
        raise RequestError(f"the input ends within a block; close it with a line of {BLOCK}")

    def _line(self, prompt: str) -> str | None:
        """Return the next line without its end; None after the last one."""
        try:
            if self._interactive and sys.stdout.isatty():
                return input(f"\001\033[1m\002{prompt}\001\033[0m\002" if self._bold else prompt)
            if self._interactive:  # the answers go elsewhere, and a prompt is none
                click.echo(prompt, nl=False, err=True)
            line = sys.stdin.readline()
        except EOFError:
            line = ""
        except UnicodeDecodeError as error:
            raise RequestError(f"the input is not UTF-8 text ({error}); convert it") from error
        except KeyboardInterrupt:
            click.echo(err=True)
            raise
        if not line and self._interactive:
            click.echo(err=True)
        return line.rstrip("\r\n") if line else None


def _checked(text: str) -> str:
    """Return the text.

    Raises:
        RequestError: bytes that are no UTF-8 came through the terminal.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError("the message is not UTF-8 text; write it again") from error
    return text


def _readline(commands: Sequence[str]) -> Any:
    """Return the module, prepared; None where there is none (Windows)."""
    try:
        import readline
    except ImportError:
        return None

    def complete(text: str, state: int) -> str | None:
        fitting = [name for name in commands if text.startswith("/") and name.startswith(text)]
        return f"{fitting[state]} " if state < len(fitting) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    apple = "libedit" in (readline.__doc__ or "")
    with suppress(ValueError):  # another library's binding syntax; completion is a convenience
        readline.parse_and_bind("bind ^I rl_complete" if apple else "tab: complete")
        if not apple:  # what is pasted is one message, however many lines it has
            readline.parse_and_bind("set enable-bracketed-paste on")
    return readline
