"""Hidden states and distributions of a bounded sample, and linear probes of them.

Shapes: n sampled positions, H hidden size, D probe width, L lags.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crossroads.diagnosis.tokens import Data

MOST_SAMPLED = 20_000
_MOST_WIDTH = 512
"""Wider hidden states are projected at random: distances survive (Johnson and Lindenstrauss)."""
_RIDGE = 0.01
_FOLDS = 2


@dataclass(frozen=True, slots=True)
class Wide:
    """Whole responses' hidden states and top log-probabilities.

    at_n: which of the data's positions these are. hidden_nH, logprob_nK: float32.
    """

    at_n: np.ndarray
    hidden_nH: np.ndarray
    logprob_nK: np.ndarray


def wide_sample(data: Data, most: int = MOST_SAMPLED) -> Wide:
    """Return whole responses, evenly spread over the data, of at most about `most` positions."""
    tokens = data.tokens
    responses = len(tokens.responses)
    wanted = max(2, int(responses * min(1.0, most / max(len(tokens), 1))))
    chosen = set(np.linspace(0, responses - 1, wanted).round().astype(int).tolist())
    at, hidden, logprobs = [], [], []
    for number, _, comparison, _ in data.comparisons("looks at hidden states", chosen):
        step = comparison.step
        assert step.hidden_NH is not None  # a stored comparison has them
        at.append(np.arange(tokens.start_R[number], tokens.start_R[number + 1]))
        hidden.append(step.hidden_NH.float().numpy())
        logprobs.append((step.top_logits_NK - step.logsumexp_N[:, None]).float().numpy())
    return Wide(np.concatenate(at), np.concatenate(hidden), np.concatenate(logprobs))


def narrowed(hidden_nH: np.ndarray) -> np.ndarray:
    """Return standardised hidden states [n, D], projected if they are very wide."""
    deviation_H = hidden_nH.std(axis=0)
    scale_H = np.where(deviation_H > 1e-6, deviation_H, 1.0)
    value_nH: np.ndarray = (hidden_nH - hidden_nH.mean(axis=0)) / scale_H
    if value_nH.shape[1] <= _MOST_WIDTH:
        return value_nH
    generator = np.random.default_rng(0)
    onto_HD = generator.standard_normal((value_nH.shape[1], _MOST_WIDTH)) / _MOST_WIDTH**0.5
    projected: np.ndarray = value_nH @ onto_HD.astype(np.float32)
    return projected


def cross_predicted(value_nD: np.ndarray, target_n: np.ndarray, group_n: np.ndarray) -> np.ndarray:
    """Return ridge regression's predictions [n] of a target, each from the other groups' rows."""
    groups = np.unique(group_n)
    fold_of = np.random.default_rng(0).permutation(len(groups)) % _FOLDS
    fold_n = fold_of[np.searchsorted(groups, group_n)]
    predicted_n = np.zeros(len(target_n))
    for fold in range(_FOLDS):
        there, here = fold_n != fold, fold_n == fold
        if not there.any() or not here.any():
            continue
        mean = target_n[there].mean()
        mean_D = value_nD[there].mean(axis=0)
        centred_nD = (value_nD[there] - mean_D).astype(np.float64)
        gram_DD = centred_nD.T @ centred_nD
        gram_DD[np.diag_indices_from(gram_DD)] += _RIDGE * len(centred_nD)
        weight_D = np.linalg.solve(gram_DD, centred_nD.T @ (target_n[there] - mean))
        predicted_n[here] = mean + (value_nD[here] - mean_D) @ weight_D
    return predicted_n
