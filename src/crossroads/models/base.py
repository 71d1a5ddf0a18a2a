"""The contract that every backend keeps: token ids in, tensors out.

Shapes: B rows, N output positions (ragged over rows, rows in call order), K top entries,
V vocabulary, H hidden size, E embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from crossroads.errors import RequestError
from crossroads.types import Message, ModelInfo

MOST_TOP = 20
"""Likeliest tokens that inference servers tell, unless they were started with other limits."""


@dataclass(frozen=True, slots=True)
class Want:
    """What an `extend` returns.

    positions: outputs at each row's last new token, at every new token, or, for each row, at so
    many of its last new tokens (at least 1).
    top_k: entries kept of each distribution (>= 1), sorted by logit, descending.
    hidden: also the last layer's hidden state after the final norm.
    logits: also the whole distribution [N, V]; costs a copy of V floats per position.
    insist: ask a model that is behind servers until one answers or patience ends; False: once,
    and not at all while they are known to be down. Models in the process are always there.
    """

    positions: Literal["last", "all"] | tuple[int, ...] = "last"
    top_k: int = 1
    hidden: bool = False
    logits: bool = False
    insist: bool = True

    def counts(self, new_tokens: Sequence[Sequence[int]]) -> list[int]:
        """Return how many outputs each row has, the last ones of its new tokens.

        Raises:
            ValueError: not one number per row, or one that the row does not have.
        """
        lengths = [len(tokens) for tokens in new_tokens]
        if self.positions == "last":
            return [1] * len(lengths)
        if self.positions == "all":
            return lengths
        counts = list(self.positions)
        if len(counts) != len(lengths):
            raise ValueError(f"{len(counts)} numbers of positions for {len(lengths)} rows")
        if any(not 1 <= n <= length for n, length in zip(counts, lengths, strict=True)):
            raise ValueError(f"cannot give {counts} outputs of rows with {lengths} new tokens")
        return counts


@dataclass(frozen=True, slots=True)
class StepOutput:
    """Outputs at N positions, float32 on the CPU unless a backend says otherwise.

    Row i's outputs are the `row_lengths[i]` positions after those of the rows before it.
    `logsumexp_N` is over the whole vocabulary, so `top_logits_NK - logsumexp_N[:, None]` are true
    log-probabilities. `entropy_N` is in nats, over the whole vocabulary.
    """

    row_lengths: tuple[int, ...]
    top_ids_NK: Tensor
    top_logits_NK: Tensor
    logsumexp_N: Tensor
    entropy_N: Tensor
    hidden_NH: Tensor | None = None
    logits_NV: Tensor | None = None

    def row(self, index: int) -> StepOutput:
        """Return the outputs of row `index` alone, as views."""
        start = sum(self.row_lengths[:index])
        return self.slice(start, start + self.row_lengths[index])

    def slice(self, start: int, stop: int) -> StepOutput:
        """Return output positions `start:stop` as the output of one row, as views."""
        part = slice(start, stop)
        return StepOutput(
            row_lengths=(stop - start,),
            top_ids_NK=self.top_ids_NK[part],
            top_logits_NK=self.top_logits_NK[part],
            logsumexp_N=self.logsumexp_N[part],
            entropy_N=self.entropy_N[part],
            hidden_NH=None if self.hidden_NH is None else self.hidden_NH[part],
            logits_NV=None if self.logits_NV is None else self.logits_NV[part],
        )


class KVCache(Protocol):
    """What a model remembers of one row."""

    @property
    def length(self) -> int:
        """Tokens held."""

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens (0 <= length <= self.length)."""

    def release(self) -> None:
        """Give the row's slot back; the cache cannot be used afterwards. Twice is harmless."""


@runtime_checkable
class CausalLM(Protocol):
    """A language model over token ids. No text and no chat template in here."""

    @property
    def info(self) -> ModelInfo:
        """What the model is."""

    def new_cache(self) -> KVCache:
        """Return an empty cache. Raises EngineError when `info.max_rows` caches are alive."""

    def fork(self, cache: KVCache, length: int) -> KVCache:
        """Return a new cache that holds the first `length` tokens of `cache`.

        The two are rows of their own from then on: extending, cropping or releasing one changes
        nothing for the other. Nothing is computed; an engine may share the memory.
        Raises EngineError when `info.max_rows` caches are alive.
        """

    def extend(
        self,
        caches: Sequence[KVCache],
        new_tokens: Sequence[Sequence[int]],
        want: Want = Want(),
    ) -> StepOutput:
        """Append each row's tokens (>= 1 per row) to its own cache and return outputs.

        Effects: cache i grows by `len(new_tokens[i])`. Any chunking of the same tokens gives the
        same outputs up to the backend's stated tolerance, as does crop followed by extend.
        Raises RequestError for an empty row, an id outside the vocabulary, or a row that would
        pass `info.context_length`, UnreachableError where no server of the model answers; no cache
        has changed then.
        """

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Return the rows [N, E] of the input embedding, float32."""

    def close(self) -> None:
        """Free the weights and every cache. Twice is harmless."""


class Tokenizer(Protocol):
    """Text to ids and back, as one model family does it."""

    @property
    def fingerprint(self) -> str:
        """Hash over every id's bytes; equal fingerprints mean the same tokenizer."""

    def pieces(self) -> Sequence[bytes | None]:
        """Return every id's raw bytes, by id; None for ids that stand for nothing (padding)."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text; special tokens in the text are read as text."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of the ids, special tokens left out, bad bytes replaced."""

    def text_bytes(self, token_id: int) -> bytes:
        """Return the bytes that one id adds to the text; nothing for a special token."""

    def render(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of the chat template over the messages, ready for the model to answer."""


def summarise(
    logits_NV: Tensor,
    row_lengths: Sequence[int],
    want: Want,
    hidden_NH: Tensor | None = None,
) -> StepOutput:
    """Reduce whole distributions to a StepOutput; the one place where a backend does so.

    Equal logits are ordered by id, lowest first, so that greedy choices never depend on a batch.
    """
    logits_NV = logits_NV.float()
    top_ids_NK, top_logits_NK = _top(logits_NV, want.top_k)
    best_N = top_logits_NK[:, 0]
    # One buffer, written in place: a temporary of N x V floats costs more than the arithmetic.
    weight_NV = (logits_NV - best_N[:, None]).exp_()
    total_N = weight_NV.sum(dim=-1)
    logsumexp_N = best_N + total_N.log()
    # H = log Z - E[logit]; 0 * -inf is nan, and a masked id adds nothing to either sum.
    mean_N = torch.linalg.vecdot(weight_NV, logits_NV) / total_N
    if bool(mean_N.isnan().any()):
        finite_NV = logits_NV.masked_fill(logits_NV == -torch.inf, 0.0)
        mean_N = torch.linalg.vecdot(weight_NV, finite_NV) / total_N
    entropy_N = logsumexp_N - mean_N
    return StepOutput(
        row_lengths=tuple(row_lengths),
        top_ids_NK=top_ids_NK,
        top_logits_NK=top_logits_NK,
        logsumexp_N=logsumexp_N,
        entropy_N=entropy_N.clamp_min(0.0),
        hidden_NH=None if hidden_NH is None else hidden_NH.float(),
        logits_NV=logits_NV if want.logits else None,
    )


BLOCK = 32
"""Neighbouring entries among which `_candidates` looks for the largest at once."""


def _top(logits_NV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return ids and logits of the k largest entries, ties by lowest id."""
    if k == 1:
        best_N1 = logits_NV.argmax(dim=-1, keepdim=True)
        return best_N1, logits_NV.gather(1, best_N1)
    if logits_NV.shape[1] > 4 * k * BLOCK:
        among_NC = _candidates(logits_NV, k)
        values_NK, places_NK = logits_NV.gather(1, among_NC).topk(k, dim=-1)
        ids_NK = among_NC.gather(1, places_NK)
    else:
        values_NK, ids_NK = logits_NV.topk(min(k, logits_NV.shape[1]), dim=-1)
    ids_NK, by_id_NK = ids_NK.sort(dim=-1)
    values_NK = values_NK.gather(1, by_id_NK)
    values_NK, by_value_NK = values_NK.sort(dim=-1, descending=True, stable=True)
    return ids_NK.gather(1, by_value_NK), values_NK


def _candidates(logits_NV: Tensor, k: int) -> Tensor:
    """Return ids [N, C], C far below V, that hold the k largest entries.

    They lie in the k blocks with the largest maxima: an entry outside is at most as large as each
    of those. Finding the maxima is one fast pass, where `topk` over a vocabulary is a slow one.
    """
    rows, size = logits_NV.shape
    blocks_NBS = logits_NV.unfold(1, BLOCK, BLOCK)
    best_NK = blocks_NBS.amax(dim=2).topk(k, dim=1, sorted=False).indices
    within_S = torch.arange(BLOCK, device=logits_NV.device)
    ids_NC = (best_NK[:, :, None] * BLOCK + within_S).view(rows, -1)
    # What is left over after the last whole block.
    rest_R = torch.arange(size - size % BLOCK, size, device=logits_NV.device)
    return torch.cat([ids_NC, rest_R.expand(rows, -1)], dim=1)


def concatenate(outputs: Sequence[StepOutput], row_lengths: Sequence[int]) -> StepOutput:
    """Join outputs that were computed piece by piece into one of `row_lengths`."""
    hidden = [o.hidden_NH for o in outputs if o.hidden_NH is not None]
    logits = [o.logits_NV for o in outputs if o.logits_NV is not None]
    return StepOutput(
        row_lengths=tuple(row_lengths),
        top_ids_NK=torch.cat([o.top_ids_NK for o in outputs]),
        top_logits_NK=torch.cat([o.top_logits_NK for o in outputs]),
        logsumexp_N=torch.cat([o.logsumexp_N for o in outputs]),
        entropy_N=torch.cat([o.entropy_N for o in outputs]),
        hidden_NH=torch.cat(hidden) if hidden else None,
        logits_NV=torch.cat(logits) if logits else None,
    )


def check_length(cache: KVCache, length: int) -> None:
    """Refuse a length that a crop or fork of `cache` cannot have; a caller's mistake."""
    if not 0 <= length <= cache.length:
        raise ValueError(f"cannot cut {cache.length} tokens to {length}")


def check_extend(
    info: ModelInfo, caches: Sequence[KVCache], new_tokens: Sequence[Sequence[int]]
) -> None:
    """Refuse what no backend can extend by; called first, so that a refusal changes nothing.

    Raises:
        RequestError: a row without tokens, an id outside the vocabulary, a context overrun.
    """
    if len(caches) != len(new_tokens):
        raise RequestError(f"got {len(caches)} caches for {len(new_tokens)} rows of tokens")
    if not caches:
        raise RequestError("nothing to extend: give at least one row")
    if len({id(cache) for cache in caches}) != len(caches):
        raise RequestError("the same cache was given for two rows of one extend")
    for cache, tokens in zip(caches, new_tokens, strict=True):
        if not len(tokens):
            raise RequestError("a row has no tokens to read; give at least one token per row")
        low, high = min(tokens), max(tokens)
        if low < 0 or high >= info.vocab_size:
            wrong = low if low < 0 else high
            raise RequestError(
                f"token id {wrong} is outside {info.name}'s vocabulary of {info.vocab_size}"
            )
        if cache.length + len(tokens) > info.context_length:
            raise RequestError(
                f"{cache.length + len(tokens)} tokens do not fit {info.name}'s context of "
                f"{info.context_length}; shorten the prompt or load with a larger context"
            )
