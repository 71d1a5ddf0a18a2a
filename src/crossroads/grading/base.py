"""What every rule returns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Grade:
    """What an answer was read as, and whether it is right.

    `parsed` is None for an unparsed answer; `reason` says in words how the grade came about.
    """

    correct: bool
    parsed: str | None
    reason: str

    @property
    def unparsed(self) -> bool:
        """Whether no answer could be read."""
        return self.parsed is None
