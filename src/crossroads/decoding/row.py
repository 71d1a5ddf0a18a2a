"""One request in the mixed loop: its tokens, a cache per model, and what is still in question.

A row that revises keeps small tokens back until the large model has looked at them; every other
row's tokens are certain as soon as they are written. Nothing here calls a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from crossroads.decoding.candidates import Candidates, candidates
from crossroads.decoding.kept import KeptCaches
from crossroads.decoding.request import Request, RowState
from crossroads.decoding.revision import Drawn, Refusal, check, logprob, tops
from crossroads.models.base import CausalLM, KVCache, StepOutput, Tokenizer
from crossroads.routing.history import RowHistory, surprise
from crossroads.routing.policy import check_threshold, decide
from crossroads.sampling import draw, probabilities, row_generator, sample
from crossroads.types import Cause, FinishReason, Role, TokenRecord, Trace


@dataclass(frozen=True, slots=True)
class Proposal:
    """A token that the small model proposes, and its outputs there (one position)."""

    drawn: Drawn
    output: StepOutput


@dataclass(frozen=True, slots=True)
class _Scored:
    """A proposal with its score; `policy_state` is the row's after it was considered."""

    proposal: Proposal
    score: float
    entropy: float
    policy_state: Any


@dataclass(frozen=True, slots=True)
class _Ask:
    """Why a row waits for the large model; `about` is the proposal whose place it will fill.

    read: how many of the row's tokens the large model had read before.
    """

    cause: Cause
    about: _Scored | None
    read: int


class Row:
    """A request's state between steps."""

    def __init__(
        self,
        index: int,
        request: Request,
        models: tuple[CausalLM, CausalLM],
        tokenizer: Tokenizer,
        threshold: float,
        *,
        looks_back: bool = False,
        kept: KeptCaches | None = None,
    ) -> None:
        """Check the request and take a cache of each of the models, small and large.

        Raises:
            RequestError: the request cannot be served. EngineError: no room.
        """
        small, large = models
        self.index = index
        self.state = RowState(request, (small.info, large.info), tokenizer)
        self.threshold = check_threshold(
            threshold if request.threshold is None else request.threshold
        )
        self.history = RowHistory() if looks_back else None
        self._generators = {role: row_generator(request.sampling.seed, role) for role in Role}
        self._policy_state: Any = request.policy.start()
        self._unseen: list[_Scored] = []  # the small tokens that the large model may take back
        self._ask: _Ask | None = None
        self._alone = 0  # tokens since the large model was last asked
        self._by_large = 0
        self._told = 0  # records that `news` has returned
        self._kept = KeptCaches() if kept is None else kept
        self.small: KVCache = self._kept.take(Role.SMALL, small, request.prompt_ids)
        try:
            self.large: KVCache = self._kept.take(Role.LARGE, large, request.prompt_ids)
        except BaseException:
            self.small.release()
            raise

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

    def unread(self, cache: KVCache) -> list[int]:
        """Return the tokens of the row that `cache` has not seen: its lag."""
        return self.state.tokens[cache.length :]

    def news(self) -> Sequence[TokenRecord]:
        """Return the records that have become certain since the last call."""
        certain = len(self.state.records) - (0 if self.finished else len(self._unseen))
        fresh = self.state.records[self._told : certain]
        self._told = max(self._told, certain)
        return fresh

    def trace(self) -> Trace:
        """Return the row as a trace."""
        return self.state.trace(self.threshold)

    def leave(self, reason: FinishReason) -> None:
        """End the row before its end and give both caches back; what is in question goes."""
        if not self.finished:
            self.state.crop(len(self.state.records) - len(self._unseen))
            self._ask, self._unseen = None, []
            self.state.finish_reason = reason
        self.release()

    def release(self) -> None:
        """Give both caches back; after an engine's error nobody knows what they hold."""
        if self.state.finish_reason is FinishReason.ERROR:
            self.small.release()
            self.large.release()
            return
        self._kept.give_back(Role.SMALL, self.small, self.state.tokens)
        self._kept.give_back(Role.LARGE, self.large, self.state.tokens)

    # The small model's turn

    def propose(self, output: StepOutput) -> Proposal:
        """Return the small model's proposal, from its output at the row's last token.

        Effects: a sampled row draws one number.
        """
        sampling, generator = self.request.sampling, self._generators[Role.SMALL]
        own = self._candidates(output, 0)
        if sampling.greedy or not self.request.lossless:
            token_id = sample(own.best_id, own.logits_V, sampling, generator)
            return Proposal(Drawn(token_id), output)
        assert own.logits_V is not None
        from_V = probabilities(own.logits_V, sampling)
        return Proposal(Drawn(draw(from_V, generator), from_V), output)

    def consider(self, proposal: Proposal, score: float, entropy: float) -> None:
        """Take the proposal as the row's next token, or wait for the large model.

        Effects: a row that ends with tokens that the large model has to see first waits, too.
        """
        revisable = self.request.revises and not self._large_is_spent
        cause = self._cause(score)
        scored = _Scored(proposal, score, entropy, self._policy_state)
        if cause is not None:
            self._ask = _Ask(cause, scored, self.large.length)
            return
        self._write(scored, _small_token(scored))
        self._alone += 1
        if revisable:
            self._unseen.append(scored)
            if self.state.finish_reason is not None:
                self._ask = _Ask(Cause.FINAL, None, self.large.length)

    def _cause(self, score: float) -> Cause | None:
        decision = decide(self.request.policy, self._policy_state, score, self.threshold)
        self._policy_state = decision.state
        if self._large_is_spent:
            return None
        if decision.to_large:
            return Cause.ROUTER
        limit = self.request.max_lag
        return Cause.MAX_LAG if limit is not None and self._alone >= limit else None

    @property
    def _large_is_spent(self) -> bool:
        """Whether a token of the large model's would break the request's limits."""
        budget, share = self.request.large_budget, self.request.max_large_fraction
        if budget is not None and self._by_large >= budget:
            return True
        # A revision may cut the row back to what is certain and write there: the worst case.
        certain = len(self.state.records) - len(self._unseen)
        return share is not None and (self._by_large + 1) / (certain + 1) > share

    # The large model's turn

    @property
    def to_read(self) -> list[int]:
        """The tokens that the large model must read to answer."""
        lag = self.unread(self.large)
        # What would follow a row's last token is nobody's question.
        return lag[:-1] if self._ask is not None and self._ask.about is None else lag

    @property
    def outputs(self) -> int:
        """At how many of those tokens, the last ones, its outputs are needed."""
        return len(self._unseen) + (self._ask is not None and self._ask.about is not None)

    def settle(self, output: StepOutput) -> None:
        """Take the large model's answer: its `outputs` positions, once it has read all `to_read`.

        Effects: every token that remains is certain.
        """
        assert self._ask is not None
        ask, unseen = self._ask, self._unseen
        lag = self.large.length - ask.read
        self._ask, self._unseen, self._alone = None, [], 0
        if refusal := self._refusal(unseen, ask, output):
            self._take_back(unseen, refusal, output, lag, dropped=ask.about is not None)
        elif ask.about is None:
            self.state.records[-1] = replace(self.state.records[-1], lag=lag, cause=ask.cause)
        else:
            place = len(unseen)
            self._write(ask.about, self._token(ask.about, output, place), ask.cause, lag)

    def settle_alone(self) -> None:
        """Go on with the small model's own token, since no large model answers.

        Effects: every token that remains is certain, although the large model never saw it.
        """
        assert self._ask is not None
        about = self._ask.about
        self._ask, self._unseen, self._alone = None, [], 0
        if about is None:
            self.state.records[-1] = replace(self.state.records[-1], cause=Cause.UNAVAILABLE)
        else:
            self._write(about, _small_token(about), Cause.UNAVAILABLE)

    def _refusal(self, unseen: Sequence[_Scored], ask: _Ask, output: StepOutput) -> Refusal | None:
        drawn = [scored.proposal.drawn for scored in unseen]
        if not drawn:
            return None
        before = self.state.tokens[: len(self.state.tokens) - len(drawn)]
        return check(drawn, output, self.request, self._generators[Role.LARGE], before)

    def _take_back(
        self,
        unseen: Sequence[_Scored],
        refusal: Refusal,
        output: StepOutput,
        lag: int,
        *,
        dropped: bool,
    ) -> None:
        """Cut the row at the refused token and write the large model's there."""
        place, refused = refusal.place, unseen[refusal.place]
        self._cut(len(self.state.records) - len(unseen) + place)
        self._policy_state = refused.policy_state
        token = _Token(refusal.token_id, Role.LARGE, output, place)
        self._write(refused, token, Cause.REVISION, lag, len(unseen) - place - 1 + dropped)

    def _cut(self, records: int) -> None:
        """Take back all but the first `records` generated tokens, in text, history and caches."""
        self.state.crop(records)
        if self.history is not None:
            self.history.crop(records)
        for cache in (self.small, self.large):
            cache.crop(min(cache.length, len(self.state.tokens)))

    def _token(self, about: _Scored, output: StepOutput, place: int) -> _Token:
        """Return what comes in the place of a proposal of which the large model was asked."""
        request, generator = self.request, self._generators[Role.LARGE]
        part = output.slice(place, place + 1)
        if request.lossless:
            # Drawing from the large model here would favour tokens that the router lets pass.
            drawn = [about.proposal.drawn]
            refusal = check(drawn, part, request, generator, self.state.tokens)
            if refusal is None:
                return _small_token(about)
            return _Token(refusal.token_id, Role.LARGE, output, place)
        own = self._candidates(part, 0)
        token_id = sample(own.best_id, own.logits_V, request.sampling, generator)
        return _Token(token_id, Role.LARGE, output, place)

    def _candidates(self, output: StepOutput, place: int) -> Candidates:
        prompt_length = len(self.request.prompt_ids)
        return candidates(output, place, self.request.sampling, self.state.tokens, prompt_length)

    # Both

    def _write(
        self,
        scored: _Scored,
        token: _Token,
        cause: Cause | None = None,
        lag: int = 0,
        discarded: int = 0,
    ) -> None:
        """Append a record: `token` in the place of a proposal."""
        self._by_large += token.writer is Role.LARGE
        if self.history is not None:
            seen = scored.proposal.output
            value = float(surprise(seen, seen.top_ids_NK.new_tensor([token.token_id]))[0])
            self.history.append(scored.entropy, value)
        count, proposals = self.request.logprobs, self.request.proposals
        self.state.append(
            TokenRecord(
                position=len(self.state.records),
                token_id=token.token_id,
                writer=token.writer,
                proposed_id=scored.proposal.drawn.token_id,
                score=scored.score,
                entropy=scored.entropy,
                lag=lag,
                seconds=self.state.seconds,
                cause=cause,
                discarded=discarded,
                logprob=None if count is None else token.logprob,
                top_logprobs=None if count is None else tops(token.output, token.place, count),
                proposals=None if proposals is None else tops(scored.proposal.output, 0, proposals),
            )
        )


@dataclass(frozen=True, slots=True)
class _Token:
    """A token, who wrote it, and where its distribution is."""

    token_id: int
    writer: Role
    output: StepOutput
    place: int

    @property
    def logprob(self) -> float:
        return logprob(self.output, self.place, self.token_id)


def _small_token(scored: _Scored) -> _Token:
    proposal = scored.proposal
    return _Token(proposal.drawn.token_id, Role.SMALL, proposal.output, 0)
