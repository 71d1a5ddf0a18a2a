"""What the plugin does at each step, without vLLM: draw, score, decide, and say so.

Shapes: R rows, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import torch
from torch import Tensor

from crossroads.models.base import StepOutput, Want, summarise
from crossroads.models.remote_wire import Order, Step, fill
from crossroads.routing.features import TOP_K, FeatureInputs, compute
from crossroads.routing.policy import sends_to_large
from crossroads.routing.routers.base import Router
from crossroads.sampling import penalise, row_generator, sample


@dataclass(slots=True)
class OrderedRow:
    """A row that brought an order: its tokens, of which `output` were written since it came."""

    order: Order
    prompt: Sequence[int]
    output: Sequence[int]


def decide(
    rows: Sequence[OrderedRow], logits_RV: Tensor, hidden_RH: Tensor | None, router: Router
) -> list[Step]:
    """Return what becomes of each row's next token."""
    want = Want(top_k=min(TOP_K, logits_RV.shape[1]), hidden=hidden_RH is not None, logits=True)
    step = summarise(logits_RV, [1] * len(rows), want, hidden_RH)
    proposed = [_propose(row, step, place) for place, row in enumerate(rows)]
    inputs = FeatureInputs(
        step=step,
        proposed_N=torch.tensor(proposed),
        position_N=torch.tensor([len(row.prompt) + len(row.output) for row in rows]),
    )
    scores = router.score(compute(router.inputs, inputs)).tolist()
    entropies = step.entropy_N.tolist()
    steps = []
    for row, token_id, score, entropy in zip(rows, proposed, scores, entropies, strict=True):
        handed_over = bool(sends_to_large(score, row.order.threshold))
        written = row.order.reserved.hand_over if handed_over else token_id
        steps.append(Step(written, token_id, score, entropy, handed_over))
    return steps


def say(rows: Sequence[OrderedRow], steps: Sequence[Step], logits: Sequence[Tensor]) -> None:
    """Write each step into its row of logits [V], in place."""
    for row, step, row_V in zip(rows, steps, logits, strict=True):
        fill(row_V, step, row.order.reserved)


def _propose(row: OrderedRow, step: StepOutput, place: int) -> int:
    """Return the token that the model draws in a row."""
    order, params = row.order, row.order.sampling
    assert step.logits_NV is not None
    best, logits_V = int(step.top_ids_NK[place, 0]), step.logits_NV[place]
    if params.penalises:
        tokens = [*row.prompt, *row.output]
        logits_V = penalise(logits_V, tokens, order.prompt_length, params)
        best = int(logits_V.argmax())
    drawn = sample(best, logits_V, params, _generator(order, len(row.output)))
    reserved = list(astuple(order.reserved))
    if drawn in reserved:  # they stand for nothing, and still have logits
        logits_V = logits_V.clone()
        logits_V[reserved] = -torch.inf
        drawn = int(logits_V.argmax())
    return drawn


def _generator(order: Order, written: int) -> np.random.Generator:
    """Return the row's random stream at its next token, whatever was computed twice before.

    A token uses one number.
    """
    generator = row_generator(order.sampling.seed, order.role)
    generator.bit_generator.advance(order.drawn + written)  # type: ignore[attr-defined]
    return generator
