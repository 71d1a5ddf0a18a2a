"""A language model that is a pure function of its prefix: for tests, demos and laws.

It has the whole CausalLM contract (ragged rows, crop, hidden states) and no weights, so whatever
differs between two runs of it comes from the code around it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from crossroads.errors import EngineError
from crossroads.models.base import KVCache, StepOutput, Want, check_extend, check_length, summarise
from crossroads.models.token_cache import TokenCache
from crossroads.types import Message, ModelInfo

Prefix = tuple[int, ...]
LogitsFunction = Callable[[Prefix], np.ndarray]

_HASHED_WINDOW = 16


class ScriptedCache(TokenCache):
    """The tokens themselves."""


class ScriptedLM:
    """A CausalLM whose logits [V] are `logits(prefix)`.

    The hidden state is the first `hidden_size` logits, so it too is a function of the prefix.
    `calls` counts, per extend, the tokens that each row read: what a test of cost asserts on.
    """

    def __init__(
        self,
        logits: LogitsFunction,
        vocab_size: int,
        *,
        eos_ids: tuple[int, ...] = (0,),
        name: str = "scripted",
        hidden_size: int = 8,
        context_length: int = 4096,
        max_rows: int = 64,
    ) -> None:
        """Make a model of a function; it must return float values [V] for every prefix."""
        self._logits = logits
        self.alive = 0
        self.calls: list[tuple[int, ...]] = []
        self._info = ModelInfo(
            name=name,
            engine="scripted",
            fingerprint=f"scripted-{name}",
            parameters=vocab_size,
            active_parameters=vocab_size,
            vocab_size=vocab_size,
            hidden_size=min(hidden_size, vocab_size),
            context_length=context_length,
            max_rows=max_rows,
            eos_ids=eos_ids,
            dtype="float32",
            tokenizer_fingerprint=f"scripted-{vocab_size}",
        )

    @classmethod
    def hashed(
        cls,
        seed: int,
        vocab_size: int = 64,
        *,
        agrees_with: int | None = None,
        agreement: float = 0.7,
        name: str | None = None,
        context_length: int = 4096,
        max_rows: int = 64,
    ) -> ScriptedLM:
        """Return a model with pseudo-random logits; with `agrees_with`, mostly another seed's.

        `agreement` in [0, 1] is the weight of the other seed's logits in the mixture, so a pair
        (seed 1; seed 2 agreeing with 1) has identical tokens and mismatches like a real one.
        """

        def logits(prefix: Prefix) -> np.ndarray:
            own_V = hashed_logits(seed, prefix, vocab_size)
            if agrees_with is None:
                return own_V
            other_V = hashed_logits(agrees_with, prefix, vocab_size)
            mixed_V: np.ndarray = agreement * other_V + (1 - agreement) * own_V
            return mixed_V

        return cls(
            logits,
            vocab_size,
            name=name or f"hashed-{seed}-{vocab_size}",
            context_length=context_length,
            max_rows=max_rows,
        )

    @property
    def info(self) -> ModelInfo:
        """What the model is."""
        return self._info

    def new_cache(self) -> ScriptedCache:
        """Return an empty cache."""
        if self.alive >= self._info.max_rows:
            raise EngineError(f"all {self._info.max_rows} rows of {self._info.name} are in use")
        return ScriptedCache(self)

    def fork(self, cache: KVCache, length: int) -> ScriptedCache:
        """Return a new cache with the first `length` tokens of `cache`."""
        source = self._own(cache)
        check_length(source, length)
        copy = self.new_cache()
        copy.tokens = source.tokens[:length]
        return copy

    def extend(
        self,
        caches: Sequence[KVCache],
        new_tokens: Sequence[Sequence[int]],
        want: Want = Want(),  # noqa: B008
    ) -> StepOutput:
        """Append each row's tokens and return outputs; see CausalLM."""
        check_extend(self._info, caches, new_tokens)
        rows: list[np.ndarray] = []
        own = [self._own(cache) for cache in caches]
        lengths = want.counts(new_tokens)
        for cache, tokens, count in zip(own, new_tokens, lengths, strict=True):
            cache.tokens.extend(int(token) for token in tokens)
            ends = range(cache.length - count + 1, cache.length + 1)
            rows.extend(self._logits(tuple(cache.tokens[:end])) for end in ends)
        self.calls.append(tuple(len(tokens) for tokens in new_tokens))
        logits_NV = torch.from_numpy(np.stack(rows).astype(np.float32))
        hidden_NH = logits_NV[:, : self._info.hidden_size].clone() if want.hidden else None
        return summarise(logits_NV, lengths, want, hidden_NH)

    def _own(self, cache: KVCache) -> ScriptedCache:
        if not isinstance(cache, ScriptedCache):
            raise TypeError(f"not a cache of a scripted model: {type(cache).__name__}")
        if cache.owner is not self:
            raise ValueError(f"a cache that was released, or is not {self._info.name}'s")
        return cache

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Return a fixed vector per id, [N, hidden_size]."""
        size = self._info.hidden_size
        rows = [hashed_logits(-1, (int(token),), size) for token in token_ids]
        return torch.from_numpy(np.stack(rows).astype(np.float32))

    def close(self) -> None:
        """Nothing to free."""


def hashed_logits(seed: int, prefix: Prefix, vocab_size: int) -> np.ndarray:
    """Return pseudo-random logits [V] (normal, scale 3), a pure function of the arguments.

    Only the last few tokens and the length of the prefix count, which keeps long rows cheap.
    """
    key = f"{seed}|{len(prefix)}|{prefix[-_HASHED_WINDOW:]}".encode()
    digest = hashlib.blake2b(key, digest_size=8).digest()
    generator = np.random.default_rng(int.from_bytes(digest, "little"))
    normal_V: np.ndarray = 3.0 * generator.standard_normal(vocab_size)
    return normal_V


class ScriptedTokenizer:
    """Ids to letters: id 0 ends a text, id i is the i-th printable character."""

    _FIRST = 32

    def __init__(self, vocab_size: int = 64) -> None:
        """Make a tokenizer of `vocab_size` ids, at most 95."""
        self.vocab_size = vocab_size

    @property
    def fingerprint(self) -> str:
        """Equal for equal vocabularies."""
        return f"scripted-{self.vocab_size}"

    def pieces(self) -> Sequence[bytes | None]:
        """Return every id's bytes."""
        return [b"<eos>", *(bytes([self._FIRST + i]) for i in range(1, self.vocab_size))]

    def encode(self, text: str) -> list[int]:
        """Return one id per character; characters outside the vocabulary become id 1."""
        ids = (ord(character) - self._FIRST for character in text)
        return [i if 0 < i < self.vocab_size else 1 for i in ids]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the characters."""
        return b"".join(self.text_bytes(token) for token in token_ids).decode()

    def text_bytes(self, token_id: int) -> bytes:
        """Return one character; nothing for eos."""
        return bytes([self._FIRST + token_id]) if token_id else b""

    def render(self, messages: Sequence[Message]) -> list[int]:
        """Return the contents' ids, one after the other."""
        return [token for message in messages for token in self.encode(message.content)]
