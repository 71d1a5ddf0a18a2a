"""A large model behind vLLM servers, as one more engine of the in-process loop.

It tells a few of the likeliest tokens at each position, and neither hidden states nor whole
distributions: greedy decoding, log-probabilities and revision work, sampling is refused when it is
asked for. Its caches are the tokens; the servers' prefix caches hold what they mean.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from crossroads.errors import EngineError, RequestError
from crossroads.models.base import KVCache, StepOutput, Want, check_extend, check_length
from crossroads.models.remote_client import Patience, VllmClient
from crossroads.models.token_cache import TokenCache
from crossroads.types import ModelInfo

Result = TypeVar("Result")

ENGINE = "remote"
MOST_TOP = 20
"""Likeliest tokens that a vLLM server tells unless it was started with other --max-logprobs."""


class RemoteCache(TokenCache):
    """The tokens of one row; `prompt`, what came first, chooses the row's server."""

    prompt: tuple[int, ...] = ()


class RemoteLM:
    """A CausalLM of which the weights are elsewhere. All rows of one `extend` are asked at once."""

    def __init__(
        self,
        info: ModelInfo,
        urls: Sequence[str],
        patience: Patience = Patience(),  # noqa: B008
    ) -> None:
        """Connect.

        info: what the servers are said to serve; the context becomes theirs if that is shorter.

        Raises:
            EngineError: a server does not answer. ConfigError: an address that is none.
        """
        self.alive = 0
        self._client = VllmClient(urls, patience=patience)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="remote", daemon=True)
        self._thread.start()
        try:
            found = self._wait(self._client.connect())
        except BaseException:
            self.close()
            raise
        context = min(info.context_length, found.context_length or info.context_length)
        self._info = replace(info, engine=ENGINE, context_length=context, most_top=MOST_TOP)

    @property
    def info(self) -> ModelInfo:
        """What the model is."""
        return self._info

    def new_cache(self) -> RemoteCache:
        """Return an empty cache."""
        if self.alive >= self._info.max_rows:
            raise EngineError(f"all {self._info.max_rows} rows of {self._info.name} are in use")
        return RemoteCache(self)

    def fork(self, cache: KVCache, length: int) -> RemoteCache:
        """Return a new cache with the first `length` tokens of `cache`."""
        source = self._own(cache)
        check_length(source, length)
        copy = self.new_cache()
        copy.tokens, copy.prompt = source.tokens[:length], source.prompt
        return copy

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
            found = self._wait(self._read(rows, counts, want, prompts))
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

    def _own(self, cache: KVCache) -> RemoteCache:
        if not isinstance(cache, RemoteCache) or cache.owner is not self:
            raise ValueError(f"a cache that was released, or is not {self._info.name}'s")
        return cache

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Refuse: a server does not tell them."""
        raise EngineError(f"the server of {self._info.name} tells no embeddings")

    def close(self) -> None:
        """Close the connections. Twice is harmless."""
        if self._thread.is_alive():
            self._wait(self._client.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


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
            "a server tells logits instead of log-probabilities; start it with "
            "--logprobs-mode raw_logprobs"
        )
    return StepOutput(
        row_lengths=tuple(counts),
        top_ids_NK=torch.tensor([[token_id for token_id, _ in row] for row in rows]),
        top_logits_NK=torch.tensor([[value for _, value in row] for row in rows]),
        logsumexp_N=torch.zeros(len(rows)),
        entropy_N=torch.full((len(rows),), math.nan),
    )
