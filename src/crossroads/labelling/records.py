"""What flows between the labelling stages: responses, continuations, and the cases of a judge."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from crossroads.types import FinishReason, Problem

_KEY = re.compile(r"(.*)#(\d+)(?:@(\d+)(?:/(\d+))?)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Response:
    """One answer of the large model, its ids as generated; an ending eos is one of them.

    `sample` numbers the answers to one problem, from 0.
    """

    problem_id: str
    sample: int
    domain: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    finish_reason: FinishReason
    text: str

    @property
    def key(self) -> str:
        """What names the response among all of a run."""
        return response_key(self.problem_id, self.sample)

    @property
    def finished(self) -> bool:
        """Whether the model ended its answer itself."""
        return self.finish_reason is not FinishReason.LENGTH

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, with the key."""
        return {"key": self.key, **asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Response:
        """Return what `to_json` wrote."""
        fields = {name: value[name] for name in value if name != "key"}
        return cls(
            **{
                **fields,
                "prompt_ids": tuple(fields["prompt_ids"]),
                "response_ids": tuple(fields["response_ids"]),
                "finish_reason": FinishReason(fields["finish_reason"]),
            }
        )


@dataclass(frozen=True, slots=True)
class Span:
    """A short future from one position on, cut by the sentence rule.

    `complete` is False when a limit of tokens cut it before its sentences had ended.
    """

    token_ids: tuple[int, ...]
    text: str
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One position where the small model proposes another token than the large model wrote.

    `position` is an index into the response. Log-probabilities are the large model's, in nats.
    """

    position: int
    real_id: int
    small_id: int
    logprob_real: float
    logprob_small: float
    logprob_best: float


@dataclass(frozen=True, slots=True)
class Case:
    """One mismatch with all that a judge may look at.

    `context` is the response's text before the position. `reference` is what the large model wrote
    from the position on, and `continuations` what it wrote after the small model's token (which is
    their first); both are cut by the same rule. Without the continue stage there are none.
    """

    problem: Problem
    response: Response
    mismatch: Mismatch
    context: str
    reference: Span
    continuations: tuple[Span, ...] = ()

    @property
    def id(self) -> str:
        """What names the mismatch among all of a run."""
        return case_id(self.response.key, self.mismatch.position)


def response_key(problem_id: str, sample: int) -> str:
    """Return the name of a response."""
    return f"{problem_id}#{sample}"


def case_id(key: str, position: int) -> str:
    """Return the name of a mismatch."""
    return f"{key}@{position}"


def problem_of(key: str) -> tuple[str, tuple[int, ...]]:
    """Return whose a record is, and its place among the problem's: sample, position, number.

    `key` is a response's, a mismatch's or a continuation's.

    Raises:
        ValueError: it is none of them.
    """
    match = _KEY.fullmatch(key)
    if match is None:
        raise ValueError(f"{key!r} names no response, mismatch or continuation")
    problem_id, *numbers = match.groups()
    return problem_id, tuple(int(number) for number in numbers if number is not None)
