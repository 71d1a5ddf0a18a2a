"""What decides whether a mismatch is neutral or divergent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One position where the small model proposes another token than the large model wrote.

    `position` is an index into the response. Log-probabilities are the large model's, in nats.
    """

    problem_id: str
    position: int
    real_id: int
    small_id: int
    logprob_real: float
    logprob_small: float
    logprob_best: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """`divergent` is None when the judge failed, with the reason; a failure is never a 0."""

    divergent: bool | None
    reason: str = ""


class Judge(Protocol):
    """Verdicts on mismatches. `settings` is all that its verdicts depend on."""

    @property
    def name(self) -> str:
        """The judge's name in the registry."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Plain values, stored with the labels."""

    def judge(self, mismatches: Sequence[Mismatch]) -> list[Verdict]:
        """Return one verdict per mismatch, in order."""
