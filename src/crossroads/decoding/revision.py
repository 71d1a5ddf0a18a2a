"""What the large model takes back when it reads its lag: the rules between R2R and lossless.

The large model's pass over its lag gives its distribution at every small token in it. A *lossy*
rule takes the first token back to which it gives less than `revise_below` (the rollback of BiLD,
arXiv 2302.07863, with a probability for a distance). The *lossless* rule is speculative sampling's
(arXiv 2211.17192, theorem 1): a token x drawn from q stays with probability min(1, p(x) / q(x)),
else one drawn from max(0, p - q) takes its place, and what is written is distributed as p. That
holds whatever decides when the large model looks, so a router may.

Shapes: V vocabulary, N positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crossroads.decoding.candidates import Candidates, candidates
from crossroads.decoding.request import Request
from crossroads.errors import EngineError
from crossroads.models.base import StepOutput
from crossroads.sampling import draw, probabilities

_MOST_TOP = 256
"""Entries of a distribution up to which a top-k is cheaper than the whole of it."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token of the small model; `from_V` is what it drew from, for sampled lossless rows."""

    token_id: int
    from_V: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """The first token that is taken back, by its place, and what stands there instead."""

    place: int
    token_id: int


def check(
    drawn: Sequence[Drawn],
    output: StepOutput,
    request: Request,
    generator: np.random.Generator,
    before: Sequence[int],
) -> Refusal | None:
    """Return what the large model takes back of some tokens; None if all of them stay.

    output: the large model's, at least one position per token, in order.
    before: the row's tokens up to the first of them, prompt included.
    Effects: sampled rows draw one number per lossless check and one per replacement.
    """
    tokens = list(before)
    for place, token in enumerate(drawn):
        own = candidates(output, place, request.sampling, tokens, len(request.prompt_ids))
        if request.lossless:
            instead = _lossless(token, own, request, generator)
        elif probability(output, place, token.token_id) < request.revise_below:
            instead = _instead(token.token_id, own, request, generator)
        else:
            instead = None
        if instead is not None:
            return Refusal(place, instead)
        tokens.append(token.token_id)
    return None


def needs_logits(request: Request) -> bool:
    """Whether the large model's whole distribution is read, not just its top."""
    return request.sampling.needs_logits or (not request.lossless and top_k(request) > _MOST_TOP)


def top_k(request: Request) -> int:
    """Return how many of the large model's likeliest tokens a greedy check looks at.

    A token outside of the k likeliest has at most probability 1 / (k + 1); with k the whole part
    of 1 / revise_below that is too little, whatever it is exactly.
    """
    wanted = request.logprobs or 1
    if request.revise_below > 0:
        wanted = max(wanted, math.floor(1 / request.revise_below))
    return wanted


def _instead(
    token_id: int, own: Candidates, request: Request, generator: np.random.Generator
) -> int | None:
    if request.sampling.greedy:
        # What the large model itself would write there is no mistake, however doubtful it is.
        return None if own.best_id == token_id else own.best_id
    assert own.logits_V is not None
    return draw(probabilities(own.logits_V, request.sampling), generator)


def _lossless(
    token: Drawn, own: Candidates, request: Request, generator: np.random.Generator
) -> int | None:
    if request.sampling.greedy:
        return None if own.best_id == token.token_id else own.best_id
    assert own.logits_V is not None
    assert token.from_V is not None
    own_V = probabilities(own.logits_V, request.sampling)
    drawn_V = token.from_V.double()
    if generator.random() * float(drawn_V[token.token_id]) < float(own_V[token.token_id]):
        return None
    rest_V = (own_V - drawn_V).clamp_min(0.0)
    # Only rounding can refuse a token where the two distributions are one.
    return draw(rest_V if bool(rest_V.any()) else own_V, generator)


def probability(output: StepOutput, place: int, token_id: int) -> float:
    """Return a token's probability; 0 if it is below everything that `output` holds."""
    return math.exp(logprob(output, place, token_id))


def tops(output: StepOutput, place: int, count: int) -> tuple[tuple[int, float], ...]:
    """Return the likeliest tokens (id, log-probability in nats), likeliest first."""
    total = float(output.logsumexp_N[place])
    ids = output.top_ids_NK[place, :count].tolist()
    logits = output.top_logits_NK[place, :count].tolist()
    return tuple((i, logit - total) for i, logit in zip(ids, logits, strict=True))


def logprob(output: StepOutput, place: int, token_id: int) -> float:
    """Return a token's log-probability in nats; -inf if it is below all that `output` holds.

    Raises:
        EngineError: a server told the token and not its log-probability.
    """
    total = float(output.logsumexp_N[place])
    if output.logits_NV is not None:
        return float(output.logits_NV[place, token_id]) - total
    found = torch.nonzero(output.top_ids_NK[place] == token_id)
    if not len(found):
        return -math.inf
    value = float(output.top_logits_NK[place, int(found[0, 0])]) - total
    if math.isnan(value):
        raise EngineError(
            "the server told no log-probability of a token that is part of a character; send the "
            "request without logprobs, or serve the model with vLLM"
        )
    return value
