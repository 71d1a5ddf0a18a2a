"""Models behind servers that batch by themselves: they are given whole texts instead of steps.

Shapes: N positions of an answer, K top entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from crossroads.errors import EngineError
from crossroads.models.base import CausalLM
from crossroads.sampling import SamplingParams
from crossroads.types import Role


@dataclass(frozen=True, slots=True)
class Passage:
    """A text that a model is to go on with, by at most `max_tokens` tokens.

    prompt_length: how many of `token_ids` were there before anything was generated. stop_ids:
    after one of them the model ends. row: what chooses among several servers; texts with the same
    beginning belong to the same one. role: the random stream.
    """

    token_ids: tuple[int, ...]
    max_tokens: int
    role: Role
    sampling: SamplingParams
    prompt_length: int
    stop_ids: tuple[int, ...] = ()
    row: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Written:
    """The next token of a passage, or why there is none; `number` is the one that `begin` gave it.

    A passage fails where its server does, or ends although nobody stopped it.
    """

    number: int
    token_id: int | None
    error: EngineError | None = None


class Writing(Protocol):
    """Passages that a model writes at the same time. To be used by one thread."""

    def begin(self, passage: Passage) -> int:
        """Let the model go on with a passage; return its number.

        Raises:
            RequestError: it cannot be drawn there as it asks.
        """

    def next(self, seconds: float | None = None) -> Written | None:
        """Wait for the next token of any passage that has begun and was not stopped.

        None: there was none within so many seconds. A passage that failed is stopped.
        """

    def stop(self, number: int) -> None:
        """Write no more of a passage: what came of it in the meantime is thrown away."""

    def close(self) -> None:
        """Stop all of them, and return once no request is open. Twice is harmless."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt and an answer to it, of at least one token each."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model says of an answer: its tokens' log-probabilities, and the likeliest ones there.

    The top entries are sorted, likeliest first, equal ones by id.
    """

    logprob_N: Tensor
    top_ids_NK: Tensor
    top_logprobs_NK: Tensor


@runtime_checkable
class ServedLM(CausalLM, Protocol):
    """A CausalLM that writes and reads whole texts, many at a time."""

    def draws_as_we_do(self) -> bool:
        """Return whether sampled tokens are those that the model would draw in the process.

        If not, they come from the server's own random numbers.
        """

    def writing(self, *, insist: bool = True) -> Writing:
        """Return room for passages; close it in the end. insist: as in `Want`."""

    def read(self, answers: Iterable[Answer], top_k: int, ahead: int) -> Iterator[Reading]:
        """Yield what the model says of each answer, in order.

        Up to `ahead` answers are asked about before the first of them is needed.

        Raises:
            EngineError: no server answers, or it tells less than that.
        """


@runtime_checkable
class ReadsAtOnce(CausalLM, Protocol):
    """A CausalLM of which each `extend` reads its rows from their beginning.

    A text is best given in one piece, and several texts at once. It bounds its own memory.
    """

    reads_at_once: bool
