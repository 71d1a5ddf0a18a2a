"""From a score to a decision. The rule of the whole project stands in `sends_to_large` alone."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
from torch import Tensor

from crossroads.errors import RequestError

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
    if not math.isfinite(threshold) or threshold < 0:
        raise RequestError(
            f"threshold must be a number >= 0 (0 = large model alone, above 1 = small model "
            f"alone), got {threshold}"
        )
    return float(threshold)
