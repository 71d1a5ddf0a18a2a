"""What the next token is chosen from: an output's distribution, with the row's penalties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from crossroads.models.base import StepOutput
from crossroads.sampling import SamplingParams, penalise


@dataclass(frozen=True, slots=True)
class Candidates:
    """The likeliest token, and the logits [V] where the output has them."""

    best_id: int
    logits_V: Tensor | None


def candidates(
    output: StepOutput,
    place: int,
    params: SamplingParams,
    tokens: Sequence[int],
    prompt_length: int,
) -> Candidates:
    """Return what a row may write after `tokens`, from a model's output there.

    Router inputs and reported log-probabilities are of the output itself, without penalties.
    """
    if output.logits_NV is None:
        if params.penalises:
            raise ValueError("penalties need the whole logits")
        return Candidates(int(output.top_ids_NK[place, 0]), None)
    logits_V = output.logits_NV[place]
    if not params.penalises:
        return Candidates(int(output.top_ids_NK[place, 0]), logits_V)
    logits_V = penalise(logits_V, tokens, prompt_length, params)
    return Candidates(int(logits_V.argmax()), logits_V)
