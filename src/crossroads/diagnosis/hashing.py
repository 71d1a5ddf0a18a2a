"""Fingerprints of rows and of runs of tokens, to find the same thing twice.

Shapes: T rows, B bytes of a row, R responses, G grams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

GRAM = 8
"""Tokens of a run that are compared."""
_MOST_SHARED = 12
"""Responses beyond which a gram is boilerplate and tells nothing about copies."""
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def hash_rows(*columns: np.ndarray) -> np.ndarray:
    """Return a 64-bit hash of each row [T] over the bytes of all columns [T, *].

    Polynomial over 32-bit words, then the finaliser of SplitMix64 (Steele et al. 2014).
    """
    hash_T = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        words_TW = _words(np.ascontiguousarray(column))
        for word_T in words_TW.T:
            hash_T = (hash_T ^ word_T.astype(np.uint64)) * _MULTIPLIER
            hash_T ^= hash_T >> np.uint64(29)
    return _mix(hash_T)


def _words(column: np.ndarray) -> np.ndarray:
    """Return the bytes of each row as 32-bit words [T, W], zero-padded."""
    bytes_TB = column.reshape(len(column), -1).view(np.uint8)
    missing = -bytes_TB.shape[1] % 4
    padded = np.pad(bytes_TB, ((0, 0), (0, missing)))
    words: np.ndarray = np.ascontiguousarray(padded).view(np.uint32)
    return words


def _mix(hash_T: np.ndarray) -> np.ndarray:
    for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        hash_T = (hash_T ^ (hash_T >> np.uint64(shift))) * np.uint64(multiplier)
    mixed: np.ndarray = hash_T ^ (hash_T >> np.uint64(31))
    return mixed


def grams(token_T: np.ndarray, length: int = GRAM) -> np.ndarray:
    """Return the hashes of all runs of `length` tokens, each once; short texts are one run."""
    if len(token_T) < length:
        return hash_rows(token_T[None].astype(np.int32)) if len(token_T) else np.zeros(0, np.uint64)
    runs = np.lib.stride_tricks.sliding_window_view(token_T.astype(np.int32), length)
    unique: np.ndarray = np.unique(hash_rows(runs))
    return unique


@dataclass(frozen=True, slots=True)
class Copy:
    """Two responses, and what share of the shorter one's runs the other one has as well."""

    first: int
    second: int
    share: float


def copies(responses: Sequence[np.ndarray], at_least: float = 0.5) -> list[Copy]:
    """Return the pairs of token sequences that share at least that much.

    Runs that more than _MOST_SHARED responses have are boilerplate and do not count, unless whole
    responses are equal.
    """
    grams_R = [grams(tokens) for tokens in responses]
    shared = _shared_counts(grams_R)
    found: dict[tuple[int, int], float] = {}
    for (first, second), count in shared.items():
        shorter = min(len(grams_R[first]), len(grams_R[second]))
        if shorter and count / shorter >= at_least:
            found[first, second] = count / shorter
    for first, second in _equal(responses):
        found[first, second] = 1.0
    return [Copy(first, second, share) for (first, second), share in sorted(found.items())]


def _shared_counts(grams_R: Sequence[np.ndarray]) -> dict[tuple[int, int], int]:
    """Return how many runs each pair of responses shares, for pairs that share any."""
    if not grams_R:
        return {}
    gram_G = np.concatenate(grams_R)
    owner_G = np.repeat(np.arange(len(grams_R)), [len(own) for own in grams_R])
    order = np.argsort(gram_G, kind="stable")
    gram_G, owner_G = gram_G[order], owner_G[order]
    edges = np.flatnonzero(np.diff(gram_G)) + 1
    starts = np.concatenate([[0], edges])
    ends = np.concatenate([edges, [len(gram_G)]])
    counts: dict[tuple[int, int], int] = {}
    repeated = np.flatnonzero((ends - starts > 1) & (ends - starts <= _MOST_SHARED))
    for at in repeated:
        owners = owner_G[starts[at] : ends[at]].tolist()  # ascending, each once
        for place, first in enumerate(owners):
            for second in owners[place + 1 :]:
                counts[first, second] = counts.get((first, second), 0) + 1
    return counts


def _equal(responses: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Return each response that repeats an earlier one, with the first of its kind."""
    first_of: dict[bytes, int] = {}
    pairs = []
    for number, tokens in enumerate(responses):
        key = tokens.astype(np.int32).tobytes()
        first = first_of.setdefault(key, number)
        if first != number:
            pairs.append((first, number))
    return pairs
