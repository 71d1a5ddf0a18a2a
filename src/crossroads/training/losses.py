"""Losses over logits and targets: the mean of a batch, as one number.

`targets_n` are 0 and 1, or probabilities (soft labels); every loss takes both. `weights_n` weigh
rows; without them all rows count the same. All are finite for any finite logits. Shapes: n rows of
a batch, p positives and q negatives among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from crossroads.errors import ConfigError
from crossroads.names import nearest

PER_BATCH = "per_batch"
"""Setting of every loss: more rows than this are taken in parts whose means count the same. So
R2R's script measures a validation loss, where the last, shorter batch counts as much as the others.
"""
_PAIR_ROWS = 8192  # rows whose pairs are formed at a time: the pairs of 2^16 rows fill a memory
_R2R_EPSILON = 1e-10
_MAY_BE_NONE = ("recall_factor",)


class Loss(Protocol):
    """The mean loss of some rows."""

    def __call__(
        self, logits_n: Tensor, targets_n: Tensor, weights_n: Tensor | None = None, /
    ) -> Tensor:
        """Return one number, differentiable in the logits."""


@dataclass(frozen=True, slots=True)
class LossConfig:
    """A loss of LOSSES and its settings."""

    name: str = "bce"
    settings: Mapping[str, Any] = field(default_factory=dict)


def build_loss(config: LossConfig, positives: float, negatives: float) -> Loss:
    """Return the mean loss of a batch; the counts are of the training rows.

    Raises:
        ConfigError: unknown loss or setting, or a setting out of range.
    """
    if config.name not in LOSSES:
        raise ConfigError(f"unknown loss {config.name!r}; {nearest(config.name, LOSSES)}")
    settings = dict(config.settings)
    rows = settings.pop(PER_BATCH, None)
    known = [*signature(LOSSES[config.name]).parameters][2:]
    for key, value in settings.items():
        if key not in known:
            close = nearest(key, (*known, PER_BATCH))
            raise ConfigError(f"loss {config.name!r} has no setting {key!r}; {close}")
        if value is None and key in _MAY_BE_NONE:
            continue
        if not (_is_number(value) and math.isfinite(value)):
            raise ConfigError(f"loss {config.name!r}: {key} must be a number, got {value!r}")
    loss = LOSSES[config.name](positives, negatives, **settings)
    if rows is None:
        return loss
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < 1:
        raise ConfigError(f"loss {config.name!r}: {PER_BATCH} must be >= 1, got {rows!r}")
    return _in_parts(loss, rows, equal=True)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _in_range(name: str, value: float, low: float, high: float) -> float:
    if not low <= value <= high:
        raise ConfigError(f"a loss's {name} must be in [{low:g}, {high:g}], got {value}")
    return value


def _mean(values_n: Tensor, weights_n: Tensor | None) -> Tensor:
    if weights_n is None:
        return values_n.mean()
    return (values_n * weights_n).sum() / weights_n.sum().clamp_min(1e-12)


def _in_parts(loss: Loss, rows: int, *, equal: bool) -> Loss:
    """Return the mean over parts of `rows` rows; parts count by their rows, or equally."""

    def parted(logits_n: Tensor, targets_n: Tensor, weights_n: Tensor | None = None, /) -> Tensor:
        if len(logits_n) <= rows:
            return loss(logits_n, targets_n, weights_n)
        parts = [slice(start, start + rows) for start in range(0, len(logits_n), rows)]
        means = [
            loss(logits_n[p], targets_n[p], None if weights_n is None else weights_n[p])
            for p in parts
        ]
        sizes = [1.0 if equal else float(len(logits_n[p])) for p in parts]
        return (torch.stack(means) * logits_n.new_tensor(sizes)).sum() / sum(sizes)

    return parted


# Each row by itself


def _by_row(values: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    return lambda logits_n, targets_n, weights_n=None: _mean(values(logits_n, targets_n), weights_n)


def _bce(positives: float, negatives: float, positive_weight: float = 1.0) -> Loss:
    """Return the cross-entropy; positives weigh `positive_weight`, negatives 1."""
    del positives, negatives
    weight = torch.tensor(float(_in_range("positive_weight", positive_weight, 0.0, math.inf)))
    return _by_row(
        lambda logits_n, targets_n: functional.binary_cross_entropy_with_logits(
            logits_n, targets_n, reduction="none", pos_weight=weight.to(logits_n.device)
        )
    )


def _recall_weighted(positives: float, negatives: float, recall_factor: float | None = 1.0) -> Loss:
    """Return R2R's BCEWithLogitsLoss: positives weigh negatives / positives * recall_factor.

    None is its spelling of no weight; without positives nothing is weighted either.
    """
    if recall_factor is None or not positives:
        return _bce(positives, negatives)
    _in_range("recall_factor", recall_factor, 0.0, math.inf)
    return _bce(positives, negatives, negatives / positives * recall_factor)


def _focal(positives: float, negatives: float, alpha: float = 1.0, gamma: float = 2.0) -> Loss:
    """Return the focal loss: alpha_t (1 - p_t)^gamma times the cross-entropy.

    Lin et al., arXiv 1708.02002, eq. 5, with p_t = exp(-cross-entropy) as R2R has it. alpha weighs
    positives and 1 - alpha negatives: at R2R's default of 1 negatives do not count.
    """
    del positives, negatives
    _in_range("alpha", alpha, 0.0, 1.0)
    _in_range("gamma", gamma, 0.0, math.inf)

    def values(logits_n: Tensor, targets_n: Tensor) -> Tensor:
        entropy_n = functional.binary_cross_entropy_with_logits(
            logits_n, targets_n, reduction="none"
        )
        # 1 - exp(-x) without cancellation; away from 0, where a power below 1 has no slope.
        missing_n = (-torch.expm1(-entropy_n)).clamp_min(1e-12)
        alpha_n = alpha * targets_n + (1 - alpha) * (1 - targets_n)
        return alpha_n * missing_n**gamma * entropy_n

    return _by_row(values)


def _dpo(positives: float, negatives: float, beta: float = 1.0) -> Loss:
    """Return R2R's DPOLoss: the reference policy is the share P of positives.

    With s the score and e = 1e-10, a positive's loss is -log(sigmoid(u) + e) and a negative's
    -log(sigmoid(-u) + e), where u = beta (log(s + e) / P - log(1 - s + e) / (1 - P)). Here all of
    it is computed from logarithms, which gives the same numbers without their rounding. A soft
    label mixes the two.

    Raises:
        ConfigError: no positives or no negatives.
    """
    share = positives / max(positives + negatives, 1.0)
    if not 0 < share < 1:
        raise ConfigError("DPOLoss needs positives and negatives among the training rows")
    _in_range("beta", beta, 0.0, math.inf)

    def log_plus(log_n: Tensor) -> Tensor:
        return torch.logaddexp(log_n, log_n.new_tensor(math.log(_R2R_EPSILON)))

    def values(logits_n: Tensor, targets_n: Tensor) -> Tensor:
        yes_n = log_plus(functional.logsigmoid(logits_n))
        no_n = log_plus(functional.logsigmoid(-logits_n))
        u_n = beta * (yes_n / share - no_n / (1 - share))
        return -(
            targets_n * log_plus(functional.logsigmoid(u_n))
            + (1 - targets_n) * log_plus(functional.logsigmoid(-u_n))
        )

    return _by_row(values)


# Pairs of a positive and a negative


def _ranking(
    positives: float, negatives: float, hardest: float = 0.25, bce: float = 0.5, margin: float = 0.0
) -> Loss:
    """Return the pairwise logistic loss of the positives and the hardest negatives of a batch.

    log(1 + exp(margin + negative - positive)) (RankNet: Burges et al., ICML 2005, eq. 3) over the
    share `hardest` of negatives with the highest logits, which aims at the part of the ROC curve
    with few false positives (Narasimhan and Agarwal, ICML 2013). `bce` is the share of plain
    cross-entropy in the sum: differences alone leave the scores without an origin. A batch
    without a pair has the cross-entropy alone.
    """
    return _pairs(positives, negatives, 1.0, hardest, bce, margin)


def _high_recall(
    positives: float,
    negatives: float,
    lowest: float = 0.25,
    hardest: float = 1.0,
    bce: float = 0.5,
    margin: float = 0.0,
) -> Loss:
    """Return the same loss of the share `lowest` of positives that have the lowest logits.

    positive_rate at a high recall is decided by them alone: the threshold lies among them. The
    two-way partial AUC (Yang et al., ICML 2021), with hard shares as its weights.
    """
    return _pairs(positives, negatives, lowest, hardest, bce, margin)


def _pairs(
    positives: float, negatives: float, lowest: float, hardest: float, bce: float, margin: float
) -> Loss:
    plain = _bce(positives, negatives)
    shares = {"lowest": lowest, "hardest": hardest}
    for name, value in shares.items():
        if not 0 < value <= 1:
            raise ConfigError(f"a loss's {name} must be in (0, 1], got {value}")
    _in_range("bce", bce, 0.0, 1.0)

    def loss(logits_n: Tensor, targets_n: Tensor, weights_n: Tensor | None = None, /) -> Tensor:
        ranked = _pair_loss(logits_n, targets_n, weights_n, lowest, hardest, margin)
        if ranked is None:
            return plain(logits_n, targets_n, weights_n)
        if not bce:
            return ranked
        return bce * plain(logits_n, targets_n, weights_n) + (1 - bce) * ranked

    return _in_parts(loss, _PAIR_ROWS, equal=False)


def _pair_loss(
    logits_n: Tensor,
    targets_n: Tensor,
    weights_n: Tensor | None,
    lowest: float,
    hardest: float,
    margin: float,
) -> Tensor | None:
    """Return the weighted mean over pairs; None where a batch has no pair.

    A soft label t counts as a positive from 0.5 on; a pair weighs t_positive (1 - t_negative).
    """
    is_positive_n = targets_n >= 0.5
    weights_n = torch.ones_like(logits_n) if weights_n is None else weights_n
    low_p = _extreme(-logits_n, is_positive_n, lowest)
    high_q = _extreme(logits_n, ~is_positive_n, hardest)
    if not len(low_p) or not len(high_q):
        return None
    positive_p, negative_q = weights_n * targets_n, weights_n * (1 - targets_n)
    weight_pq = positive_p[low_p, None] * negative_q[None, high_q]
    loss_pq = functional.softplus(margin + logits_n[None, high_q] - logits_n[low_p, None])
    return (weight_pq * loss_pq).sum() / weight_pq.sum().clamp_min(1e-12)


def _extreme(values_n: Tensor, among_n: Tensor, share: float) -> Tensor:
    """Return the rows among `among_n` with the largest values: that share, rounded up."""
    rows = among_n.nonzero()[:, 0]
    if share >= 1 or not len(rows):
        return rows
    top = values_n[rows].detach().topk(math.ceil(share * len(rows))).indices
    return rows[top]


LOSSES: Mapping[str, Callable[..., Loss]] = {
    "bce": _bce,
    "ranking": _ranking,
    "high_recall": _high_recall,
    "BCEWithLogitsLoss": _recall_weighted,
    "FocalLoss": _focal,
    "DPOLoss": _dpo,
}
"""By name; those in capitals are R2R's."""
