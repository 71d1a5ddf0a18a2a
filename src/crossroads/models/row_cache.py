"""One transformers cache per row, rows read one after another: the fallback of the engine.

A row's outputs cannot depend on its neighbours, not even in the last bit, and nothing is gained by
batching. Also here: what the engine asks of any store of caches. Shapes: N wanted positions, C
tokens of a chunk, H hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from crossroads.errors import EngineError

PASS_TOKENS = 512  # tokens per forward pass, padding included: bounds the activations


@dataclass(frozen=True, slots=True)
class RowRead:
    """What one row reads: `tokens` after the `start` ones that its place holds.

    count: hidden states wanted, those of its last tokens (at least 1).
    """

    place: Any
    start: int
    tokens: Sequence[int]
    count: int


class CacheStore(Protocol):
    """Keys and values of many rows. A row's length is its owner's to know, and passed in."""

    @property
    def batched(self) -> bool:
        """Whether one forward pass reads many rows."""

    def new(self) -> Any:
        """Return the place of a new, empty row."""

    def fork(self, place: Any, length: int) -> Any:
        """Return the place of a new row with the first `length` tokens of `place`."""

    def cut(self, place: Any, length: int) -> None:
        """Keep the first `length` tokens, also after a read that died between two layers."""

    def free(self, place: Any) -> None:
        """Take a row's place back."""

    def read(self, decoder: Any, reads: Sequence[RowRead]) -> Tensor:
        """Append every row's tokens and return hidden states [N, H] after the final norm.

        Rows in call order, each with its last `count` positions. When this raises, `cut` every
        place back to its start.
        """

    def clear(self) -> None:
        """Free all memory; no place can be used afterwards."""


class RowStore:
    """Places are DynamicCaches of their own, every layer whole (sliding windows are masked)."""

    batched = False

    def __init__(self, config: Any, device: torch.device) -> None:
        """Make caches for a decoder of this text config, whose ids belong on `device`."""
        self._config = config
        self._device = device

    def new(self) -> Any:
        """Return an empty DynamicCache."""
        return empty_layers(self._config)

    def fork(self, place: Any, length: int) -> Any:
        """Return a cache that shares the tensors of `place`.

        Sharing is safe because a layer grows by making new tensors, never in place.
        """
        layers = copy.copy(place)
        layers.layers = [copy.copy(layer) for layer in place.layers]
        self.cut(layers, length)
        return layers

    def cut(self, place: Any, length: int) -> None:
        """Keep `length` tokens of every layer, however many each holds."""
        for layer in place.layers:
            extra = layer.get_seq_length() - length if hasattr(layer, "get_seq_length") else 0
            if extra > 0:  # crop takes the number to remove, negated; crop(0) would remove nothing
                layer.crop(-extra)

    def free(self, place: Any) -> None:
        """Do nothing: the tensors go with their last user."""

    def read(self, decoder: Any, reads: Sequence[RowRead]) -> Tensor:
        """Read row by row, chunk by chunk."""
        parts = [part for read in reads for part in self._read_row(decoder, read)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _read_row(self, decoder: Any, read: RowRead) -> list[Tensor]:
        ids_N = torch.tensor([int(token) for token in read.tokens], device=self._device)
        parts: list[Tensor] = []
        skip = len(read.tokens) - read.count
        for ids_C in torch.split(ids_N, PASS_TOKENS):
            output = decoder(input_ids=ids_C[None], past_key_values=read.place, use_cache=True)
            hidden_NH = output.last_hidden_state[0, skip:]
            skip = max(0, skip - len(ids_C))
            if len(hidden_NH):
                parts.append(hidden_NH)
        return parts

    def clear(self) -> None:
        """Do nothing: the tensors go with their last user."""


def empty_layers(config: Any) -> Any:
    """Return an empty cache; a sliding layer keeps its whole row, so that it can be cropped.

    The model's mask hides what is outside the window either way; the price is memory.
    """
    from transformers import cache_utils  # noqa: PLC0415

    cache = cache_utils.DynamicCache(config=config)
    cache.layers = [
        cache_utils.DynamicLayer()
        if type(layer) is cache_utils.DynamicSlidingWindowLayer
        else layer
        for layer in cache.layers
    ]
    return cache


def refuse_uncroppable(name: str, model: Any, config: Any) -> None:
    """Refuse a model whose cache cannot be cut.

    Raises:
        EngineError: the model keeps a state of another kind than keys and values per token.
    """
    good = ("DynamicLayer", "DummyLayer")  # a dummy borrows another layer's keys and values
    try:
        kinds = {type(layer).__name__ for layer in empty_layers(config).layers}.difference(good)
    except KeyError as error:  # a layer type for which transformers has no cache class
        kinds = {str(error)}
    if not kinds and getattr(model, "_is_stateful", False):
        kinds = {"recurrent state"}
    if kinds:
        raise EngineError(
            f"{name} keeps a state that cannot be cut back to an earlier token "
            f"({', '.join(sorted(kinds))}); use a model with attention layers only"
        )
