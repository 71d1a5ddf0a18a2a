"""Base rates: what share of the judged positions has which label."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crossroads.dataset import UNJUDGED, Labels, ResponseRow
from crossroads.types import Label

R2R_BASE_RATES: Mapping[str, float] = {"identical": 0.89, "neutral": 0.06, "divergent": 0.05}
"""What R2R reports of its own data (arXiv 2505.21600): for a reader to compare with."""


@dataclass(frozen=True, slots=True)
class BaseRates:
    """Counts of some positions, and the shares of each label among the judged ones."""

    positions: int
    unjudged: int
    identical: float
    neutral: float
    divergent: float

    @classmethod
    def of(cls, label_N: Tensor) -> BaseRates:
        """Return the rates of labels, values of types.Label or UNJUDGED."""
        judged = int((label_N != UNJUDGED).sum())
        shares = {
            kind.name.lower(): float((label_N == kind).sum()) / max(judged, 1) for kind in Label
        }
        return cls(len(label_N), len(label_N) - judged, **shares)


def base_rates(responses: Sequence[ResponseRow], labels: Labels) -> dict[str, BaseRates]:
    """Return the rates of all responses, and of each `domain X` and `split Y`."""
    parts: dict[str, list[Tensor]] = defaultdict(list)
    for row in responses:
        label_N = labels.of(row).label_N
        for group in ("all", f"split {row.split}", f"domain {row.domain}"):
            parts[group].append(label_N)
    return {name: BaseRates.of(torch.cat(parts[name])) for name in sorted(parts)}
