"""What the ids of a tokenizer stand for: one hash over them, and where two of them differ.

A vocabulary is a list of raw bytes by id. None is padding: it stands for nothing and no text
becomes it, so two vocabularies that differ in padding alone are the same vocabulary. Ids beyond
a list's end are padding too.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest


@dataclass(frozen=True, slots=True)
class Difference:
    """The first id at which two vocabularies differ; None where the id stands for nothing."""

    token_id: int
    small: bytes | None
    large: bytes | None


def vocabulary_fingerprint(pieces: Sequence[bytes | None]) -> str:
    """Return the hex SHA-256 over every (id, piece) in order; padding adds nothing to it."""
    digest = hashlib.sha256()
    for token_id, piece in enumerate(pieces):
        if piece is not None:
            digest.update(b"%d:%d:" % (token_id, len(piece)))
            digest.update(piece)
    return digest.hexdigest()


def first_difference(
    small_pieces: Sequence[bytes | None], large_pieces: Sequence[bytes | None]
) -> Difference | None:
    """Return the first id that does not stand for the same bytes in both, or None."""
    for token_id, (small, large) in enumerate(zip_longest(small_pieces, large_pieces)):
        if small != large:
            return Difference(token_id, small, large)
    return None


class PieceTokenizer(ABC):
    """The half of a Tokenizer that follows from its pieces alone: from ids back to text."""

    @property
    @abstractmethod
    def _pieces(self) -> Sequence[bytes | None]:
        """Every id's raw bytes."""

    @property
    @abstractmethod
    def _special_ids(self) -> Collection[int]:
        """Ids that add nothing to a text."""

    @cached_property
    def fingerprint(self) -> str:
        """Hash over every id's bytes."""
        return vocabulary_fingerprint(self.pieces())

    def pieces(self) -> Sequence[bytes | None]:
        """Return every id's raw bytes; a special token's are its text."""
        return self._pieces

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of the ids."""
        return b"".join(map(self.text_bytes, token_ids)).decode("utf-8", errors="replace")

    def text_bytes(self, token_id: int) -> bytes:
        """Return the bytes that one id adds to the text; nothing for a special token."""
        if token_id in self._special_ids or not 0 <= token_id < len(self._pieces):
            return b""
        return self._pieces[token_id] or b""
