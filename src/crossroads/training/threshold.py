"""Exact thresholds: taken from the calibration scores themselves, never from a grid.

Every function works on the scores' own values, so ties are all sent or all kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crossroads.errors import ConfigError, DataError
from crossroads.routing.policy import sends_to_large

NEVER = 1.5
"""A threshold that no score reaches."""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """What a threshold does on a set of scored tokens. `positives` are the divergent ones."""

    threshold: float
    recall: float
    positive_rate: float
    positives: int
    tokens: int


def operating_point(scores: np.ndarray, divergent: np.ndarray, threshold: float) -> OperatingPoint:
    """Return recall and positive_rate of a threshold. Recall is 0 where nothing is divergent."""
    sent = sends_to_large(scores, threshold)
    positives = int(divergent.sum())
    caught = int((sent & divergent).sum())
    return OperatingPoint(
        threshold=float(threshold),
        recall=caught / positives if positives else 0.0,
        positive_rate=float(sent.mean()),
        positives=positives,
        tokens=len(scores),
    )


def threshold_for_recall(scores: np.ndarray, divergent: np.ndarray, min_recall: float) -> float:
    """Return the highest threshold that still sends `min_recall` of the divergent tokens on.

    A token is sent to the large model when `score >= threshold`; highest means fewest calls.

    Raises:
        ConfigError: min_recall is outside (0, 1]. DataError: no token is divergent.
    """
    if not 0 < min_recall <= 1:
        raise ConfigError(f"the recall target must be in (0, 1], got {min_recall}")
    _check_scores(scores)
    positive_scores = np.sort(scores[divergent.astype(bool)])[::-1]
    if not len(positive_scores):
        raise DataError("no token is divergent, so no threshold can be chosen; label more problems")
    # 1e-9 forgives the rounding of e.g. 0.95 * 20, which must ask for 19 tokens and not for 20.
    needed = int(np.ceil(min_recall * len(positive_scores) - 1e-9))
    return float(positive_scores[max(needed, 1) - 1])


def threshold_for_positive_rate(scores: np.ndarray, max_positive_rate: float) -> float:
    """Return the lowest threshold that sends at most `max_positive_rate` of the tokens on.

    Raises:
        ConfigError: the budget is outside [0, 1].
    """
    if not 0 <= max_positive_rate <= 1:
        raise ConfigError(f"the positive_rate budget must be in [0, 1], got {max_positive_rate}")
    _check_scores(scores)
    values, counts = np.unique(scores, return_counts=True)
    sent_from = counts[::-1].cumsum()[::-1]
    allowed = values[sent_from <= max_positive_rate * len(scores) + 1e-9]
    return float(allowed[0]) if len(allowed) else NEVER


def _check_scores(scores: np.ndarray) -> None:
    if not len(scores):
        raise DataError("there are no scores to choose a threshold from")
    if not np.isfinite(scores).all():
        raise DataError(f"{int((~np.isfinite(scores)).sum())} scores are not finite numbers")
