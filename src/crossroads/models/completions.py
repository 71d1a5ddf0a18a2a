"""A large model behind servers of OpenAI's completions, or llama.cpp's, in the in-process loop.

They tell the next token after a prompt of ids, and little of what else they think: no tokens before
the last, no whole distribution, no hidden states. So greedy decoding works, log-probabilities where
the server tells them by id, and revision, sampling and labels are refused when they are asked for.
A token at a time is all that is asked: what follows a token of which only the text came back is
another model's question as soon as that text was split otherwise.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from crossroads.errors import EngineError, RequestError
from crossroads.models.base import (
    KVCache,
    StepOutput,
    Tokenizer,
    Want,
    check_extend,
)
from crossroads.models.completions_probe import Found, within
from crossroads.models.completions_wire import Dialect, TokenFinder
from crossroads.models.event_loop import EventLoopThread
from crossroads.models.remote import ENGINE, step_output
from crossroads.models.remote_client import VllmClient
from crossroads.models.server_pool import Patience
from crossroads.models.token_cache import TokenModel
from crossroads.types import ModelInfo


class CompletionsLM(TokenModel):
    """A CausalLM that tells its best token. All rows of one `extend` are asked at once."""

    def __init__(
        self,
        info: ModelInfo,
        urls: Sequence[str],
        found: Found,
        tokenizer: Tokenizer,
        patience: Patience = Patience(),  # noqa: B008
    ) -> None:
        """Make the model of servers that were found able (`completions_probe.find_out`)."""
        assert found.dialect is not None
        self._dialect: Dialect = found.dialect
        self._finder = TokenFinder(tokenizer.pieces(), info.eos_ids)
        self._client = VllmClient(urls, model=found.info.model, patience=patience)
        self._thread = EventLoopThread("completions")
        self._info = replace(
            info,
            engine=ENGINE,
            context_length=within(found, info.context_length),
            most_top=found.most_top,
            looks_back=False,
        )

    def extend(
        self,
        caches: Sequence[KVCache],
        new_tokens: Sequence[Sequence[int]],
        want: Want = Want(),  # noqa: B008
    ) -> StepOutput:
        """Append each row's tokens and return outputs; see CausalLM.

        A log-probability that was not told is NaN.

        Raises:
            RequestError: as CausalLM says. EngineError: the server's token cannot be told, or
            `want` is more than it tells. UnreachableError: no server answers. No cache has changed
            then.
        """
        check_extend(self._info, caches, new_tokens)
        most = self._info.most_top or 0
        counts = want.counts(new_tokens)
        if want.hidden or want.logits or want.top_k > max(1, most) or max(counts) > 1:
            raise EngineError(
                f"the server of {self._info.name} tells the next token and {most} "
                "log-probabilities, nothing of earlier tokens and no hidden states; serve the "
                "model with vLLM"
            )
        own = [self._own(cache) for cache in caches]
        rows = [[*cache.tokens, *map(int, new)] for cache, new in zip(own, new_tokens, strict=True)]
        prompts = [cache.prompt or tuple(row) for cache, row in zip(own, rows, strict=True)]
        try:
            found = self._thread.wait(self._read_all(rows, want, prompts))
        except RequestError as error:  # the server's, of one row; ours were refused above
            raise EngineError(str(error)) from error
        output = step_output(found, counts, want.top_k)
        for cache, row, prompt in zip(own, rows, prompts, strict=True):
            cache.tokens, cache.prompt = row, prompt
        return output

    async def _read_all(
        self, rows: Sequence[Sequence[int]], want: Want, prompts: Sequence[Sequence[int]]
    ) -> list[Mapping[int, float]]:
        asked = (self._read(row, want, prompt) for row, prompt in zip(rows, prompts, strict=True))
        return await asyncio.gather(*asked)

    async def _read(
        self, row: Sequence[int], want: Want, prompt: Sequence[int]
    ) -> Mapping[int, float]:
        """Return the likeliest next tokens, or the one that the server wrote, with NaN."""
        top = min(want.top_k, self._info.most_top or 0)
        body = self._dialect.body(self._client.model or "", row, top)
        reply = await self._client.ask(self._dialect.path, body, prompt, insist=want.insist)
        try:
            told = self._dialect.told(reply)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise EngineError(
                f"the server of {self._info.name} answers in another form than when it was asked "
                "first; load the model again"
            ) from error
        if told.read != len(row):
            raise EngineError(
                f"the server of {self._info.name} was sent {len(row)} tokens and read {told.read}; "
                "give it a longer context, or send shorter prompts"
            )
        token_id = self._finder.find(told)
        if top and told.values and len(told.values) >= top:
            return told.values
        return {token_id: math.nan}

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Refuse: a server does not tell them."""
        raise EngineError(f"the server of {self._info.name} tells no embeddings")
