"""What a diagnosis says of one candidate cause, and how sure an amount is.

A share is called points where it is a difference of positive_rates; it is stored as a share
(0.01 is one percentage point) and only shown in percent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from crossroads.diagnosis.plots import Plot
from crossroads.statistics import Interval


class Status(StrEnum):
    """What the evidence says of a cause."""

    FOUND = "found"
    RULED_OUT = "ruled out"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value, its 95 % interval and its standard error; both None where nothing gives them."""

    value: float
    interval: Interval | None = None
    error: float | None = None

    @classmethod
    def of(cls, value: float, draws_R: np.ndarray) -> Estimate:
        """Return the estimate whose bootstrap gave `draws_R`.

        The interval is the percentile one, widened where needed to hold the value itself.
        """
        drawn_R = draws_R[np.isfinite(draws_R)]
        if len(drawn_R) < 2:
            return cls(value)
        low, high = np.quantile(drawn_R, [0.025, 0.975])
        interval = Interval(min(float(low), value), max(float(high), value))
        return cls(value, interval, float(drawn_R.std(ddof=1)))

    @property
    def z(self) -> float:
        """The value over its standard error: 0 without one, infinite if the error is 0."""
        if self.error is None or self.value == 0:
            return 0.0
        return self.value / self.error if self.error > 0 else math.copysign(math.inf, self.value)

    def __neg__(self) -> Estimate:
        """Return the estimate of the negated quantity."""
        turned = (
            None if self.interval is None else Interval(-self.interval.high, -self.interval.low)
        )
        return Estimate(-self.value, turned, self.error)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        interval = self.interval
        return {
            "value": self.value,
            "interval": None if interval is None else {"low": interval.low, "high": interval.high},
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """One cause's verdict.

    points: what the cause adds to positive_rate at the recall that is asked about, here; negative
    where it makes the number look better than it is. evidence: sentences with the numbers that the
    status rests on. needs: what would settle it, where it is not settled. facts: the same numbers,
    for programs.
    """

    name: str
    status: Status
    evidence: str
    points: Estimate | None = None
    needs: str = ""
    plot: Plot | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "name": self.name,
            "status": self.status.value,
            "points": None if self.points is None else self.points.to_json(),
            "evidence": self.evidence,
            "needs": self.needs,
            "facts": plain(self.facts),
        }


def plain(value: Any) -> Any:  # noqa: PLR0911  a return per kind of value
    """Return JSON values: numpy numbers as Python's, what is not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Estimate):
        return plain(value.to_json())
    if isinstance(value, Interval):
        return {"low": plain(value.low), "high": plain(value.high)}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def percent(share: float, digits: int = 1) -> str:
    """Return a share in percent, for running text: `31.8 %`."""
    return f"{100 * share:.{digits}f} %"


def percent_interval(estimate: Estimate, digits: int = 1) -> str:
    """Return a share in percent with its interval: `31.8 % [29.9, 33.6]`."""
    return f"{percent(estimate.value, digits)}{_bracket(estimate, f'.{digits}f')}"


def points_text(estimate: Estimate | None) -> str:
    """Return percentage points with their interval: `+4.2 [+3.1, +5.3]`; a dash without any."""
    if estimate is None:
        return "\u2013"
    return f"{100 * estimate.value:+.1f}{_bracket(estimate, '+.1f')}"


def _bracket(estimate: Estimate, form: str) -> str:
    if estimate.interval is None:
        return ""
    low, high = 100 * estimate.interval.low, 100 * estimate.interval.high
    return f" [{low:{form}}, {high:{form}}]"
