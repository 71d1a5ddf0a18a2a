"""Where and at which tokens the large model is asked, counted over many traces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from crossroads.evaluation.columns import Columns
from crossroads.evaluation.overlap import EntropyOverlap, OverlapCounter

RELATIVE_BINS = 20
WIDTH = 16  # tokens in a bin of absolute positions


@dataclass(frozen=True, slots=True)
class Bin:
    """The tokens of one stretch of the responses, and at how many the large model was asked."""

    tokens: int
    asked: int

    @property
    def share(self) -> float:
        """Share of its tokens at which the large model was asked; 0 without tokens."""
        return self.asked / self.tokens if self.tokens else 0.0


@dataclass(frozen=True, slots=True)
class RoutedToken:
    """A token of the small model's proposals.

    sent: proposals at which the large model was asked. replaced: those in whose place it wrote
    another token.
    """

    token_id: int
    proposed: int
    sent: int
    replaced: int


@dataclass(frozen=True, slots=True)
class UsagePatterns:
    """A system's pattern of asking the large model.

    relative: 20 equal parts of each response, first to last. absolute: stretches of `width`
    tokens from the start. The tokens of either add up to all tokens, and what was asked to all
    that was asked. tokens: those that were sent at least once, the most often sent first; ties
    in the order of their ids. overlap: what was sent, beside what entropy would have sent.
    """

    relative: tuple[Bin, ...]
    absolute: tuple[Bin, ...]
    width: int
    tokens: tuple[RoutedToken, ...]
    overlap: EntropyOverlap

    def to_json(self, most_tokens: int) -> dict[str, Any]:
        """Return plain JSON values, with no more than `most_tokens` of the tokens."""
        return {
            "relative": [asdict(part) for part in self.relative],
            "absolute": [asdict(part) for part in self.absolute],
            "width": self.width,
            "tokens": [asdict(token) for token in self.tokens[:most_tokens]],
            "overlap": asdict(self.overlap),
        }


@dataclass(slots=True)
class PatternCounter:
    """Counts trace by trace; memory grows with the longest response and the vocabulary seen."""

    tokens_at: list[int] = field(default_factory=list)  # by absolute bin
    asked_at: list[int] = field(default_factory=list)
    tokens_along: list[int] = field(default_factory=lambda: [0] * RELATIVE_BINS)
    asked_along: list[int] = field(default_factory=lambda: [0] * RELATIVE_BINS)
    proposed: Counter[int] = field(default_factory=Counter)
    sent: Counter[int] = field(default_factory=Counter)
    replaced: Counter[int] = field(default_factory=Counter)
    entropies: OverlapCounter = field(default_factory=OverlapCounter)

    def add(self, columns: Columns) -> None:
        """Count one response."""
        count = len(columns.token_ids)
        if not count:
            return
        at_N = np.arange(count)
        asked_N = np.asarray(columns.asked)
        _add_bins(self.tokens_at, self.asked_at, at_N // WIDTH, asked_N)
        _add_bins(self.tokens_along, self.asked_along, at_N * RELATIVE_BINS // count, asked_N)
        proposals = columns.proposed_ids
        self.proposed.update(p for p in proposals if p is not None)
        self.sent.update(_chosen(proposals, columns.asked))
        self.replaced.update(_chosen(proposals, columns.replaced))
        self.entropies.add(columns)

    def patterns(self) -> UsagePatterns:
        """Return what was counted so far."""
        order = sorted(self.sent, key=lambda token: (-self.sent[token], token))
        return UsagePatterns(
            relative=_bins(self.tokens_along, self.asked_along),
            absolute=_bins(self.tokens_at, self.asked_at),
            width=WIDTH,
            tokens=tuple(
                RoutedToken(token, self.proposed[token], self.sent[token], self.replaced[token])
                for token in order
            ),
            overlap=self.entropies.overlap(),
        )


def _chosen(proposals: Sequence[int | None], chosen: Sequence[bool]) -> list[int]:
    return [
        p for p, is_chosen in zip(proposals, chosen, strict=True) if is_chosen and p is not None
    ]


def _add_bins(tokens: list[int], asked: list[int], bin_N: Any, asked_N: Any) -> None:
    """Add a response's counts by bin; both lists grow as far as the response goes."""
    counts = np.bincount(bin_N)
    sent = np.bincount(bin_N, weights=asked_N)
    for place, (count, hits) in enumerate(zip(counts.tolist(), sent.tolist(), strict=True)):
        if place == len(tokens):
            tokens.append(0)
            asked.append(0)
        tokens[place] += count
        asked[place] += int(hits)


def _bins(tokens: Sequence[int], asked: Sequence[int]) -> tuple[Bin, ...]:
    return tuple(Bin(count, hits) for count, hits in zip(tokens, asked, strict=True))
