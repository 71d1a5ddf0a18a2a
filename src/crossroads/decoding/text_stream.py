"""A row's text as it comes, token by token: whole characters, and nothing that may yet be cut."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from crossroads.models.base import Tokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """What a token adds to the text: nothing while a character or a stop string is unfinished."""

    token: int
    text: str


class TextStream:
    """Turns token ids into pieces of text, held back until it is certain that they stay.

    All pieces' texts together are the `text` of the row's trace, whatever the stop strings. A
    character belongs to the token that completes it.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        """Start empty; `stop` as the request's."""
        self._tokenizer = tokenizer
        self._stop = tuple(text.encode() for text in stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = bytearray()
        self._ends: list[int] = []  # where each waiting token's bytes end in what is held
        self._next = 0  # the first waiting token's number
        self._stopped = False

    def add(self, token_id: int) -> list[Piece]:
        """Take the next token; return the tokens of which the text is certain now, in order."""
        self._held += self._tokenizer.text_bytes(token_id)
        self._ends.append(len(self._held))
        cut = min((at for s in self._stop if (at := self._held.find(s)) >= 0), default=None)
        if cut is not None:
            self._stopped = True
            del self._held[cut:]
            self._ends = [min(end, cut) for end in self._ends]
        return self._release(len(self._held) - (0 if self._stopped else self._doubtful()))

    def end(self) -> list[Piece]:
        """Return what was held back, after the last token; no stop string can complete any more.

        A character that no token has completed becomes U+FFFD, as in the trace's text.
        """
        pieces = self._release(len(self._held))
        tail = self._decoder.decode(b"", final=True)
        if not tail:
            return pieces
        if pieces:
            return [*pieces[:-1], Piece(pieces[-1].token, pieces[-1].text + tail)]
        return [Piece(max(0, self._next - 1), tail)]

    def _doubtful(self) -> int:
        """Return how many bytes at the end of what is held may begin a stop string."""
        held = self._held
        lengths = (
            n
            for text in self._stop
            for n in range(min(len(text) - 1, len(held)), 0, -1)
            if held.endswith(text[:n])
        )
        return max(lengths, default=0)

    def _release(self, count: int) -> list[Piece]:
        pieces: list[Piece] = []
        start = 0
        while self._ends and self._ends[0] <= count:
            end = self._ends.pop(0)
            text = self._decoder.decode(bytes(self._held[start:end]))
            pieces.append(Piece(self._next, text))
            self._next += 1
            start = end
        del self._held[:start]
        self._ends = [end - start for end in self._ends]
        return pieces
