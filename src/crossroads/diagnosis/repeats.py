"""Which positions are there twice, in another split or in their own.

Shapes: N positions, R responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crossroads.diagnosis.hashing import Copy, copies
from crossroads.diagnosis.tokens import SPLITS, Tokens
from crossroads.types import Split

_WHOLE = 0.9
"""Share of common runs from which one response is a copy of another within a split."""


@dataclass(frozen=True, slots=True)
class Repeats:
    """What is there twice.

    leaked_N: held-out positions that another split has as well. repeated_N: positions whose split
    had the same before. across: pairs of responses in two splits.
    """

    leaked_N: np.ndarray
    repeated_N: np.ndarray
    across: Sequence[Copy]


def find_repeats(tokens: Tokens) -> Repeats:
    """Return the judged positions that are there twice, as text or bit by bit as outputs."""
    texts = [
        tokens.real_N[start:end]
        for start, end in zip(tokens.start_R[:-1], tokens.start_R[1:], strict=True)
    ]
    split_R = np.array([SPLITS.index(row.split) for row in tokens.responses])
    pairs = copies(texts)
    across = [pair for pair in pairs if split_R[pair.first] != split_R[pair.second]]
    leaked_R, repeated_R = np.zeros(len(texts), bool), np.zeros(len(texts), bool)
    for pair in across:
        leaked_R[_held_out(pair, split_R)] = True
    for pair in pairs:
        if split_R[pair.first] == split_R[pair.second] and pair.share >= _WHOLE:
            repeated_R[pair.second] = True
    judged_N = tokens.judged_N
    return Repeats(
        judged_N & (leaked_R[tokens.response_N] | _outputs_elsewhere(tokens)),
        judged_N & (repeated_R[tokens.response_N] | _outputs_before(tokens)),
        across,
    )


def _held_out(pair: Copy, split_R: np.ndarray) -> list[int]:
    train = SPLITS.index(Split.TRAIN)
    return [number for number in (pair.first, pair.second) if split_R[number] != train]


def _outputs_elsewhere(tokens: Tokens) -> np.ndarray:
    """Return held-out positions whose outputs, bit by bit, are in another split too."""
    leaked_N = np.zeros(len(tokens), bool)
    for number, split in enumerate(SPLITS):
        if split is not Split.TRAIN:
            own_N = tokens.split_N == number
            leaked_N[own_N] = np.isin(tokens.output_N[own_N], tokens.output_N[~own_N])
    return leaked_N


def _outputs_before(tokens: Tokens) -> np.ndarray:
    """Return positions whose outputs, bit by bit, stand earlier in the same split."""
    repeated_N = np.ones(len(tokens), bool)
    for number in range(len(SPLITS)):
        own = np.flatnonzero(tokens.split_N == number)
        _, first = np.unique(tokens.output_N[own], return_index=True)
        repeated_N[own[first]] = False
    return repeated_N
