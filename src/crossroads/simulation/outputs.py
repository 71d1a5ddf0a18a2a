"""What the two models of a simulated world put out, so that every law of a comparison holds.

Shapes: N positions of a problem, n of some of them, K top entries, V vocabulary.
"""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import torch
from torch import Tensor

from crossroads.dataset import Comparison, LargeOutputs
from crossroads.models.base import StepOutput
from crossroads.routing.features import TOP_K
from crossroads.types import Label

PROMPT_TOKENS = 20
LARGE_TOP_K = 20
MOST_OTHERS = 0.8
"""Above this share of other tokens the best would not be the best any more."""
FEWEST_OTHERS = 1e-6
"""A smaller share of other tokens is lost beside a log-sum in single precision."""
_RATIO = 0.8  # each further token of the tail is that much less likely than the one before


def distribution(x_N: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return top log-probabilities [N, K] and entropy [N] of best token and geometric tail."""
    others_N = np.clip(sigmoid(x_N), FEWEST_OTHERS, MOST_OTHERS)
    log_tail_V = np.log(_RATIO) * np.arange(vocab_size - 1)
    log_tail_V -= np.log(np.exp(log_tail_V).sum())
    tail_entropy = -(np.exp(log_tail_V) * log_tail_V).sum()
    best_N = np.log1p(-others_N)
    tail_NK = np.log(others_N)[:, None] + log_tail_V[: TOP_K - 1]
    entropy_N = -(1 - others_N) * best_N - others_N * np.log(others_N) + others_N * tail_entropy
    return np.concatenate([best_N[:, None], tail_NK], axis=1), entropy_N


def compared(step: StepOutput, label_N: np.ndarray, generator: np.random.Generator) -> Comparison:
    """Return the comparison that goes with labels: a mismatch has the second token in the text.

    The large model writes the text, and finds a divergent token implausible.
    """
    draw_N = generator.random(len(label_N))
    small_N = np.select(
        [label_N == Label.IDENTICAL, label_N == Label.NEUTRAL],
        [0.6 + 0.39 * draw_N, 0.1 + 0.3 * draw_N],
        10 ** (-4 + 2.6 * draw_N),
    )
    mismatch_N = label_N != Label.IDENTICAL
    best_N = np.where(mismatch_N, 0.9 * (1 - small_N), small_N)
    large = _large(step.top_ids_NK, mismatch_N, small_N, best_N)
    real_N = large.top_ids_NK[:, 0].clone()
    return Comparison(step, real_N, PROMPT_TOKENS + torch.arange(len(label_N)), large)


def with_mismatches(
    comparison: Comparison, at_n: np.ndarray, small_n: np.ndarray, best_n: np.ndarray
) -> Comparison:
    """Return a comparison with a mismatch at the given positions, and the others as they were.

    small_n, best_n: the large model's probabilities of the small model's token and of its own.
    """
    large = comparison.large
    assert large is not None
    part = _large(comparison.step.top_ids_NK[at_n], np.ones(len(at_n), bool), small_n, best_n)
    changed = {}
    for name in (column.name for column in fields(LargeOutputs)):
        changed[name] = getattr(large, name).clone()
        changed[name][at_n] = getattr(part, name)
    real_N = comparison.real_N.clone()
    real_N[at_n] = part.top_ids_NK[:, 0]
    return replace(comparison, real_N=real_N, large=LargeOutputs(**changed))


def _large(
    ids_NK: Tensor, mismatch_N: np.ndarray, small_N: np.ndarray, best_N: np.ndarray
) -> LargeOutputs:
    """Return what a large model puts out that gives the two tokens these probabilities.

    Where there is no mismatch they are one token, and its probability is the best one.
    """
    rest_N1 = (1 - best_N - np.where(mismatch_N, small_N, 0))[:, None]
    tail_NK = 0.05 * rest_N1 * 0.7 ** np.arange(LARGE_TOP_K - 1)
    second_N = np.where(mismatch_N, small_N, tail_NK[:, 0])
    probability_NK = np.column_stack([best_N, second_N, tail_NK[:, 1:]])
    swapped_NK = ids_NK[:, :LARGE_TOP_K].clone()
    at_n = torch.from_numpy(np.flatnonzero(mismatch_N))
    swapped_NK[at_n, :2] = ids_NK[at_n, :2].flip(1)
    order_NK = torch.from_numpy(np.argsort(-probability_NK, axis=1, kind="stable"))
    logprob_NK = torch.from_numpy(np.log(np.clip(probability_NK, 1e-9, 1))).float()
    return LargeOutputs(
        logprob_real_N=torch.from_numpy(np.log(best_N)).float(),
        logprob_small_N=torch.from_numpy(np.log(small_N)).float(),
        top_ids_NK=swapped_NK.gather(1, order_NK),
        top_logprobs_NK=logprob_NK.gather(1, order_NK),
    )


def sigmoid(value: np.ndarray) -> np.ndarray:
    """Return the probability of log-odds."""
    result: np.ndarray = 1 / (1 + np.exp(-value))
    return result
