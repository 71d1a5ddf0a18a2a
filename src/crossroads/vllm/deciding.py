"""What the plugin does at each step, without vLLM: draw, score, decide, and say so.

Shapes: R rows, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossroads.decoding.revision import logprob
from crossroads.errors import RequestError
from crossroads.models.base import StepOutput, Want, summarise
from crossroads.models.remote_wire import Order, Step, fill
from crossroads.routing.features import TOP_K, FeatureInputs, compute
from crossroads.routing.policy import Policy, policy_by_name
from crossroads.routing.policy import decide as decide_by
from crossroads.routing.routers.base import Router
from crossroads.sampling import penalise, row_generator, sample

_STATES = "crossroads_states"


@dataclass(slots=True)
class OrderedRow:
    """A row that brought an order: its tokens, of which `output` were written since it came.

    states: what its policy remembered before each of the tokens in `output`, and now.
    """

    order: Order
    policy: Policy
    prompt: Sequence[int]
    output: Sequence[int]
    states: list[Any]


def read_order(args: dict[str, Any] | None) -> Order | None:
    """Return the order in a request's arguments; None if it has none.

    Raises:
        ValueError: there is one and it makes no sense.
    """
    order = Order.from_xargs(args)
    if order is not None:
        try:
            policy_by_name(order.policy).decide(order.state, 0.5, 0.5)
        except (RequestError, TypeError, ValueError) as error:
            raise ValueError(f"no policy of this version, or not its state: {error}") from error
    return order


def ordered_row(
    args: dict[str, Any] | None, prompt: Sequence[int], output: Sequence[int]
) -> OrderedRow | None:
    """Return the row of a request with these arguments; None if it brought no order.

    Effects: its policy's states are kept in `args`, because these live as long as the request.
    vLLM takes rows out of its batch and adds them again whenever its scheduler likes.
    """
    order = read_order(args)
    if args is None or order is None:
        return None
    states = args.setdefault(_STATES, [order.state])
    return OrderedRow(order, policy_by_name(order.policy), prompt, output, states)


def decide(
    rows: Sequence[OrderedRow], logits_RV: Tensor, hidden_RH: Tensor | None, router: Router
) -> list[Step]:
    """Return what becomes of each row's next token.

    Effects: each row's policy remembers the score.
    """
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
    for place, (row, token_id) in enumerate(zip(rows, proposed, strict=True)):
        handed_over = _hands_over(row, scores[place])
        written = row.order.reserved.hand_over if handed_over else token_id
        told = _logprobs(row, step, place, token_id)
        steps.append(Step(written, token_id, scores[place], entropies[place], handed_over, told))
    return steps


def _hands_over(row: OrderedRow, score: float) -> bool:
    states = row.states
    # A step may be computed and dropped (a prompt that is read in parts), and then come again.
    del states[len(row.output) + 1 :]
    decision = decide_by(row.policy, states[-1], score, row.order.threshold)
    states.append(decision.state)
    return decision.to_large


def _logprobs(row: OrderedRow, step: StepOutput, place: int, proposed_id: int) -> dict[int, float]:
    """Return the log-probabilities that a row's order asks for at its next token."""
    order, written = row.order, len(row.prompt) + len(row.output) - row.order.prompt_length
    likeliest = step.top_ids_NK[place, : order.tops].tolist()
    ids = [proposed_id, *likeliest, *order.judged[written : written + 1]]
    reserved = astuple(order.reserved)
    return {i: logprob(step, place, i) for i in ids if i not in reserved}


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
