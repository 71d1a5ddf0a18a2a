"""One model alone that is behind servers: a request for each text, and the servers batch.

What it writes is what the loops that ask token by token would have written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Protocol, TypeVar

from crossroads.decoding.request import Request, RowState
from crossroads.models.base import CausalLM, Tokenizer
from crossroads.models.served import Passage, ServedLM
from crossroads.sampling import SamplingParams
from crossroads.types import Role, TokenRecord, Trace

SERVER = "server"


def drawn_by(model: CausalLM, params: SamplingParams) -> dict[str, str]:
    """Return what a run folder pins of who draws a model's tokens, beside the sampling itself.

    Nothing where they are what the model writes in the process; `{"drawn_by": "server"}` where a
    server draws them by its own random numbers. So neither run goes on as the other.
    """
    if params.greedy or not isinstance(model, ServedLM) or model.draws_as_we_do():
        return {}
    return {"drawn_by": SERVER}


class Job(Protocol):
    """A passage and where it ends."""

    @property
    def passage(self) -> Passage:
        """What is to be gone on with."""

    def add(self, token_id: int) -> bool:
        """Take the next token; return whether the job ends with it."""


JobT = TypeVar("JobT", bound=Job)


def write_jobs(
    model: ServedLM,
    jobs: Iterable[JobT],
    most: int,
    on_token: Callable[[int], None] | None = None,
) -> Iterator[JobT]:
    """Yield jobs as they end, `most` at a time; the next one is taken when there is room.

    `on_token` hears of every token, with the number of open jobs.

    Raises:
        EngineError: a server failed.
    """
    waiting = iter(jobs)
    running: dict[int, JobT] = {}
    with closing(model.writing()) as writing:
        while True:
            for job in islice(waiting, most - len(running)):
                running[writing.begin(job.passage)] = job
            if not running:
                return
            written = writing.next()
            assert written is not None
            if written.error is not None:
                raise written.error
            assert written.token_id is not None
            job = running[written.number]
            ended = job.add(written.token_id)
            if on_token is not None:
                on_token(len(running))
            if ended:
                writing.stop(written.number)
                yield running.pop(written.number)


def generate_served(
    model: ServedLM,
    role: Role,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    max_rows: int,
    on_token: Callable[[int], None] | None,
) -> Iterator[tuple[int, Trace]]:
    """Yield (index of the request, its trace); see `single.generate_alone`."""
    jobs = (ServedRow(i, request, model, role, tokenizer) for i, request in enumerate(requests))
    for row in write_jobs(model, jobs, max_rows, on_token):
        yield row.index, row.state.trace()


class ServedRow:
    """A request that a model answers by itself."""

    def __init__(
        self, index: int, request: Request, model: ServedLM, role: Role, tokenizer: Tokenizer
    ) -> None:
        """Check the request; see `RowState`."""
        self.index = index
        self._role = role
        self.state = RowState(request, [model.info], tokenizer, elsewhere=True)
        prompt = request.prompt_ids
        self.passage = Passage(
            token_ids=prompt,
            max_tokens=min(request.max_tokens, model.info.context_length - len(prompt)),
            role=role,
            sampling=request.sampling,
            prompt_length=len(prompt),
            stop_ids=(*model.info.eos_ids, *request.stop_ids),
            row=prompt,
        )

    def add(self, token_id: int) -> bool:
        """Write a token, as `SingleLoop` records it; return whether the row ends with it."""
        state = self.state
        lag = 0
        if self._role is Role.LARGE:
            lag = 1 if state.records else len(state.tokens)
        state.append(
            TokenRecord(len(state.records), token_id, self._role, lag=lag, seconds=state.seconds)
        )
        return state.finish_reason is not None
