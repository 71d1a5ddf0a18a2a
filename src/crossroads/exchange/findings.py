"""What one check of the audit finds in one sequence, and checks that both formats share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Finding:
    """What one check found in one sequence; `got` and `expected` describe a wrong row."""

    wrong_T: np.ndarray
    checked: int
    got: Callable[[int], object]
    expected: Callable[[int], object]


def counts_on(index_T: np.ndarray) -> Finding:
    """Find where an index does not count on by one."""
    wrong_T = np.zeros(len(index_T), bool)
    wrong_T[1:] = np.diff(index_T) != 1
    return Finding(
        wrong_T,
        max(len(index_T) - 1, 0),
        lambda row: int(index_T[row]),
        lambda row: int(index_T[row - 1]) + 1,
    )


def descending(values_TK: np.ndarray, usable_T: np.ndarray) -> Finding:
    """Find where values [T, K] rise, among the usable rows."""
    rises_TK = values_TK[:, 1:] > values_TK[:, :-1]

    def at(row: int) -> int:
        return int(np.flatnonzero(rises_TK[row])[0])

    return Finding(
        usable_T & rises_TK.any(axis=1),
        int(usable_T.sum()),
        lambda row: f"{values_TK[row, at(row) + 1]:g} after {values_TK[row, at(row)]:g}",
        lambda _: "a descending list",
    )


def nothing(length: int) -> Finding:
    """Return the finding of a check that does not apply."""
    never: Callable[[int], Any] = str
    return Finding(np.zeros(length, bool), 0, never, never)
