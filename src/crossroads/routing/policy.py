"""From scores to decisions. The rule of the whole project stands in `sends_to_large` alone.

A policy may look at more than one score: those with hysteresis keep asking the large model for a
while once a score reached the threshold. Each row has a state of its own, an immutable value, so
that a row that is cut back takes its earlier state again: None or a tuple of numbers, so that it
can travel to where a row is decided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar

import numpy as np
from torch import Tensor

from crossroads.errors import RequestError
from crossroads.names import nearest

Scores = TypeVar("Scores", float, np.ndarray, Tensor)


def sends_to_large(score: Scores, threshold: float) -> Scores:
    """Return whether a token goes to the large model: element-wise for arrays.

    Scores lie in [0, 1], so threshold 0 sends every token and a threshold above 1 sends none.
    """
    return score >= threshold


def check_threshold(threshold: float) -> float:
    """Return the threshold as a float.

    Raises:
        RequestError: it is not a finite number, or negative.
    """
    if (
        isinstance(threshold, bool)
        or not isinstance(threshold, int | float)
        or not math.isfinite(threshold)
        or threshold < 0
    ):
        raise RequestError(
            f"threshold must be a number >= 0 (0 = large model alone, above 1 = small model "
            f"alone), got {threshold!r}"
        )
    return float(threshold)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a token goes to the large model, and the row's state after it."""

    to_large: bool
    state: Any


class Policy(Protocol):
    """How a row's scores become decisions."""

    def start(self) -> Any:
        """Return the state of a row before its first token."""

    def decide(self, state: Any, score: float, threshold: float) -> Decision:
        """Return the decision on the next token; `state` is not changed."""


def decide(policy: Policy, state: Any, score: float, threshold: float) -> Decision:
    """Return the policy's decision, except at the ends of the threshold.

    At 0 every token is the large model's and above 1 none is, whatever the policy remembers:
    otherwise one with hysteresis would have no end at which it is one model alone.
    """
    if threshold <= 0 or threshold > 1:
        return Decision(bool(sends_to_large(score, threshold)), state)
    return policy.decide(state, score, threshold)


@dataclass(frozen=True, slots=True)
class Immediate:
    """Each score by itself: R2R's neural strategy (arXiv 2505.21600)."""

    def start(self) -> None:
        """Return nothing: there is no state."""

    def decide(self, state: None, score: float, threshold: float) -> Decision:
        """Return whether the score reaches the threshold."""
        return Decision(bool(sends_to_large(score, threshold)), state)


@dataclass(frozen=True, slots=True)
class Momentum:
    """A running mean of ease with two bounds, as R2R's momentum strategy.

    ease <- factor * ease + (1 - factor) * [score below the threshold]. The small model writes on
    until the ease is at most `to_large`, the large model until it is above `to_small`. Rows begin
    at ease 1 with the small model, where R2R's begin at 0 with the large one.
    """

    factor: float = 0.7
    to_large: float = 0.3
    to_small: float = 0.7

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            RequestError: names the setting.
        """
        for name in ("factor", "to_large", "to_small"):
            _check_share(f"momentum's {name}", getattr(self, name))
        if self.to_large > self.to_small:
            raise RequestError(
                f"momentum's to_large ({self.to_large}) must not be above its to_small "
                f"({self.to_small}), or a row would change sides with every token"
            )

    def start(self) -> tuple[float, bool]:
        """Return full ease, and that the large model does not write."""
        return (1.0, False)

    def decide(self, state: tuple[float, bool], score: float, threshold: float) -> Decision:
        """Return the side on which the ease leaves the row."""
        ease, large = state
        easy = not sends_to_large(score, threshold)
        ease = self.factor * ease + (1 - self.factor) * easy
        large = ease <= (self.to_small if large else self.to_large)
        return Decision(large, (ease, large))


@dataclass(frozen=True, slots=True)
class RollingWindow:
    """Over to the large model at once, back when the mean of its last scores is low, as in R2R.

    `size` scores at most are in the mean: those since the large model took over.
    """

    size: int = 3

    def __post_init__(self) -> None:
        """Refuse an empty window.

        Raises:
            RequestError: says what we got.
        """
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise RequestError(f"rolling's size must be a whole number >= 1, got {self.size!r}")

    def start(self) -> tuple[float, ...]:
        """Return no scores: the small model writes."""
        return ()

    def decide(self, state: tuple[float, ...], score: float, threshold: float) -> Decision:
        """Return whether the score, or the window's mean while there is one, is high."""
        window = (*state, score)[-self.size :]
        large = bool(sends_to_large(sum(window) / len(window), threshold))
        return Decision(large, window if large else ())


IMMEDIATE = Immediate()
POLICIES: Mapping[str, Callable[..., Policy]] = {
    "immediate": Immediate,
    "momentum": Momentum,
    "rolling": RollingWindow,
}


def policy_by_name(text: str) -> Policy:
    """Return the policy that `NAME` or `NAME:KEY=VALUE,...` names.

    Raises:
        RequestError: an unknown name or setting, or a value out of range.
    """
    name, _, settings = text.partition(":")
    if name not in POLICIES:
        raise RequestError(f"unknown policy {name!r}; {nearest(name, POLICIES)}")
    pairs = [setting.partition("=") for setting in settings.split(",") if setting]
    try:
        values = {key.strip(): _number(value) for key, _, value in pairs}
        return POLICIES[name](**values)
    except (TypeError, ValueError) as error:
        raise RequestError(
            f"cannot read the policy {text!r} ({error}); write {name} or {name}:KEY=NUMBER,..."
        ) from error


def policy_text(policy: Policy) -> str:
    """Return the text from which `policy_by_name` makes this policy.

    Raises:
        RequestError: it is none of ours.
    """
    names = [name for name, kind in POLICIES.items() if type(policy) is kind]
    if not names:
        raise RequestError(
            f"a {type(policy).__name__} has no name under which another process knows it; take one "
            f"of {', '.join(POLICIES)}"
        )
    values = {field.name: getattr(policy, field.name) for field in fields(policy)}  # type: ignore[arg-type]
    settings = ",".join(f"{key}={value!r}" for key, value in values.items())
    return f"{names[0]}:{settings}" if settings else names[0]


def _number(text: str) -> float:
    value = float(text)
    return int(value) if value.is_integer() else value


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise RequestError(f"{name} must be in [0, 1], got {value}")
