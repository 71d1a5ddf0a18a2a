"""Positives where the small model is certain: as many as its certainty leads one to expect?

The rate of positives falls with the small model's doubt (one minus the probability of its token).
A logistic line in log-doubt is fitted where the model doubts, and read where it does not. What is
there beyond the line is a floor: positives that certainty does not make rarer, as random labels
are. Shapes: N positions, B bins of doubt, C problems, R resamples, K cuts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crossroads.diagnosis.resampling import Clusters
from crossroads.diagnosis.verdict import Estimate

BINS = 24
_CERTAIN = 0.5
"""Share of the positions, the most certain ones, that are compared with the line."""
_CUTS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Shares of the most certain positions in which a floor is looked for."""
_STEPS = 30
_SMALL = 1e-7  # doubt below it is rounding


@dataclass(frozen=True, slots=True)
class Binned:
    """Positions by doubt. rows_CB, hits_CB: positions and positives of each problem and bin."""

    bin_N: np.ndarray
    centre_B: np.ndarray
    rows_CB: np.ndarray
    hits_CB: np.ndarray


def binned(doubt_N: np.ndarray, positive_N: np.ndarray, clusters: Clusters) -> Binned:
    """Return positions in bins of equal size, ascending in doubt; centres are mean log-doubts."""
    x_N = np.log(np.maximum(doubt_N, _SMALL))
    edges = np.unique(np.quantile(x_N, np.linspace(0, 1, BINS + 1)[1:-1]))
    bin_N = np.searchsorted(edges, x_N, side="right")
    _, bin_N = np.unique(bin_N, return_inverse=True)  # ties may leave bins empty
    bins = int(bin_N.max()) + 1
    key_N = clusters.problem_N * bins + bin_N

    def sums(of_N: np.ndarray) -> np.ndarray:
        flat: np.ndarray = np.bincount(key_N, of_N, clusters.count * bins)
        return flat.reshape(clusters.count, bins)

    centre_B = np.bincount(bin_N, x_N, bins) / np.bincount(bin_N, minlength=bins)
    return Binned(bin_N, centre_B, sums(np.ones(len(x_N))), sums(positive_N.astype(float)))


@dataclass(frozen=True, slots=True)
class Tail:
    """The floor of positives.

    excess: positives among the certain positions beyond the line, as a share of all positives.
    strength: that over its standard error if there were no floor, in the cut where it is largest.
    The error of `excess` itself is larger, since a floor adds to it. floor: the excess as a share
    of the certain positions. certain_N: which positions are certain. expected_N: the line's rate
    of positives at every position. doubt_B, rate_B, line_B: for a plot.
    """

    excess: Estimate
    strength: float
    floor: float
    certain_N: np.ndarray
    expected_N: np.ndarray
    doubt_B: np.ndarray
    rate_B: np.ndarray
    line_B: np.ndarray


def certainty_tail(doubt_N: np.ndarray, positive_N: np.ndarray, clusters: Clusters) -> Tail:
    """Return the tail of positions with the small model's doubt and the positive class."""
    parts = binned(doubt_N, positive_N, clusters)
    below_B = np.cumsum(parts.rows_CB.sum(axis=0)) / len(doubt_N)
    cut_KB = np.array([below_B <= cut + 1e-9 for cut in _CUTS])
    certain_B = below_B <= _CERTAIN + 1e-9

    def counts(weight_C: np.ndarray) -> np.ndarray:
        """Return positives seen and expected in each cut, and all positives [K, 3]."""
        rows_B, hits_B = weight_C @ parts.rows_CB, weight_C @ parts.hits_CB
        line_B = _line(parts.centre_B, rows_B * ~certain_B, hits_B * ~certain_B)
        total_K = np.full(len(_CUTS), max(hits_B.sum(), 1.0))
        return np.stack([cut_KB @ hits_B, cut_KB @ (rows_B * line_B), total_K], axis=1)

    seen_K, expected_K, total_K = counts(np.ones(clusters.count)).T
    draws_RK3 = np.stack([counts(drawn) for drawn in clusters.draws().astype(float)])
    excess_RK = (draws_RK3[..., 0] - draws_RK3[..., 1]) / draws_RK3[..., 2]
    rows_B, hits_B = parts.rows_CB.sum(axis=0), parts.hits_CB.sum(axis=0)
    line_B = _line(parts.centre_B, rows_B * ~certain_B, hits_B * ~certain_B)
    spread_K = _overdispersion(parts) * expected_K + draws_RK3[..., 1].var(axis=0) + 1.0
    certain_N = certain_B[parts.bin_N]
    value = float((seen_K[-1] - expected_K[-1]) / total_K[-1])
    return Tail(
        excess=Estimate.of(value, excess_RK[:, -1]),
        strength=float(((seen_K - expected_K) / np.sqrt(spread_K)).max()),
        floor=max(value, 0.0) * float(hits_B.sum()) / max(float(certain_N.sum()), 1.0),
        certain_N=certain_N,
        expected_N=line_B[parts.bin_N],
        doubt_B=np.exp(parts.centre_B),
        rate_B=hits_B / np.maximum(rows_B, 1),
        line_B=line_B,
    )


def _overdispersion(parts: Binned) -> float:
    """Return by how much problems' positives vary more than Poisson counts, given doubt; >= 1."""
    rate_B = parts.hits_CB.sum(axis=0) / np.maximum(parts.rows_CB.sum(axis=0), 1)
    expected_C = np.maximum(parts.rows_CB @ rate_B, 1e-9)
    return max(1.0, float(((parts.hits_CB.sum(axis=1) - expected_C) ** 2 / expected_C).mean()))


def rates_apart(parts: Binned, own_C: np.ndarray) -> Estimate:
    """Return how many times as many positives some problems have as others of equal doubt, less 1.

    own_C: which problems, bool. Expected are the others' rates in each bin of doubt. The error is
    that of the problems' own sums around it, theirs and the others'.
    """
    rows_CB, hits_CB = parts.rows_CB, parts.hits_CB
    other_B = (hits_CB[~own_C].sum(axis=0) + 0.5) / (rows_CB[~own_C].sum(axis=0) + 1.0)
    residual_C = (hits_CB - rows_CB * other_B).sum(axis=1)
    expected = float((rows_CB[own_C] @ other_B).sum())
    value = float(residual_C[own_C].sum()) / expected
    own = _sum_variance(residual_C[own_C])
    # What is uncertain of the others' rates, seen on as many rows as the own problems have.
    scale = rows_CB[own_C].sum() / max(rows_CB[~own_C].sum(), 1.0)
    others = _sum_variance(residual_C[~own_C]) * scale**2
    return Estimate(value, error=float(np.sqrt(own + others)) / expected)


def _sum_variance(value_C: np.ndarray) -> float:
    """Return the variance of a sum of independent values."""
    return float(len(value_C) * value_C.var(ddof=1)) if len(value_C) > 1 else float("inf")


def _line(x_B: np.ndarray, rows_B: np.ndarray, hits_B: np.ndarray) -> np.ndarray:
    """Return the rates [B] of a logistic line through the bins that have rows.

    Iteratively reweighted least squares, with a slope of at least 0 and a faint prior that keeps
    it finite where the bins are separable.
    """
    design_B2 = np.stack([np.ones_like(x_B), x_B - x_B.mean()], axis=1)
    rate = (hits_B.sum() + 0.5) / (rows_B.sum() + 1)
    beta_2 = np.array([np.log(rate / (1 - rate)), 0.0])
    prior_22 = np.diag([1e-3, 1e-2])
    for _ in range(_STEPS):
        p_B = 1 / (1 + np.exp(-np.clip(design_B2 @ beta_2, -30, 30)))
        gradient_2 = design_B2.T @ (hits_B - rows_B * p_B) - prior_22 @ beta_2
        weight_B = rows_B * p_B * (1 - p_B)
        curvature_22 = design_B2.T @ (weight_B[:, None] * design_B2) + prior_22
        step_2 = np.clip(np.linalg.solve(curvature_22, gradient_2), -2, 2)
        beta_2 = beta_2 + step_2
        if np.abs(step_2).max() < 1e-8:
            break
    beta_2[1] = max(beta_2[1], 0.0)
    rates: np.ndarray = 1 / (1 + np.exp(-np.clip(design_B2 @ beta_2, -30, 30)))
    return rates
