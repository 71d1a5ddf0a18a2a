"""Divergent = a token that the large model itself finds implausible there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crossroads.errors import ConfigError
from crossroads.labelling.judges.base import Mismatch, Verdict


@dataclass(frozen=True, slots=True)
class LikelihoodJudge:
    """Divergent if p_large(small token) < ratio * p_large(its likeliest token).

    The cheapest judge: the comparison pass already holds both numbers. It needs no continuation
    and cannot see that two wordings mean the same: it calls a surprising synonym divergent.
    """

    ratio: float = 0.1
    name: str = "likelihood"

    def __post_init__(self) -> None:
        """Refuse a ratio outside (0, 1].

        Raises:
            ConfigError: the ratio is out of range.
        """
        if not 0 < self.ratio <= 1:
            raise ConfigError(f"the likelihood judge's ratio must be in (0, 1], got {self.ratio}")

    @property
    def settings(self) -> Mapping[str, Any]:
        """The ratio."""
        return {"ratio": self.ratio}

    def judge(self, mismatches: Sequence[Mismatch]) -> list[Verdict]:
        """Return one verdict per mismatch."""
        bound = math.log(self.ratio)
        return [_verdict(m, bound) for m in mismatches]


def _verdict(mismatch: Mismatch, bound: float) -> Verdict:
    gap = mismatch.logprob_small - mismatch.logprob_best
    if not math.isfinite(gap):
        return Verdict(None, f"log-probability is {mismatch.logprob_small}")
    return Verdict(gap < bound)
