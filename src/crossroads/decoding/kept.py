"""Caches of rows that have ended, for rows that begin alike: the next turn of a chat.

A kept cache is cut to what the two rows share and handed on, so only the rest is read. It changes
no token beyond the tolerance with which an engine gives the same outputs for any chunks of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crossroads.errors import EngineError
from crossroads.models.base import CausalLM, KVCache
from crossroads.types import Role

WORTH_IT = 16
"""Shared tokens below which a row begins anew."""


@dataclass(frozen=True, slots=True)
class _Kept:
    tokens: tuple[int, ...]
    cache: KVCache


class KeptCaches:
    """At most so many caches of each model, the oldest leaving first."""

    def __init__(self, most: int = 0) -> None:
        """Start empty. most: 0 keeps none."""
        self._most = most
        self._kept: dict[Role, list[_Kept]] = {role: [] for role in Role}

    def __len__(self) -> int:
        """Caches that are kept, of both models."""
        return sum(map(len, self._kept.values()))

    def take(self, role: Role, model: CausalLM, prompt: Sequence[int]) -> KVCache:
        """Return a cache for a row with this prompt: the one that shares most of it, or a new one.

        At least the prompt's last token is left to be read.

        Raises:
            EngineError: the model has no room.
        """
        kept = self._kept[role]
        shared = [_shared(one.tokens, prompt) for one in kept]
        if shared and (length := max(shared)) >= WORTH_IT:
            found = kept.pop(shared.index(length))
            found.cache.crop(min(length, len(prompt) - 1))
            return found.cache
        try:
            return model.new_cache()
        except EngineError:
            if not kept:
                raise
        kept.pop(0).cache.release()
        return model.new_cache()

    def give_back(self, role: Role, cache: KVCache, tokens: Sequence[int]) -> None:
        """Keep the cache of a row that has ended, or release it. tokens: the row's."""
        if self._most == 0 or cache.length < WORTH_IT:
            cache.release()
            return
        kept = self._kept[role]
        kept.append(_Kept(tuple(tokens[: cache.length]), cache))
        if len(kept) > self._most:
            kept.pop(0).cache.release()

    def close(self) -> None:
        """Release all of them."""
        for kept in self._kept.values():
            while kept:
                kept.pop().cache.release()


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two rows share from their beginning."""
    for count, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return count
    return min(len(first), len(second))
