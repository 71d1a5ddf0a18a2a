"""Router inputs: from what the small model put out to the numbers that a router reads.

Labelling, training and decoding all call `compute`, so an input cannot mean one thing in training
and another while serving. A new input is one function and one row of FEATURES.

Shapes: N positions, K top entries, H hidden size, E embedding size, W a feature's width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from crossroads.errors import RouterError
from crossroads.models.base import StepOutput
from crossroads.routing.history import HISTORY

TOP_K = 100
"""Entries of each distribution that are stored and may be used; R2R's number."""

_NOT_YET = torch.empty(0, 0)


@dataclass(frozen=True, slots=True)
class FeatureInputs:
    """What a feature may look at, for N positions of the small model.

    proposed_N: the token that the small model proposes next, int64.
    position_N: index of that token in its row, prompt included, int64.
    embed: rows [N, E] of the small model's input embedding by ids; None where nobody has them.
    history_NJ2: what the row's last tokens were (routing.history); None where nobody kept it.
    logprobs_NK: the step's top log-probabilities as labelling stores them; `compute` fills them in.
    """

    step: StepOutput
    proposed_N: Tensor
    position_N: Tensor
    embed: Callable[[Sequence[int]], Tensor] | None = None
    history_NJ2: Tensor | None = None
    logprobs_NK: Tensor = _NOT_YET


@dataclass(frozen=True, slots=True)
class Feature:
    """One router input.

    width: W for a hidden size. dtype: the precision in which the input is defined; the stored and
    the live value are both rounded to it, then given as float32. transform: what the numbers are.
    """

    width: Callable[[int], int]
    compute: Callable[[FeatureInputs], Tensor]
    transform: str
    dtype: torch.dtype = torch.float32
    needs_hidden: bool = False
    needs_embedding: bool = False
    needs_history: bool = False


def _hidden(inputs: FeatureInputs) -> Tensor:
    if inputs.step.hidden_NH is None:
        raise RouterError("this router reads hidden states, and the small model gives none")
    return inputs.step.hidden_NH


def _token_embedding(inputs: FeatureInputs) -> Tensor:
    if inputs.embed is None:
        raise RouterError("this router reads token embeddings, and the small model gives none")
    return inputs.embed([int(token) for token in inputs.proposed_N])


# A router's inputs are computed beside a model that has just emptied the processor's caches, where
# each operation costs more than its arithmetic: the functions below take as few as they can.


def _top_logprobs(inputs: FeatureInputs) -> Tensor:
    logprobs_NK = inputs.logprobs_NK
    width = logprobs_NK.shape[1]
    if width == TOP_K:
        return logprobs_NK
    # Only a vocabulary smaller than TOP_K leaves entries missing; they repeat the least one.
    filler_NM = logprobs_NK[:, -1:].expand(-1, max(TOP_K - width, 0))
    return torch.cat([logprobs_NK[:, :TOP_K], filler_NM], dim=1)


def _top_logits(inputs: FeatureInputs) -> Tensor:
    return _top_logprobs(inputs) + inputs.step.logsumexp_N[:, None]


def _top_probability(inputs: FeatureInputs) -> Tensor:
    return torch.exp(inputs.logprobs_NK[:, :1])


def _margin(inputs: FeatureInputs) -> Tensor:
    two_N2 = torch.exp(inputs.logprobs_NK[:, :2])
    return two_N2[:, :1] - two_N2[:, 1:]


def _proposed_logprob(inputs: FeatureInputs) -> Tensor:
    """Log-probability of the proposed token; below all stored ones if it is not among them."""
    logprobs_NK = inputs.logprobs_NK
    is_proposed_NK = inputs.step.top_ids_NK == inputs.proposed_N[:, None]
    return torch.where(is_proposed_NK, logprobs_NK, logprobs_NK[:, -1:]).amax(dim=1, keepdim=True)


def _look_back(inputs: FeatureInputs, column: int) -> Tensor:
    if inputs.history_NJ2 is None:
        raise RouterError("this router looks back, and nobody kept the row's history")
    return inputs.history_NJ2[:, :, column]


def _one(hidden_size: int) -> int:
    del hidden_size
    return 1


def _top_k(hidden_size: int) -> int:
    del hidden_size
    return TOP_K


def _history(hidden_size: int) -> int:
    del hidden_size
    return HISTORY


FEATURES: Mapping[str, Feature] = {
    "hidden": Feature(
        lambda hidden_size: hidden_size,
        _hidden,
        "last hidden state after the final norm",
        torch.float16,
        needs_hidden=True,
    ),
    "token_embedding": Feature(
        lambda hidden_size: hidden_size,
        _token_embedding,
        "input embedding of the proposed token",
        torch.float16,
        needs_embedding=True,
    ),
    "top_logits": Feature(_top_k, _top_logits, f"the {TOP_K} largest logits, descending"),
    "top_logprobs": Feature(_top_k, _top_logprobs, f"the {TOP_K} largest log-probabilities (nats)"),
    "entropy": Feature(
        _one, lambda i: i.step.entropy_N[:, None], "entropy in nats, whole vocabulary"
    ),
    "margin": Feature(_one, _margin, "probability of the first token less that of the second"),
    "top_probability": Feature(_one, _top_probability, "probability of the likeliest token"),
    "proposed_logprob": Feature(_one, _proposed_logprob, "log-probability of the proposed token"),
    "logsumexp": Feature(
        _one, lambda i: i.step.logsumexp_N[:, None], "log of the sum over the vocabulary, in nats"
    ),
    "previous_entropy": Feature(
        _history,
        lambda i: _look_back(i, 0),
        f"entropy at the last {HISTORY} positions, nearest first; 0 before the first",
        needs_history=True,
    ),
    "previous_surprise": Feature(
        _history,
        lambda i: _look_back(i, 1),
        f"-log-probability of the tokens at the last {HISTORY} positions; 0 before the first",
        needs_history=True,
    ),
    "proposed_id": Feature(
        _one, lambda i: i.proposed_N[:, None], "id of the proposed token", torch.int64
    ),
    "position": Feature(
        _one, lambda i: i.position_N[:, None], "index of the token in its row", torch.int64
    ),
}


def check_names(names: Sequence[str]) -> None:
    """Refuse unknown inputs.

    Raises:
        RouterError: names the unknown one and lists the known ones.
    """
    unknown = [name for name in names if name not in FEATURES]
    if unknown:
        raise RouterError(f"unknown router input {unknown[0]!r}; known: {', '.join(FEATURES)}")


def stored_logprobs(step: StepOutput) -> Tensor:
    """Return the top log-probabilities [N, K] in the half precision in which they are stored.

    A float16 resolves a log-probability to 0.05 %, and a certain token's near 0 still finer; of a
    logit, whose size means nothing, it would lose the digits that matter.
    """
    return (step.top_logits_NK - step.logsumexp_N[:, None]).to(torch.float16)


def with_logprobs(step: StepOutput, logprobs_NK: Tensor) -> StepOutput:
    """Return `step` with its top logits replaced by what `stored_logprobs` kept of them."""
    return replace(step, top_logits_NK=logprobs_NK.float() + step.logsumexp_N[:, None])


def compute(names: Sequence[str], inputs: FeatureInputs) -> dict[str, Tensor]:
    """Return each named feature [N, W]: float32 rounded to the feature's dtype; ids int64.

    Log-probabilities are rounded as labelling stores them, so that a live feature equals a stored
    one.
    """
    if not FEATURES.keys() >= set(names):
        check_names(names)
    inputs = replace(inputs, logprobs_NK=stored_logprobs(inputs.step).float())
    values: dict[str, Tensor] = {}
    for name in names:
        feature = FEATURES[name]
        value_NW = feature.compute(inputs)
        if value_NW.dtype != feature.dtype:
            value_NW = value_NW.to(feature.dtype)
        values[name] = value_NW.float() if feature.dtype == torch.float16 else value_NW
    return values


def needs_hidden(names: Sequence[str]) -> bool:
    """Whether any of the named inputs reads hidden states."""
    return any(FEATURES[name].needs_hidden for name in names)


def needs_embedding(names: Sequence[str]) -> bool:
    """Whether any of the named inputs reads token embeddings."""
    return any(FEATURES[name].needs_embedding for name in names)


def needs_history(names: Sequence[str]) -> bool:
    """Whether any of the named inputs looks back at the row's last tokens."""
    return any(FEATURES[name].needs_history for name in names)
