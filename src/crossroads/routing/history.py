"""What a row's last tokens were to the small model: router inputs that look back.

Two numbers for each of the last HISTORY positions of a row: the small model's entropy there, and
its surprise (minus the log-probability, in nats) at the token that came to stand there, whoever
wrote it. Both are known while decoding, and follow from a stored response alike. Positions before
the first generated token count as certain: zeros.

Shapes: T positions of one row in order, N positions, J = HISTORY.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossroads.models.base import StepOutput

HISTORY = 8
"""Positions that a router may look back."""


def surprise(step: StepOutput, accepted_N: Tensor) -> Tensor:
    """Return -log p [N] of the accepted tokens, in nats, at least 0.

    A token that is not among the stored top entries counts as the least of them. Log-probabilities
    are rounded as labelling stores them.
    """
    logprob_NK = (step.top_logits_NK - step.logsumexp_N[:, None]).to(torch.float16).float()
    is_accepted_NK = step.top_ids_NK == accepted_N[:, None]
    found_N = torch.where(is_accepted_NK, logprob_NK, -torch.inf).amax(dim=1)
    return -torch.maximum(found_N, logprob_NK[:, -1]).clamp(max=0.0)


def look_back(step: StepOutput, accepted_T: Tensor) -> Tensor:
    """Return the history [T, J, 2] of every position of one row; nearest position first."""
    pair_T2 = torch.stack([step.entropy_N.float(), surprise(step, accepted_T)], dim=1)
    padded = torch.cat([torch.zeros(HISTORY, 2), pair_T2[:-1]])
    # Position t sees padded[t : t + J], whose last entry is position t - 1.
    return padded.unfold(0, HISTORY, 1).flip(2).transpose(1, 2).contiguous()


class RowHistory:
    """The history of one row while it is decoded."""

    def __init__(self) -> None:
        """Start before the first token."""
        self._pairs: list[tuple[float, float]] = []

    def append(self, entropy: float, surprise: float) -> None:
        """Add the newest position."""
        self._pairs.append((entropy, surprise))

    def crop(self, length: int) -> None:
        """Forget all but the first `length` positions."""
        del self._pairs[length:]

    def tensor(self) -> Tensor:
        """Return the history [J, 2]; nearest position first."""
        recent = self._pairs[: -HISTORY - 1 : -1]
        return torch.tensor(recent + [(0.0, 0.0)] * (HISTORY - len(recent)))
