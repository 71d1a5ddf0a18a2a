"""What a threshold is chosen for, and the choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crossroads.errors import ConfigError, DataError
from crossroads.names import nearest
from crossroads.training.threshold import (
    CLUSTERED,
    NEVER,
    check_costs,
    check_guarantee,
    check_recall,
    guaranteed_threshold,
    positive_scores,
    threshold_for_cost,
    threshold_for_f1,
    threshold_for_positive_rate,
    threshold_for_recall,
)

FORMS: Mapping[str, str] = {
    "recall": "recall=0.95",
    "positive_rate": "positive_rate=0.124",
    "f1": "f1",
    "cost": "cost=miss:10,call:1",
    "guarantee": "guarantee=0.95,confidence=0.95,method=cluster-bootstrap",
}


@dataclass(frozen=True, slots=True)
class Target:
    """What a threshold is chosen for; `str` and `parse` are inverse.

    value: the recall of `recall` and `guarantee`, the budget of `positive_rate`.
    """

    kind: str
    value: float = 0.0
    confidence: float = 0.95
    method: str = CLUSTERED
    miss_cost: float = 1.0
    call_cost: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an unknown kind and values out of range.

        Raises:
            ConfigError: says which.
        """
        if self.kind not in FORMS:
            raise ConfigError(f"unknown target {self.kind!r}; {nearest(self.kind, FORMS)}")
        if self.kind in ("recall", "guarantee"):
            check_recall(self.value)
        if self.kind == "positive_rate" and not 0 < self.value <= 1:
            raise ConfigError(f"the positive_rate budget must be in (0, 1], got {self.value}")
        if self.kind == "cost":
            check_costs(self.miss_cost, self.call_cost)
        check_guarantee(self.confidence, self.method)

    @classmethod
    def parse(cls, text: str) -> Target:
        """Return the target that a text such as one of FORMS names.

        Raises:
            ConfigError: it names none; says what the form is.
        """
        kind, equals, rest = text.strip().partition("=")
        if kind not in FORMS:
            raise ConfigError(f"unknown target {kind!r}; {nearest(kind, FORMS)}")
        if bool(equals) == (kind == "f1"):
            raise _malformed(text, kind)
        if kind == "f1":
            return cls(kind)
        if kind == "cost":
            costs = _pairs(rest.split(","), ":", ("miss", "call"), text, kind)
            if len(costs) < 2:
                raise _malformed(text, kind)
            miss, call = (_number(costs[name], text, kind) for name in ("miss", "call"))
            return cls(kind, miss_cost=miss, call_cost=call)
        first, *more = rest.split(",")
        allowed = ("confidence", "method") if kind == "guarantee" else ()
        given = _pairs(more, "=", allowed, text, kind)
        return cls(
            kind,
            _number(first, text, kind),
            confidence=_number(given.get("confidence", "0.95"), text, kind),
            method=given.get("method", CLUSTERED),
        )

    @property
    def words(self) -> str:
        """The target for running text."""
        share, confidence = (f"{100 * x:g} %" for x in (self.value, self.confidence))
        return {
            "recall": f"{share} recall",
            "positive_rate": f"a positive_rate of at most {share}",
            "f1": "the best F1",
            "cost": f"the least cost (a miss {self.miss_cost:g}, a call {self.call_cost:g})",
            "guarantee": f"{share} recall, guaranteed with {confidence} confidence",
        }[self.kind]

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        if self.kind == "f1":
            return "f1"
        if self.kind == "cost":
            return f"cost=miss:{_plain(self.miss_cost)},call:{_plain(self.call_cost)}"
        text = f"{self.kind}={_plain(self.value)}"
        if self.kind == "guarantee":
            text += f",confidence={_plain(self.confidence)},method={self.method}"
        return text


def choose_threshold(
    target: Target, scores: np.ndarray, positive: np.ndarray, problem: np.ndarray, seed: int
) -> float:
    """Return the threshold that meets a target on these tokens.

    Raises:
        DataError: no token is divergent, or no threshold meets the target.
    """
    if target.kind == "f1":
        return threshold_for_f1(scores, positive)
    if target.kind == "cost":
        return threshold_for_cost(scores, positive, target.miss_cost, target.call_cost)
    if target.kind == "recall":
        return threshold_for_recall(scores, positive, target.value)
    if target.kind == "guarantee":
        return guaranteed_threshold(
            scores, positive, problem, target.value, target.confidence, target.method, seed
        )
    positive_scores(scores, positive)
    threshold = threshold_for_positive_rate(scores, target.value)
    if threshold == NEVER:
        share = float((scores == scores.max()).mean())
        raise DataError(
            f"no threshold sends at most {100 * target.value:g} % of the tokens: "
            f"{100 * share:.3g} % share the highest score and go together; allow more"
        )
    return threshold


def _pairs(
    parts: Sequence[str], sign: str, allowed: Sequence[str], text: str, kind: str
) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in parts:
        name, there, value = part.strip().partition(sign)
        if not there or name not in allowed or name in found:
            raise _malformed(text, kind)
        found[name] = value.strip()
    return found


def _number(text: str, whole: str, kind: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise _malformed(whole, kind) from error


def _malformed(text: str, kind: str) -> ConfigError:
    return ConfigError(f"the target {text!r} cannot be read; write it as {FORMS[kind]}")


def _plain(number: float) -> str:
    return repr(float(number)).removesuffix(".0")
