"""What a model thought and what it said, told apart while the text still grows.

Models that think write `<think>thought</think>answer`; for some the chat template has written the
first tag already. Law: however a text is cut into pieces, the same thought and the same answer
come out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from crossroads.models.base import Tokenizer

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Split:
    """What a piece of text added to the thought and to the answer."""

    reasoning: str = ""
    content: str = ""


class _Place(Enum):
    START = auto()
    REASONING = auto()
    CONTENT = auto()


class ReasoningSplitter:
    """One answer's text, piece by piece.

    A tag opens a thought only as the first thing of the text after white space, which is dropped
    with it; anywhere else it is text. So is a second closing tag. One line break directly after a
    tag is dropped. A thought that is never closed is all reasoning.
    """

    def __init__(self, open: str = OPEN, close: str = CLOSE, *, inside: bool = False) -> None:
        """Start before the first character; `inside`: the prompt has opened the thought."""
        if not open.strip() or open != open.lstrip() or not close:
            raise ValueError(f"tags must be text that begins with no white space, got {open!r}")
        self._open, self._close = open, close
        self._place = _Place.REASONING if inside else _Place.START
        self._after_tag = inside
        self._held = ""

    def feed(self, text: str) -> Split:
        """Return what `text` adds; what may still become a tag is held back."""
        reasoning = content = ""
        self._held += text
        if self._place is _Place.START:
            self._read_start()
        if self._place is _Place.REASONING:
            reasoning = self._read_reasoning()
        if self._place is _Place.CONTENT:
            content = self._without_line_break(self._held)
            self._held = ""
        return Split(reasoning, content)

    def end(self) -> Split:
        """Return what was held back: no tag came of it."""
        rest, self._held = self._held, ""
        if self._place is _Place.REASONING:
            return Split(reasoning=self._without_line_break(rest))
        return Split(content=self._without_line_break(rest))

    def _read_start(self) -> None:
        """Leave the start, once it is certain whether the text begins with the tag."""
        text = self._held.lstrip()
        if text.startswith(self._open):
            self._held = text[len(self._open) :]
            self._place, self._after_tag = _Place.REASONING, True
        elif not self._open.startswith(text):
            self._place = _Place.CONTENT

    def _read_reasoning(self) -> str:
        """Take the thought, as far as it is certain, out of what is held."""
        thought, tag, rest = self._held.partition(self._close)
        if tag:
            self._held = rest
            thought = self._without_line_break(thought)
            self._place, self._after_tag = _Place.CONTENT, True
            return thought
        held = _possible_start(thought, self._close)
        self._held = thought[len(thought) - held :]
        return self._without_line_break(thought[: len(thought) - held])

    def _without_line_break(self, text: str) -> str:
        """Return the text without the line break that a tag may leave at its beginning."""
        if text and self._after_tag:
            self._after_tag = False
            return text.removeprefix("\n")
        return text


def _possible_start(text: str, tag: str) -> int:
    """Return how many characters at the end of `text` may be the beginning of `tag`."""
    longest = min(len(text), len(tag) - 1)
    return next((n for n in range(longest, 0, -1) if tag.startswith(text[-n:])), 0)


def thinks(tokenizer: Tokenizer) -> bool:
    """Whether the models of this tokenizer were taught to think: both tags are single tokens."""
    pieces = tokenizer.pieces()
    return OPEN.encode() in pieces and CLOSE.encode() in pieces


def opened_by_prompt(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> bool:
    """Whether the rendered prompt has opened the thought: it ends with the tag and white space."""
    pieces = tokenizer.pieces()
    for token_id in reversed(prompt_ids):
        piece = pieces[token_id]
        if piece is None or piece.strip():
            return piece == OPEN.encode()
    return False
