"""How far a system sends the very tokens that entropy would have sent on the same path."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crossroads.evaluation.columns import Columns

# Entropies are counted by the first bits of a float32, whose order is theirs: 2048 steps between a
# value and its double. So memory is bounded, whatever the number of tokens.
_DROPPED_BITS = 12
_BINS = 1 << (31 - _DROPPED_BITS)


@dataclass(frozen=True, slots=True)
class EntropyOverlap:
    """The proposals that a system sent, beside as many of the highest entropy on its own path.

    proposals: with a known entropy. sent: those at which the large model was asked. alike: those
    of them that are among the `sent` proposals of the highest entropy; where several have the
    entropy of the last of these, those that were sent come first. replaced: of the sent ones, those
    in whose place the large model wrote another token; replaced_alike: of the alike ones, where
    only some of equal entropy are alike in proportion.
    """

    proposals: int
    sent: int
    alike: int
    replaced: int
    replaced_alike: float

    @property
    def share(self) -> float | None:
        """Share of what was sent that entropy would have sent, too; None if nothing was."""
        return self.alike / self.sent if self.sent else None

    @property
    def replaced_inside(self) -> float | None:
        """Share replaced of what entropy would have sent, too; None without such tokens."""
        return self.replaced_alike / self.alike if self.alike else None

    @property
    def replaced_outside(self) -> float | None:
        """Share replaced of what entropy would not have sent; None without such tokens."""
        apart = self.sent - self.alike
        return (self.replaced - self.replaced_alike) / apart if apart else None


def _counts() -> Any:
    return np.zeros(_BINS, np.int64)


@dataclass(slots=True)
class OverlapCounter:
    """Counts proposals by entropy, trace by trace."""

    proposals: Any = field(default_factory=_counts)
    sent: Any = field(default_factory=_counts)
    replaced: Any = field(default_factory=_counts)

    def add(self, columns: Columns) -> None:
        """Count one response; tokens without a proposal or its entropy are left out."""
        known = [
            (entropy, asked, new)
            for entropy, asked, new, proposal in zip(
                columns.entropies, columns.asked, columns.replaced, columns.proposed_ids,
                strict=True,
            )
            if entropy is not None and proposal is not None
        ]  # fmt: skip
        if not known:
            return
        entropies, asked, replaced = zip(*known, strict=True)
        # A rounding below 0 is 0.
        entropy_N = np.maximum(np.asarray(entropies, np.float32), np.float32(0))
        bin_N = entropy_N.view(np.uint32) >> _DROPPED_BITS
        np.add.at(self.proposals, bin_N, 1)
        np.add.at(self.sent, bin_N[np.asarray(asked)], 1)
        np.add.at(self.replaced, bin_N[np.asarray(replaced)], 1)

    def overlap(self) -> EntropyOverlap:
        """Return what was counted so far."""
        # By falling entropy: how many of every bin entropy sends until it has sent as many.
        proposals_B, sent_B, replaced_B = (
            counts[::-1] for counts in (self.proposals, self.sent, self.replaced)
        )
        sent = int(sent_B.sum())
        taken_B = np.clip(sent - (np.cumsum(proposals_B) - proposals_B), 0, proposals_B)
        alike_B = np.minimum(taken_B, sent_B)
        return EntropyOverlap(
            proposals=int(proposals_B.sum()),
            sent=sent,
            alike=int(alike_B.sum()),
            replaced=int(replaced_B.sum()),
            replaced_alike=float((replaced_B * (alike_B / np.maximum(sent_B, 1))).sum()),
        )
