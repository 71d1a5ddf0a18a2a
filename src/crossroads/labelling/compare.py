"""Step 2: both models read the large model's response; their outputs at every position.

Teacher-forced: one pass of each model over exactly the generated ids.
Shapes: N response positions, K top entries, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crossroads.dataset import Comparison
from crossroads.errors import DataError
from crossroads.models.base import CausalLM, StepOutput, Want, concatenate
from crossroads.routing.features import TOP_K

_CHUNK = 64
"""Positions whose whole distributions are in memory at a time (64 x 152k x 4 B = 39 MB)."""


def compare(
    small: CausalLM, large: CausalLM, prompt_ids: Sequence[int], response_ids: Sequence[int]
) -> Comparison:
    """Return both models' outputs at the N = len(response_ids) positions of a response.

    Raises:
        DataError: outputs that contradict themselves (a backend's fault, found before training).
    """
    want = Want(positions="all", top_k=TOP_K, hidden=True)
    step = concatenate(
        list(_teacher_forced(small, prompt_ids, response_ids, want)), (len(response_ids),)
    )
    real_N = torch.tensor(list(response_ids))
    logprobs = _large_logprobs(large, prompt_ids, response_ids, step.top_ids_NK[:, 0])
    comparison = Comparison(
        step=step,
        real_N=real_N,
        position_N=torch.arange(len(response_ids)) + len(prompt_ids),
        large_logprob_real_N=logprobs[0],
        large_logprob_small_N=logprobs[1],
        large_logprob_best_N=logprobs[2],
    )
    _check(comparison)
    return comparison


def _teacher_forced(
    model: CausalLM, prompt_ids: Sequence[int], response_ids: Sequence[int], want: Want
) -> list[StepOutput]:
    """Return outputs that predict each response token, in pieces of at most _CHUNK positions."""
    cache = model.new_cache()
    try:
        if len(prompt_ids) > 1:
            model.extend([cache], [prompt_ids[:-1]])
        inputs = [prompt_ids[-1], *response_ids[:-1]]
        return [
            model.extend([cache], [inputs[start : start + _CHUNK]], want)
            for start in range(0, len(inputs), _CHUNK)
        ]
    finally:
        cache.release()


def _large_logprobs(
    large: CausalLM, prompt_ids: Sequence[int], response_ids: Sequence[int], small_N: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the large model's log-probabilities [N] of the real, small and best tokens."""
    cache = large.new_cache()
    try:
        if len(prompt_ids) > 1:
            large.extend([cache], [prompt_ids[:-1]])
        inputs = [prompt_ids[-1], *response_ids[:-1]]
        real_N = torch.tensor(list(response_ids))
        parts = []
        for start in range(0, len(inputs), _CHUNK):
            part = slice(start, start + _CHUNK)
            output = large.extend([cache], [inputs[part]], Want(positions="all", logits=True))
            assert output.logits_NV is not None
            ids_N2 = torch.stack([real_N[part], small_N[part]], dim=1)
            chosen_N3 = torch.cat(
                [output.logits_NV.gather(1, ids_N2), output.top_logits_NK[:, :1]], dim=1
            )
            parts.append(chosen_N3 - output.logsumexp_N[:, None])
        logprobs_N3 = torch.cat(parts)
        return logprobs_N3[:, 0], logprobs_N3[:, 1], logprobs_N3[:, 2]
    finally:
        cache.release()


def _check(comparison: Comparison) -> None:
    step = comparison.step
    finite = all(
        bool(torch.isfinite(column).all())
        for column in (step.top_logits_NK, step.logsumexp_N, step.entropy_N, step.hidden_NH)
        if column is not None
    )
    if not finite:
        raise DataError("the small model put out numbers that are not finite")
    if not bool((step.top_logits_NK[:, 1:] <= step.top_logits_NK[:, :-1]).all()):
        raise DataError("the small model's top logits are not sorted")
    if bool((comparison.large_logprob_small_N > comparison.large_logprob_best_N + 1e-4).any()):
        raise DataError("the large model's best token is not its likeliest")
