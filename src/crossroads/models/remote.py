"""A large model behind vLLM servers, as one more engine of the in-process loop.

It tells a few of the likeliest tokens at each position, and neither hidden states nor whole
distributions: in the loops that ask token by token, greedy decoding, log-probabilities and revision
work, and sampling is refused. Its caches are the tokens; the servers' prefix caches hold what they
mean. Whole texts (`served.ServedLM`) are one request each, sampled ones, too.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace

import torch
from torch import Tensor

from crossroads.errors import EngineError, RequestError
from crossroads.models.base import MOST_TOP, KVCache, StepOutput, Want, check_extend
from crossroads.models.event_loop import EventLoopThread
from crossroads.models.remote_client import VllmClient
from crossroads.models.remote_drawing import has_plugin, ordered, plain
from crossroads.models.remote_wire import NEVER, Order, ReservedIds, read_step
from crossroads.models.remote_writing import Drawing, RemoteWriting
from crossroads.models.served import Answer, Passage, Reading
from crossroads.models.server_pool import Patience
from crossroads.models.token_cache import TokenModel
from crossroads.types import ModelInfo

ENGINE = "remote"


class RemoteLM(TokenModel):
    """A CausalLM of which the weights are elsewhere. All rows of one `extend` are asked at once."""

    def __init__(
        self,
        info: ModelInfo,
        urls: Sequence[str],
        patience: Patience = Patience(),  # noqa: B008
        reserved: ReservedIds | None = None,
    ) -> None:
        """Connect.

        info: what the servers are said to serve; the context becomes theirs if that is shorter.
        reserved: ids that stand for nothing, by which the plugin tells of itself; None: there are
        none, and the servers draw by their own random numbers.

        Raises:
            EngineError: a server does not answer. ConfigError: an address that is none.
        """
        self._reserved = reserved
        self._has_plugin: bool | None = False if reserved is None else None
        self._client = VllmClient(urls, patience=patience)
        self._thread = EventLoopThread("remote")
        try:
            found = self._thread.wait(self._client.connect())
        except BaseException:
            self.close()
            raise
        context = min(info.context_length, found.context_length or info.context_length)
        self._room = found.context_length or context
        self._info = replace(info, engine=ENGINE, context_length=context, most_top=MOST_TOP)

    def extend(
        self,
        caches: Sequence[KVCache],
        new_tokens: Sequence[Sequence[int]],
        want: Want = Want(),  # noqa: B008
    ) -> StepOutput:
        """Append each row's tokens and return outputs; see CausalLM.

        Raises:
            RequestError: as CausalLM says. EngineError: no server answers, or `want` is more than
            a server tells; no cache has changed then.
        """
        check_extend(self._info, caches, new_tokens)
        if want.hidden or want.logits or want.top_k > MOST_TOP:
            raise EngineError(
                f"the server of {self._info.name} tells the {MOST_TOP} likeliest tokens at most, "
                "and no hidden states; load this model in the process for that"
            )
        counts = want.counts(new_tokens)
        own = [self._own(cache) for cache in caches]
        rows = [[*cache.tokens, *map(int, new)] for cache, new in zip(own, new_tokens, strict=True)]
        prompts = [cache.prompt or tuple(row) for cache, row in zip(own, rows, strict=True)]
        try:
            found = self._thread.wait(self._read(rows, counts, want, prompts))
        except RequestError as error:  # the server's, of one row; ours were refused above
            raise EngineError(str(error)) from error
        output = step_output([values for row in found for values in row], counts, want.top_k)
        for cache, row, prompt in zip(own, rows, prompts, strict=True):
            cache.tokens, cache.prompt = row, prompt
        return output

    async def _read(
        self,
        rows: Sequence[Sequence[int]],
        counts: Sequence[int],
        want: Want,
        prompts: Sequence[Sequence[int]],
    ) -> list[list[Mapping[int, float]]]:
        asked = (
            self._client.read(row, count, want.top_k, prompt, insist=want.insist)
            for row, count, prompt in zip(rows, counts, prompts, strict=True)
        )
        return await asyncio.gather(*asked)

    def draws_as_we_do(self) -> bool:
        """Return whether all servers have the plugin; asked once, see `served.ServedLM`.

        Raises:
            EngineError: one does not answer.
        """
        if self._has_plugin is None:
            assert self._reserved is not None
            self._has_plugin = self._thread.wait(has_plugin(self._client, self._reserved))
        return self._has_plugin

    def writing(self, *, insist: bool = True) -> RemoteWriting:
        """Return room for passages, a streamed request each."""
        return RemoteWriting(self._client, self._thread.submit, self._drawing, insist=insist)

    def _drawing(self, passage: Passage) -> Drawing:
        params, stop = passage.sampling, sorted(set(passage.stop_ids))
        if not params.needs_logits:
            return Drawing(plain(params, stop))
        if self.draws_as_we_do():
            reserved = self._reserved
            assert reserved is not None
            order = Order(passage.role, NEVER, params, 0, passage.prompt_length, reserved)
            return Drawing(
                ordered(order, stop),
                # A server that came back without the plugin would write greedy tokens.
                lambda token: read_step(token.token_id, token.values, reserved),
            )
        if params.penalises:
            raise RequestError(
                f"the server of {self._info.name} counts penalties its own way; install the plugin "
                "there, or send none"
            )
        return Drawing(plain(params, stop))

    def read(self, answers: Iterable[Answer], top_k: int, ahead: int) -> Iterator[Reading]:
        """Yield what the model says of each answer, one request for each; see `served.ServedLM`."""
        asked: deque[Future[Reading]] = deque()
        try:
            for answer in answers:
                asked.append(self._thread.submit(self._read_answer(answer, top_k)))
                if len(asked) > ahead:
                    yield asked[0].result()
                    asked.popleft()
            while asked:
                yield asked[0].result()
                asked.popleft()
        except RequestError as error:  # the server's
            raise EngineError(str(error)) from error
        finally:
            for future in asked:
                future.cancel()

    async def _read_answer(self, answer: Answer, top: int) -> Reading:
        prompt, answered = answer.prompt_ids, answer.answer_ids
        text, count = [*prompt, *answered], len(answered)
        if len(text) < self._room:
            found = await self._client.look_back(text, count, top, prompt)
        else:  # no room for the token that vLLM writes: the last position is asked for as such
            found = await self._client.read(text[:-1], count, top, prompt)
        output = step_output(found, [count], top)
        logprobs = [
            values.get(token, min(values.values()))
            for token, values in zip(answered, found, strict=True)
        ]
        return Reading(torch.tensor(logprobs), output.top_ids_NK, output.top_logits_NK)

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Refuse: a server does not tell them."""
        raise EngineError(f"the server of {self._info.name} tells no embeddings")


def step_output(
    found: Sequence[Mapping[int, float]], counts: Sequence[int], top: int
) -> StepOutput:
    """Return log-probabilities as a step's output; its entropy is not known.

    Equal log-probabilities are ordered by id, as everywhere.
    """
    rows = [sorted(values.items(), key=lambda pair: (-pair[1], pair[0]))[:top] for values in found]
    if len(rows) != sum(counts) or any(len(row) < top for row in rows):
        raise EngineError(f"a server told fewer than the {top} likeliest tokens of each position")
    if any(row[0][1] > 1e-3 for row in rows):
        raise EngineError(
            "a server tells logits instead of log-probabilities; start it with --logprobs-mode "
            "processed_logprobs, or raw_logprobs if it has no plugin"
        )
    return StepOutput(
        row_lengths=tuple(counts),
        top_ids_NK=torch.tensor([[token_id for token_id, _ in row] for row in rows]),
        top_logits_NK=torch.tensor([[value for _, value in row] for row in rows]),
        logsumexp_N=torch.zeros(len(rows)),
        entropy_N=torch.full((len(rows),), math.nan),
    )
