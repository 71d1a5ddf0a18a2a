"""The laws of the labelled dataset, position by position.

Shapes: N positions of a response, K stored top entries.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from crossroads.dataset import UNJUDGED, Comparison, Labels, ResponseRow
from crossroads.exchange.findings import Finding, counts_on, descending, nothing
from crossroads.types import Label

_LOGPROB_SLACK = 2e-3
"""Relative and absolute slack between log-probabilities in single and in half precision."""


DATASET_LAWS: Mapping[str, str] = {
    "length": "a response has as many positions and labels as the card says, one after the other",
    "position": "positions count on by one within a response",
    "finite": "the small model's outputs are finite",
    "sorted": "log-probabilities are descending",
    "label": "a judged label is identical exactly where the proposal is the response's token",
    "probability": "a judge's probability is in [0, 1], or unknown",
    "embedding": "every proposed token has its embedding, where the dataset has any",
    "large": "the large model's best token is at least as likely as the real and the proposed one",
}


def length_finding(row: ResponseRow, comparison: Comparison, labels: Labels, start: int) -> Finding:
    """Find whether a response is as long as the card says, and starts at `start`."""
    there = len(labels.label_N[row.start : row.start + row.positions])
    lengths = (len(comparison.real_N), there)
    wrong = lengths != (row.positions, row.positions) or row.start != start
    return Finding(
        np.array([wrong]),
        1,
        lambda _: f"{lengths[0]} positions, {there} labels from {row.start}",
        lambda _: f"{row.positions} from {start}",
    )


def dataset_findings(
    comparison: Comparison, labels: Labels, known: frozenset[int]
) -> dict[str, Finding]:
    """Return what each other law finds in one response."""
    step = comparison.step
    assert step.hidden_NH is not None
    columns = (step.top_logits_NK, step.logsumexp_N[:, None], step.entropy_N[:, None])
    finite_N = torch.stack(
        [torch.isfinite(column).all(dim=1) for column in (*columns, step.hidden_NH)]
    ).all(dim=0)
    return {
        "position": counts_on(_numpy(comparison.position_N)),
        "finite": Finding(
            _numpy(~finite_N), len(finite_N), lambda _: "nan or infinity", lambda _: "numbers"
        ),
        "sorted": descending(_numpy(step.top_logits_NK), _numpy(finite_N)),
        "label": _label(comparison, labels.label_N),
        "probability": _probability(_numpy(labels.probability_N)),
        "embedding": _embedding(_numpy(comparison.proposed_N), known),
        "large": _large(comparison),
    }


def _numpy(tensor: Tensor) -> np.ndarray:
    values: np.ndarray = tensor.numpy()
    return values


def _label(comparison: Comparison, label_N: Tensor) -> Finding:
    names: dict[int, str] = {int(label): label.name.lower() for label in Label}
    known_N = torch.isin(label_N, torch.tensor([*names, UNJUDGED], dtype=label_N.dtype))
    disagrees_N = comparison.mismatch_N != (label_N != Label.IDENTICAL)
    judged_N = label_N != UNJUDGED
    return Finding(
        _numpy(~known_N | (judged_N & disagrees_N)),
        int(judged_N.sum()),
        lambda row: f"label {names.get(int(label_N[row]), int(label_N[row]))}",
        lambda row: (
            f"a label for proposal {int(comparison.proposed_N[row])} where the response has "
            f"{int(comparison.real_N[row])}"
        ),
    )


def _probability(probability_N: np.ndarray) -> Finding:
    known_N = ~np.isnan(probability_N)
    wrong_N = known_N & ((probability_N < 0) | (probability_N > 1))
    return Finding(
        wrong_N, int(known_N.sum()), lambda row: f"{probability_N[row]:g}", lambda _: "0 to 1"
    )


def _embedding(proposed_N: np.ndarray, known: frozenset[int]) -> Finding:
    if not known:
        return nothing(len(proposed_N))
    wrong_N = np.array([int(token) not in known for token in proposed_N], bool)
    return Finding(
        wrong_N, len(wrong_N), lambda row: f"none of token {proposed_N[row]}", lambda _: "one"
    )


def _large(comparison: Comparison) -> Finding:
    large = comparison.large
    if large is None:
        return nothing(len(comparison.real_N))
    best_N = large.top_logprobs_NK[:, 0]
    other_N = torch.maximum(large.logprob_real_N, large.logprob_small_N)
    slack_N = _LOGPROB_SLACK * (1 + best_N.abs())
    # Written so that nan is wrong.
    return Finding(
        _numpy(~(other_N <= best_N + slack_N)),
        len(best_N),
        lambda row: f"log-probability {float(other_N[row]):g} above the best",
        lambda row: f"at most {float(best_N[row]):g}",
    )
