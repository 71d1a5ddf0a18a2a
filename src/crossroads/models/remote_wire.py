"""What travels between the orchestrator and the plugin, inside vLLM's own requests and replies.

A request says in `vllm_xargs` how the small model is to draw and from which score the large one
writes. A reply has only tokens and log-probabilities to say something with, so the plugin puts a
row of its own in place of the distribution: the chosen token highest, the router's numbers as the
"logits" of ids that no text uses, and log-probabilities as those of the tokens that they are of.
vLLM then picks the token and reports the numbers, as it would any others; it has to be started
with `--logprobs-mode processed_logits`, or `processed_logprobs`, which adds a constant to a row and
lets it tell true log-probabilities, too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from crossroads.errors import EngineError, PairError, RequestError
from crossroads.models.base import Tokenizer
from crossroads.sampling import SamplingParams
from crossroads.types import Role

XARG = "crossroads"
ALWAYS = 4
"""Entries of every row that carry something."""

NEVER = 2.0
"""A threshold above every score: the model that is asked goes on alone."""

_CHOSEN = 64.0  # above all else
_PROPOSED_FROM, _DOUBTFUL = 32.0, -30.0  # 32 + log-probability, above every score in [0, 1]
_ENTROPY_FROM = -1.0  # entropies stand below every score: -1 - entropy
_ROUNDED = 1e-5  # float32 sums of such numbers
_MOST = 2**31
_LEAST = -9000.0
"""The lowest log-probability that is told; vLLM says -9999 of what no token can have."""


@dataclass(frozen=True, slots=True)
class ReservedIds:
    """Ids that neither tokenizer nor model uses.

    hand_over: stands where the large model is to write. score, entropy: of whose "logits" the
    reply tells.
    """

    hand_over: int
    score: int
    entropy: int


def reserve(tokenizer: Tokenizer, vocab_size: int) -> ReservedIds:
    """Return three ids that stand for nothing.

    Raises:
        PairError: the vocabulary has fewer.
    """
    pieces = tokenizer.pieces()
    spare = [i for i in range(vocab_size) if i >= len(pieces) or pieces[i] is None]
    if len(spare) < 3:
        raise PairError(
            f"the vLLM plugin needs 3 ids that stand for no text, and of {vocab_size} in the small "
            f"model's vocabulary only {len(spare)} do not; use the transformers engine"
        )
    return ReservedIds(*spare[-3:])


@dataclass(frozen=True, slots=True)
class Order:
    """How a model is to write one row, until the router fires.

    role: which random stream it draws from. drawn: numbers that the row has used of it before.
    prompt_length: how many of the tokens sent are the user's prompt; the rest was generated.
    policy: its text; state: what it remembers of the row. tops: of how many of the likeliest tokens
    the log-probabilities are told, besides the proposal's. judged: the row's tokens after the
    user's prompt, if that of the one which stands at the next place is to be told, too.
    """

    role: Role
    threshold: float
    sampling: SamplingParams
    drawn: int
    prompt_length: int
    reserved: ReservedIds
    policy: str = "immediate"
    state: tuple[float, ...] | None = None
    tops: int = 0
    judged: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what would stop the engine that is to obey: other rows are at work there.

        Raises:
            ValueError: names the field.
        """
        whole = {
            "drawn": [self.drawn],
            "prompt_length": [self.prompt_length],
            "tops": [self.tops],
            "judged": self.judged,
            "reserved": astuple(self.reserved),
        }
        for name, numbers in whole.items():
            if not all(type(number) is int and 0 <= number < _MOST for number in numbers):
                raise ValueError(f"{name} must be whole numbers from 0 on, got {numbers}")
        if len(set(astuple(self.reserved))) < len(fields(ReservedIds)):
            raise ValueError(f"reserved must be different ids, got {self.reserved}")
        numbers = (self.threshold, *(self.state or ()))  # a state may hold true and false
        if not all(isinstance(number, int | float) for number in numbers):
            raise ValueError(
                f"threshold and state must be numbers, got {self.threshold!r}, {self.state}"
            )
        if not isinstance(self.policy, str):
            raise ValueError(f"policy must be a text, got {self.policy!r}")

    @property
    def largest_id(self) -> int:
        """The largest token id that it names; a model whose vocabulary is smaller cannot obey."""
        reserved = self.reserved
        return max(reserved.hand_over, reserved.score, reserved.entropy, *self.judged)

    @property
    def reported(self) -> int:
        """Entries of a row that carry something; a request asks for so many log-probabilities."""
        return ALWAYS + self.tops + bool(self.judged)

    def to_xargs(self) -> dict[str, str]:
        """Return the value of `vllm_xargs`."""
        return {XARG: json.dumps(asdict(self))}

    @classmethod
    def from_xargs(cls, xargs: Mapping[str, Any] | None) -> Order | None:
        """Return the order in a request's arguments; None if it has none.

        Raises:
            ValueError: there is one and it makes no sense.
        """
        if not xargs or XARG not in xargs:
            return None
        try:
            value = json.loads(xargs[XARG])
            sampling = SamplingParams(**value.pop("sampling"))
            reserved = ReservedIds(**value.pop("reserved"))
            role = Role(value.pop("role"))
            value["judged"] = tuple(value["judged"])
            value["state"] = None if value["state"] is None else tuple(value["state"])
            return cls(sampling=sampling, reserved=reserved, role=role, **value)
        except (TypeError, ValueError, LookupError, AttributeError, RequestError) as error:
            raise ValueError(
                f"{XARG} in vllm_xargs is no order of this version: {error}"
            ) from error


@dataclass(frozen=True, slots=True)
class Step:
    """What the plugin tells of one position: the model's proposal and what became of it.

    logprobs: of the proposal, of the likeliest tokens and of the judged one, by id, in nats.
    """

    token_id: int
    proposed_id: int
    score: float
    entropy: float
    handed_over: bool
    logprobs: Mapping[int, float]


def fill(row_V: Tensor, step: Step, reserved: ReservedIds) -> None:
    """Write a step into a row of logits, in place.

    The proposal's log-probability stands at the id of the hand-over, or, where that is chosen, at
    the proposal's own id, raised so that it is seen to be the proposal.
    """
    values = {i: max(value, _LEAST) for i, value in step.logprobs.items()}
    own = values[step.proposed_id]
    if step.handed_over:
        values[step.proposed_id] = _PROPOSED_FROM + max(own, _DOUBTFUL)
    else:
        values[reserved.hand_over] = own
    values[step.token_id] = _CHOSEN
    values[reserved.score] = step.score
    values[reserved.entropy] = _ENTROPY_FROM - step.entropy
    row_V.fill_(-float("inf"))
    ids_M = torch.tensor(list(values), device=row_V.device)
    row_V[ids_M] = torch.tensor(list(values.values()), dtype=row_V.dtype, device=row_V.device)


def read_step(token_id: int, values: Mapping[int, float], reserved: ReservedIds) -> Step:
    """Return the step that `fill` wrote, from the values that vLLM reports for a position.

    Raises:
        EngineError: the values are not the plugin's.
    """
    missing = {reserved.score, reserved.entropy, reserved.hand_over, token_id} - values.keys()
    if missing or not _is_ours(token_id, values):
        raise EngineError(
            "the server answers without the Crossroads plugin; start it with "
            "crossroads-lm installed beside vLLM, CROSSROADS_ROUTER set, and "
            "--logprobs-mode processed_logits"
        )
    shift = _CHOSEN - values[token_id]  # 0 unless they are log-probabilities
    values = {i: value + shift for i, value in values.items() if value >= _LEAST - shift}
    handed_over = token_id == reserved.hand_over
    carriers = {token_id, reserved.hand_over, reserved.score, reserved.entropy}
    told = {i: value for i, value in values.items() if i not in carriers}
    proposed_id = max(told, key=lambda i: told[i]) if handed_over else token_id
    raised = told[proposed_id] - _PROPOSED_FROM if handed_over else values[reserved.hand_over]
    return Step(
        token_id=token_id,
        proposed_id=proposed_id,
        score=values[reserved.score],
        entropy=_ENTROPY_FROM - values[reserved.entropy],
        handed_over=handed_over,
        logprobs={**told, proposed_id: raised},
    )


def _is_ours(token_id: int, values: Mapping[int, float]) -> bool:
    """Return whether the values are a row of `fill`, or its log-probabilities, which add up to 1.

    Of a true distribution the few values that a request asks for do not.
    """
    if values[token_id] == _CHOSEN:
        return True
    return abs(sum(map(math.exp, values.values())) - 1) < _ROUNDED
