"""Models that remember of a row its tokens and nothing else, and their caches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from crossroads.errors import EngineError
from crossroads.models.base import KVCache, check_length
from crossroads.models.event_loop import EventLoopThread
from crossroads.types import ModelInfo

if TYPE_CHECKING:
    from crossroads.models.remote_client import VllmClient
    from crossroads.models.vllm_server import RunningServer


class Owner(Protocol):
    """A model that counts its caches."""

    alive: int


class TokenCache:
    """The tokens of one row; `prompt`, what came first, chooses the row's server."""

    prompt: tuple[int, ...] = ()

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


class TokenModel:
    """What a CausalLM behind servers has besides its `extend`: rows that are lists of tokens."""

    _info: ModelInfo
    _client: VllmClient
    _thread: EventLoopThread
    alive: int = 0
    server: RunningServer | None = None
    """One that was started for this model alone, and ends with it."""

    @property
    def info(self) -> ModelInfo:
        """What the model is."""
        return self._info

    def new_cache(self) -> TokenCache:
        """Return an empty cache."""
        if self.alive >= self._info.max_rows:
            raise EngineError(f"all {self._info.max_rows} rows of {self._info.name} are in use")
        return TokenCache(self)

    def fork(self, cache: KVCache, length: int) -> TokenCache:
        """Return a new cache with the first `length` tokens of `cache`."""
        source = self._own(cache)
        check_length(source, length)
        copy = self.new_cache()
        copy.tokens, copy.prompt = source.tokens[:length], source.prompt
        return copy

    def _own(self, cache: KVCache) -> TokenCache:
        if not isinstance(cache, TokenCache) or cache.owner is not self:
            raise ValueError(f"a cache that was released, or is not {self._info.name}'s")
        return cache

    def close(self) -> None:
        """End what runs and close the connections. Twice is harmless."""
        self._thread.close(self._client.close)
        if self.server is not None:
            self.server.stop()
