"""Divergent = a token that the large model itself finds implausible there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from crossroads.errors import ConfigError
from crossroads.labelling.judges.base import Judgement, Verdict
from crossroads.labelling.records import Case, Mismatch


@dataclass(frozen=True, slots=True)
class LikelihoodJudge:
    """Divergent if p_large(small token) < ratio * p_large(its likeliest token).

    The cheapest judge: the comparison pass already holds both numbers. It needs no continuation
    and cannot see that two wordings mean the same: it calls a surprising synonym divergent.
    The ratio of the two probabilities is no probability of divergence, so it stores none.
    """

    ratio: float = 0.1
    name: str = "likelihood"
    needs_continuations: bool = False

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

    def judge(self, cases: Iterable[Case]) -> Iterator[Judgement]:
        """Yield one judgement per case."""
        bound = math.log(self.ratio)
        for case in cases:
            yield Judgement(case.id, _verdict(case.mismatch, bound))


def _verdict(mismatch: Mismatch, bound: float) -> Verdict:
    gap = mismatch.logprob_small - mismatch.logprob_best
    if not math.isfinite(gap):
        return Verdict(None, None, f"log-probability is {mismatch.logprob_small}")
    return Verdict(gap < bound, None, f"{math.exp(gap):.3g} of the likeliest token's probability")
