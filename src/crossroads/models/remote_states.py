"""A model of which vLLM servers run the decoder, and tell the states after its final norm.

For labelling a small model that is served: its features need whole distributions and hidden
states at every position of a text, which a server's completions do not tell. vLLM's pooling runner
tells the hidden states of whole texts; the output head, read from the model's own files, makes the
distributions of them here. Every `extend` reads its rows from their beginning: what suits texts
that are read once suits no decoding.

    vllm serve MODEL --runner pooling --convert embed --pooler-config '{"task": "token_embed"}'

Shapes: N positions, V vocabulary, H hidden size, E embedding size.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from crossroads.errors import EngineError, RequestError
from crossroads.models.base import (
    KVCache,
    StepOutput,
    Want,
    check_extend,
    concatenate,
    summarise,
)
from crossroads.models.event_loop import EventLoopThread
from crossroads.models.hf_head import ModelEnds
from crossroads.models.remote_client import VllmClient
from crossroads.models.server_pool import Patience
from crossroads.models.token_cache import TokenModel
from crossroads.types import ModelInfo

ENGINE = "vllm"
_CHUNK = 64
"""Positions whose whole distributions are in memory at a time."""

_PRE_NORM = 0.05
"""How far from 1 the root mean square of a normed state may be, before its factor; bfloat16's
rounding leaves it within 0.01."""


class RemoteStatesLM(TokenModel):
    """A CausalLM whose decoder is elsewhere. All rows of one `extend` are asked at once."""

    reads_at_once = True
    """A text is best given in one piece: each `extend` is a request that reads it all."""

    def __init__(
        self,
        info: ModelInfo,
        ends: ModelEnds,
        urls: Sequence[str],
        patience: Patience = Patience(),  # noqa: B008
    ) -> None:
        """Connect, and see that the servers tell the states that `ends` belong to.

        Raises:
            EngineError: a server does not answer, or tells something else. ConfigError: an address
            that is none.
        """
        self._ends = ends
        self._client = VllmClient(urls, patience=patience)
        self._thread = EventLoopThread("remote states")
        self._info = replace(info, engine=ENGINE)
        try:
            found = self._thread.wait(self._client.connect())
            context = min(info.context_length, found.context_length or info.context_length)
            self._info = replace(self._info, context_length=context)
            self._probe()
        except BaseException:
            self.close()
            raise

    def extend(
        self,
        caches: Sequence[KVCache],
        new_tokens: Sequence[Sequence[int]],
        want: Want = Want(),  # noqa: B008
    ) -> StepOutput:
        """Append each row's tokens and return outputs; see CausalLM.

        Raises:
            RequestError: as CausalLM says. EngineError: no server answers; no cache has changed
            then.
        """
        check_extend(self._info, caches, new_tokens)
        counts = want.counts(new_tokens)
        own = [self._own(cache) for cache in caches]
        rows = [[*cache.tokens, *map(int, new)] for cache, new in zip(own, new_tokens, strict=True)]
        hidden_NH = torch.cat(self._states(rows, counts))
        for cache, row in zip(own, rows, strict=True):
            cache.tokens = row
        pieces = [
            summarise(self._ends.head(part_NH), [len(part_NH)], want,
                      part_NH if want.hidden else None)
            for part_NH in torch.split(hidden_NH, _CHUNK)
        ]  # fmt: skip
        return concatenate(pieces, counts)

    def _states(self, rows: Sequence[Sequence[int]], counts: Sequence[int]) -> list[Tensor]:
        """Return the states [N, H] at the last `counts` positions of each row, float32."""

        async def ask() -> list[Tensor]:
            return list(await asyncio.gather(*(self._client.states(row) for row in rows)))

        try:
            found = self._thread.wait(ask())
        except RequestError as error:  # the server's, of one row; ours were refused above
            raise EngineError(str(error)) from error
        width = self._info.hidden_size
        for row, states_NH in zip(rows, found, strict=True):
            if tuple(states_NH.shape) != (len(row), width):
                raise EngineError(
                    f"the server of {self._info.name} tells {tuple(states_NH.shape)} numbers for "
                    f"{len(row)} tokens of hidden size {width}; does it serve another model?"
                )
        return [states_NH[-count:] for states_NH, count in zip(found, counts, strict=True)]

    def _probe(self) -> None:
        """See that the states are after the final norm, where that can be seen.

        An RMSNorm leaves rows of root mean square 1, times its factor.
        """
        (states_NH,) = self._states([[1, 2, 3]], [3])
        factor_H = self._ends.norm_H
        if factor_H is None:
            return
        size_N = (states_NH / factor_H).square().mean(1).sqrt()
        if bool(((size_N - 1).abs() > _PRE_NORM).any()):
            raise EngineError(
                f"the server of {self._info.name} does not tell the states after the final norm of "
                "this model (or it scales them); start it with --runner pooling --convert embed "
                """--pooler-config '{"task": "token_embed"}', from the same weights"""
            )

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Return the rows [N, E] of the input embedding, float32."""
        return self._ends.embedding_VE[list(token_ids)].float()
