"""One request as the orchestrator sees it: what is written, and what to ask for next.

It goes the way of `decoding.row.Row`, which has the models beside it. Here they have drawn their
tokens by the time that the row hears of them, and the large model is asked at each place of its
lag.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from crossroads.decoding.request import Request, RowState
from crossroads.models.base import Tokenizer
from crossroads.models.remote_wire import NEVER, Order, ReservedIds, Step
from crossroads.routing.policy import check_threshold, decide, policy_text
from crossroads.types import Cause, ModelInfo, Role, TokenRecord, Trace


@dataclass(frozen=True, slots=True)
class Stretch:
    """What to ask the small model for: so many tokens, or fewer, up to the first hand-over."""

    threshold: float
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What the large model would write at a place, and the log-probabilities that it tells there.

    Of a token that is missing, `logprobs` says that it is below all of them.
    """

    token_id: int
    logprobs: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class _Scored:
    """A proposal with its score; `policy_state` is the row's after it was considered."""

    step: Step
    policy_state: Any


@dataclass(frozen=True, slots=True)
class _Ask:
    """Why a row waits for the large model; `about` is the proposal whose place it will fill."""

    cause: Cause
    about: _Scored | None


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
        self.state = RowState(request, infos, tokenizer)
        self.threshold = check_threshold(
            threshold if request.threshold is None else request.threshold
        )
        self._context = min(info.context_length for info in infos)
        self._reserved = reserved
        self._policy = policy_text(request.policy)
        self._policy_state: Any = request.policy.start()
        self._unseen: list[_Scored] = []  # the small tokens that the large model may take back
        self._ask: _Ask | None = None
        self._proposed = 0  # tokens that the small model has drawn, those taken back included
        self._by_large = 0
        self._alone = 0  # tokens since the large model was last asked
        self._read_by_large = 0  # tokens of the row that it has seen
        self._told = 0  # records that `news` has returned

    @property
    def request(self) -> Request:
        """What was asked for."""
        return self.state.request

    @property
    def waits(self) -> bool:
        """Whether the row waits for the large model."""
        return self._ask is not None

    @property
    def finished(self) -> bool:
        """Whether the row has ended and nothing of it is in question."""
        return self.state.finish_reason is not None and not self.waits

    @property
    def left(self) -> int:
        """How many tokens may still come."""
        to_write = self.request.max_tokens - len(self.state.records)
        return min(to_write, self._context - len(self.state.tokens))

    @property
    def may_ask(self) -> bool:
        """Whether the large model may be asked anything before the row ends."""
        request = self.request
        looks = self.threshold <= 1 or request.max_lag is not None or request.revises
        return looks and self._until_large_may_write() < self.left

    @property
    def _certain(self) -> int:
        return len(self.state.records) - len(self._unseen)

    def news(self) -> Sequence[TokenRecord]:
        """Return the records that have become certain since the last call."""
        certain = len(self.state.records) if self.finished else self._certain
        fresh = self.state.records[self._told : certain]
        self._told = max(self._told, certain)
        return fresh

    def trace(self, *, alone: bool) -> Trace:
        """Return the row as a trace."""
        return self.state.trace(None if alone else self.threshold)

    # The small model's turn

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
        while (self._by_large + 1) / (self._certain + count + 1) > share:
            count += 1
            if count >= self.left:
                break
        return count

    def order(self, role: Role, threshold: float) -> Order:
        """Return how a model is to draw the row's next token, and what to tell of it.

        The small model has drawn at every token, the large one where it wrote.
        """
        request = self.request
        small, prompt_length = role is Role.SMALL, len(request.prompt_ids)
        tops = request.logprobs or 0
        judges = not small and self._unseen and not request.lossless
        return Order(
            role,
            threshold,
            request.sampling,
            self._proposed if small else self._by_large,
            prompt_length,
            self._reserved,
            self._policy,
            self._policy_state,
            max(tops, request.proposals or 0) if small else tops,
            tuple(self.state.tokens[prompt_length:]) if judges else (),
        )

    def decided(self, step: Step) -> Step:
        """Return the step of a plugin that hands nothing over as one that obeys `stretch`."""
        threshold = self.stretch().threshold
        decision = decide(self.request.policy, self._policy_state, step.score, threshold)
        return replace(step, handed_over=decision.to_large)

    def consider(self, step: Step) -> None:
        """Take the small model's proposal as the row's next token, or wait for the large model.

        Effects: a row that ends with tokens that the large model has to see first waits, too.
        """
        request = self.request
        revisable = request.revises and not self._until_large_may_write()
        decision = decide(request.policy, self._policy_state, step.score, self.threshold)
        self._policy_state = decision.state
        self._proposed += 1
        scored = _Scored(step, decision.state)
        if step.handed_over:
            self._ask = _Ask(Cause.ROUTER if decision.to_large else Cause.MAX_LAG, scored)
            return
        self._small_writes(scored)
        self._alone += 1
        if revisable:
            self._unseen.append(scored)
            if self.state.finish_reason is not None:
                self._ask = _Ask(Cause.FINAL, None)

    # The large model's turn

    def agree(self) -> None:
        """Go on as if the large model had answered with the proposal that the row waits for."""
        assert self._ask is not None
        assert self._ask.about is not None
        step = self._ask.about.step
        self.settle([Answer(step.proposed_id, step.logprobs)])

    def fork(self) -> RemoteRow:
        """Return a row that goes its own way from here."""
        other = copy(self)
        other.state, other._unseen = self.state.fork(), list(self._unseen)
        return other

    @property
    def in_question(self) -> list[int]:
        """The row's tokens and the proposal, if any, that the large model is asked about."""
        about = None if self._ask is None else self._ask.about
        return [*self.state.tokens, *([] if about is None else [about.step.proposed_id])]

    @property
    def places(self) -> list[int]:
        """At which lengths of the row the large model is asked, in order."""
        end, about = len(self.state.tokens), self._ask is not None and self._ask.about is not None
        return list(range(end - len(self._unseen), end + about))

    def refused(self, answers: Sequence[Answer]) -> int | None:
        """Return which of the unseen tokens is the first to be taken back, by answers at `places`.

        None: none of those of which there is an answer. See `decoding.revision.check`.
        """
        for place, (scored, answer) in enumerate(zip(self._unseen, answers, strict=False)):
            if self._refuses(scored.step.proposed_id, answer):
                return place
        return None

    def _refuses(self, token_id: int, answer: Answer) -> bool:
        request = self.request
        own = answer.token_id == token_id
        if request.lossless:
            return not own
        if math.exp(answer.logprobs.get(token_id, -math.inf)) >= request.revise_below:
            return False
        # What the large model itself would write there is no mistake, however doubtful it is.
        return not (request.sampling.greedy and own)

    def settle(self, answers: Sequence[Answer] | None) -> None:
        """Take the large model's answers, up to the first that takes a token back.

        None: do without them; what the small model wrote or proposes stands.

        Effects: every token that remains is certain.
        """
        assert self._ask is not None
        if answers is None:
            self._go_on(self._ask)
            return
        ask, unseen = self._ask, self._unseen
        place = self.refused(answers)
        read = len(self.state.tokens) - (ask.about is None)
        lag = read - self._read_by_large
        self._ask, self._unseen, self._alone, self._read_by_large = None, [], 0, read
        if place is not None:
            discarded = len(unseen) - place - 1 + (ask.about is not None)
            self.state.crop(len(self.state.records) - len(unseen) + place)
            self._read_by_large = min(read, len(self.state.tokens))
            self._policy_state = unseen[place].policy_state
            self._large_writes(unseen[place], answers[place], Cause.REVISION, lag, discarded)
        elif ask.about is None:
            self.state.records[-1] = replace(self.state.records[-1], lag=lag, cause=ask.cause)
        elif self.request.lossless and answers[-1].token_id == ask.about.step.proposed_id:
            self._small_writes(ask.about, ask.cause, lag)
        else:
            self._large_writes(ask.about, answers[-1], ask.cause, lag)

    def _go_on(self, ask: _Ask) -> None:
        self._ask, self._unseen = None, []
        if ask.about is not None:
            self._alone += 1
            self._small_writes(ask.about, Cause.UNAVAILABLE)
        else:
            self.state.records[-1] = replace(self.state.records[-1], cause=Cause.UNAVAILABLE)

    # Both

    def _small_writes(self, scored: _Scored, cause: Cause | None = None, lag: int = 0) -> None:
        step = scored.step
        written = Answer(step.proposed_id, step.logprobs)
        self._append(self._record(written, Role.SMALL, lag, cause), step)

    def _large_writes(
        self, scored: _Scored, answer: Answer, cause: Cause, lag: int, discarded: int = 0
    ) -> None:
        self._by_large += 1
        record = self._record(answer, Role.LARGE, lag, cause)
        self._append(replace(record, discarded=discarded), scored.step)

    def _append(self, record: TokenRecord, step: Step) -> None:
        """Append a record that stands in the place of a proposal."""
        count = self.request.proposals
        self.state.append(
            replace(
                record,
                proposed_id=step.proposed_id,
                score=step.score,
                entropy=step.entropy,
                proposals=None if count is None else _tops(step.logprobs, count),
            )
        )

    def wrote_alone(self, answer: Answer, role: Role) -> None:
        """Take a token of a model that answers by itself."""
        lag = 0
        if role is Role.LARGE:
            lag = len(self.state.tokens) - self._read_by_large
            self._read_by_large = len(self.state.tokens)
            self._by_large += 1
        else:
            self._proposed += 1
        self.state.append(self._record(answer, role, lag))

    def _record(
        self, answer: Answer, writer: Role, lag: int, cause: Cause | None = None
    ) -> TokenRecord:
        count = self.request.logprobs
        return TokenRecord(
            position=len(self.state.records),
            token_id=answer.token_id,
            writer=writer,
            lag=lag,
            seconds=self.state.seconds,
            cause=cause,
            logprob=None if count is None else answer.logprobs[answer.token_id],
            top_logprobs=None if count is None else _tops(answer.logprobs, count),
        )


def _tops(logprobs: Mapping[int, float], count: int) -> tuple[tuple[int, float], ...]:
    """Return the likeliest tokens, likeliest first; equal ones by id, as everywhere."""
    return tuple(sorted(logprobs.items(), key=lambda pair: (-pair[1], pair[0]))[:count])
