"""The cache of a model that remembers tokens and nothing else."""

from __future__ import annotations

from typing import Protocol

from crossroads.models.base import check_length


class Owner(Protocol):
    """A model that counts its caches."""

    alive: int


class TokenCache:
    """The tokens of one row."""

    def __init__(self, owner: Owner) -> None:
        """Take a slot of `owner`."""
        self.owner: Owner | None = owner
        self.tokens: list[int] = []
        owner.alive += 1

    @property
    def length(self) -> int:
        """Tokens held."""
        return len(self.tokens)

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        check_length(self, length)
        del self.tokens[length:]

    def release(self) -> None:
        """Give the slot back; the cache cannot be used afterwards. Twice is harmless."""
        if self.owner is not None:
            self.owner.alive -= 1
            self.owner = None
