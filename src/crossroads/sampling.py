"""From logits to a token. One generator per row and role, one random number per token.

Drawing exactly one number per token by the inverse of the cumulative distribution keeps a row's
stream independent of what its filters removed, so equal seeds give equal tokens wherever the
distributions are equal (law 1 needs this).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crossroads.errors import RequestError
from crossroads.types import Role


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a token is drawn. Temperature 0 is greedy, and the filters then change nothing.

    Filters apply after the temperature, in this order: top_k (0 = off), top_p (1 = off: the
    smallest set of most likely tokens whose probability reaches top_p; Holtzman et al. 2020),
    min_p (0 = off: tokens at least min_p times as likely as the likeliest; Nguyen et al. 2024).

    Penalties apply before all of that, to greedy rows too: see `penalise`.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            RequestError: names the field, what we got and the range.
        """
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise RequestError(f"temperature must be a number >= 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise RequestError(f"top_k must be >= 0 (0 = off), got {self.top_k}")
        if not 0 <= self.min_p <= 1:
            raise RequestError(f"min_p must be in [0, 1], got {self.min_p}")
        if self.seed < 0:
            raise RequestError(f"seed must be >= 0, got {self.seed}")
        for name in ("frequency_penalty", "presence_penalty"):
            if not -2 <= (value := getattr(self, name)) <= 2:
                raise RequestError(f"{name} must be in [-2, 2], got {value}")
        if not 0.01 <= self.repetition_penalty <= 100:
            raise RequestError(
                f"repetition_penalty must be in [0.01, 100] (1 = off), "
                f"got {self.repetition_penalty}"
            )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken, after penalties."""
        return self.temperature == 0

    @property
    def penalises(self) -> bool:
        """Whether tokens that are already there count."""
        return (self.frequency_penalty, self.presence_penalty, self.repetition_penalty) != (0, 0, 1)

    @property
    def needs_logits(self) -> bool:
        """Whether a token's choice needs the whole distribution, and not its top alone."""
        return not self.greedy or self.penalises


def row_generator(seed: int, role: Role) -> np.random.Generator:
    """Return the generator of one row and role. Rows and roles never share a stream."""
    return np.random.default_rng([seed, 0 if role is Role.SMALL else 1])


def penalise(
    logits_V: Tensor, tokens: Sequence[int], prompt_length: int, params: SamplingParams
) -> Tensor:
    """Return the logits [V] with the penalties for `tokens`, of which the first are the prompt.

    Of a token that was generated n > 0 times, frequency_penalty * n + presence_penalty is taken
    off (OpenAI's definition). Of one that stands in the prompt or was generated, a positive logit
    is divided by repetition_penalty and a negative one multiplied (CTRL, arXiv 1909.05858).
    """
    if not params.penalises:
        return logits_V
    result_V = logits_V.clone()
    if params.repetition_penalty != 1:
        ids = torch.tensor(sorted(set(tokens)), dtype=torch.long)
        there = result_V[ids]
        rate = params.repetition_penalty
        result_V[ids] = torch.where(there > 0, there / rate, there * rate)
    ids_N, counts_N = np.unique(np.asarray(tokens[prompt_length:], np.int64), return_counts=True)
    penalty_N = params.frequency_penalty * torch.from_numpy(counts_N).double()
    penalty_N += params.presence_penalty
    result_V[torch.from_numpy(ids_N)] -= penalty_N
    return result_V


def probabilities(logits_V: Tensor, params: SamplingParams) -> Tensor:
    """Return the filtered distribution [V], float64, summing to 1. Temperature must be > 0."""
    # The best at 0 first: a tiny temperature would make infinities, and their differences nan.
    logits_V = (logits_V.double() - float(logits_V.max())) / params.temperature
    probabilities_V = torch.softmax(logits_V, dim=-1)
    if params.top_k == 0 and params.top_p == 1 and params.min_p == 0:
        return probabilities_V
    # By logit: two tokens may round to one probability, and the better one must stay first.
    order_V = logits_V.sort(descending=True, stable=True).indices
    sorted_V = probabilities_V[order_V]
    keep_V = torch.ones_like(sorted_V, dtype=torch.bool)
    if params.top_k:
        keep_V[params.top_k :] = False
    if params.top_p < 1:
        kept_V = sorted_V * keep_V
        kept_V = kept_V / kept_V.sum()
        before_V = kept_V.cumsum(0) - kept_V
        keep_V &= before_V < params.top_p
    if params.min_p:
        keep_V &= sorted_V >= params.min_p * sorted_V[0]
    filtered_V = torch.zeros_like(probabilities_V)
    filtered_V[order_V[keep_V]] = sorted_V[keep_V]
    return filtered_V / filtered_V.sum()


def draw(probabilities_V: Tensor, generator: np.random.Generator) -> int:
    """Return an id drawn from a distribution [V] (or weights: only proportions count).

    Effects: one number is drawn from `generator`.
    """
    cumulative_V = probabilities_V.cumsum(0)
    point = generator.random() * float(cumulative_V[-1])
    index = int(torch.searchsorted(cumulative_V, point, right=True))
    return min(index, int(cumulative_V.shape[0]) - 1)


def sample(
    best_id: int, logits_V: Tensor | None, params: SamplingParams, generator: np.random.Generator
) -> int:
    """Return the next token's id.

    `best_id` is the likeliest id and answers greedy rows; `logits_V` is needed otherwise.
    Effects: one number is drawn from `generator` unless the row is greedy.
    """
    if params.greedy:
        return best_id
    if logits_V is None:
        raise ValueError("sampling at a temperature above 0 needs the whole logits")
    return draw(probabilities(logits_V, params), generator)
