"""One request as the orchestrator sees it: what is written, and what to ask for next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crossroads.decoding.request import Request, RowState
from crossroads.errors import RequestError
from crossroads.models.base import Tokenizer
from crossroads.models.remote_wire import NEVER, Order, ReservedIds, Step
from crossroads.routing.policy import IMMEDIATE, check_threshold, sends_to_large
from crossroads.types import Cause, ModelInfo, Role, TokenRecord, Trace


@dataclass(frozen=True, slots=True)
class Stretch:
    """What to ask the small model for: so many tokens, or fewer, up to the first hand-over."""

    threshold: float
    max_tokens: int


def check_served(request: Request) -> None:
    """Refuse what two servers cannot do together.

    Raises:
        RequestError: names the field.
    """
    if request.lossless or request.revise_below > 0:
        raise RequestError(
            "revision needs the large model's view of every token that it reads, which a vLLM "
            "server does not give; leave revise_below and lossless out"
        )
    if request.policy != IMMEDIATE:
        raise RequestError("the vLLM backend knows the policy immediate alone")
    if request.logprobs is not None:
        raise RequestError("the vLLM backend does not tell log-probabilities; leave logprobs out")


class RemoteRow:
    """A request's state between two calls of a server."""

    def __init__(
        self,
        request: Request,
        infos: Sequence[ModelInfo],
        tokenizer: Tokenizer,
        threshold: float,
        reserved: ReservedIds,
    ) -> None:
        """Check the request.

        Raises:
            RequestError: it cannot be served.
        """
        check_served(request)
        self.state = RowState(request, infos, tokenizer)
        self.threshold = check_threshold(
            threshold if request.threshold is None else request.threshold
        )
        self._context = min(info.context_length for info in infos)
        self._reserved = reserved
        self._by_large = 0
        self._alone = 0  # tokens since the large model was last asked
        self._read_by_large = 0  # tokens of the row that are in its cache

    @property
    def request(self) -> Request:
        """What was asked for."""
        return self.state.request

    @property
    def finished(self) -> bool:
        """Whether the row has ended."""
        return self.state.finish_reason is not None

    @property
    def left(self) -> int:
        """How many tokens may still come."""
        to_write = self.request.max_tokens - len(self.state.records)
        return min(to_write, self._context - len(self.state.tokens))

    def stretch(self) -> Stretch:
        """Return what to ask the small model for next."""
        limit = self.request.max_lag
        if (free := self._until_large_may_write()) > 0:
            return Stretch(NEVER, min(self.left, free))
        if limit is not None and self._alone >= limit:
            return Stretch(0.0, 1)
        most = self.left if limit is None else min(self.left, limit - self._alone)
        return Stretch(self.threshold, most)

    def _until_large_may_write(self) -> int:
        """Return how many tokens have to come before the large model may write one."""
        budget, share = self.request.large_budget, self.request.max_large_fraction
        if budget is not None and self._by_large >= budget:
            return self.left
        if share is None:
            return 0
        count = 0
        # Counted up, with the very comparison of the mixed loop: a division would round elsewhere.
        while (self._by_large + 1) / (len(self.state.records) + count + 1) > share:
            count += 1
            if count >= self.left:
                break
        return count

    def order(self, role: Role, threshold: float) -> Order:
        """Return how a model is to draw the row's next tokens.

        The small model has drawn at every token, the large one where it wrote.
        """
        drawn = len(self.state.records) if role is Role.SMALL else self._by_large
        prompt_length = len(self.request.prompt_ids)
        return Order(role, threshold, self.request.sampling, drawn, prompt_length, self._reserved)

    def small_wrote(self, step: Step, cause: Cause | None = None) -> TokenRecord:
        """Take the small model's proposal as the next token."""
        self._alone += 1
        return self._write(step.proposed_id, Role.SMALL, step, cause=cause)

    def large_wrote(self, token_id: int, step: Step) -> TokenRecord:
        """Take the large model's token in the place of the proposal."""
        fired = sends_to_large(step.score, self.threshold)
        cause = Cause.ROUTER if fired else Cause.MAX_LAG
        lag = len(self.state.tokens) - self._read_by_large
        self._read_by_large = len(self.state.tokens)
        self._alone = 0
        self._by_large += 1
        return self._write(token_id, Role.LARGE, step, lag, cause)

    def _write(
        self, token_id: int, writer: Role, step: Step, lag: int = 0, cause: Cause | None = None
    ) -> TokenRecord:
        record = TokenRecord(
            position=len(self.state.records),
            token_id=token_id,
            writer=writer,
            proposed_id=step.proposed_id,
            score=step.score,
            entropy=step.entropy,
            lag=lag,
            seconds=self.state.seconds,
            cause=cause,
        )
        self.state.append(record)
        return record

    def wrote_alone(self, token_id: int, role: Role) -> TokenRecord:
        """Take a token of a model that answers by itself."""
        lag = 0
        if role is Role.LARGE:
            lag = len(self.state.tokens) - self._read_by_large
            self._read_by_large = len(self.state.tokens)
            self._by_large += 1
        record = TokenRecord(
            len(self.state.records), token_id, role, lag=lag, seconds=self.state.seconds
        )
        self.state.append(record)
        return record

    def trace(self, *, alone: bool) -> Trace:
        """Return the row as a trace."""
        return self.state.trace(None if alone else self.threshold)
