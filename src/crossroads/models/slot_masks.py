"""Which cells each row of a ragged pass may see, as a model's attention layers want to be told.

Shapes: B rows, T new tokens (padded), C cells of a slot that this pass looks at.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Masks = Tensor | dict[str, Tensor]

_IMPLEMENTATIONS = ("sdpa", "eager")  # the others do not take a mask of their caller's making
_SHARED_ROPE = ("dynamic", "longrope")
# The config's entry that says how far a kind of layer sees, by the kind's name in `layer_types`.
_REACH = {
    "full_attention": None,
    "sliding_attention": "sliding_window",
    "chunked_attention": "attention_chunk_size",
}


def why_not_batched(config: Any) -> str | None:
    """Return what keeps rows of this text config from sharing a pass; None if nothing is known."""
    implementation = config._attn_implementation
    if implementation not in _IMPLEMENTATIONS:
        return f"{implementation} attention takes no mask per row; load with sdpa or eager"
    for kind in _rope_kinds(getattr(config, "rope_parameters", None)):
        if kind in _SHARED_ROPE:  # the frequencies follow the longest row of a pass
            return f"{kind} rotary embeddings depend on the other rows of a pass"
    unknown = sorted(set(getattr(config, "layer_types", None) or ()).difference(_REACH))
    if unknown:
        return f"no mask is known for {', '.join(unknown)} layers"
    if getattr(config, "layer_types", None) is None and len(_kinds(config)) > 1:
        return "the config has a window and a chunk size and does not say which layers have which"
    if len(_windows(config)) > 1:
        return "its layers have windows of different sizes"
    return None


def _rope_kinds(parameters: Any) -> Iterator[str]:
    """Yield every rope type, one for all layers or one for each kind of layer."""
    if isinstance(parameters, dict):
        yield str(parameters.get("rope_type", "default"))
        for value in parameters.values():
            yield from _rope_kinds(value)


def _windows(config: Any) -> set[int]:
    from transformers import cache_utils  # noqa: PLC0415

    layers = cache_utils.DynamicCache(config=config).layers
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * len(layers)
    return {
        layer.sliding_window
        for layer, kind in zip(layers, types, strict=False)
        if kind == "sliding_attention" and hasattr(layer, "sliding_window")
    }


def _kinds(config: Any) -> list[str]:
    """Return the kinds of layers that the model has, by transformers' rule for each config."""
    types = getattr(config, "layer_types", None)
    if types is not None:
        return sorted(set(types))
    limited = [kind for kind, key in _REACH.items() if key and getattr(config, key, None)]
    return limited or ["full_attention"]


def masks(config: Any, positions_BT: Tensor, cells: int, dtype: torch.dtype) -> Masks:
    """Return the mask [B, 1, T, C] of a pass, or one for each kind of layer that the config names.

    A token at position p sees the cells up to p of its own slot, less what its layer's window or
    chunk hides. Boolean for sdpa; for eager attention an addend of `dtype`.
    """
    cell_C = torch.arange(cells, device=positions_BT.device)
    position_B1T1 = positions_BT[:, None, :, None]
    causal_B1TC = cell_C <= position_B1T1
    found: dict[str, Tensor] = {}
    for kind in _kinds(config):
        seen_B1TC = causal_B1TC
        if kind == "sliding_attention":
            seen_B1TC = seen_B1TC & (cell_C > position_B1T1 - config.sliding_window)
        elif kind == "chunked_attention":
            size = config.attention_chunk_size
            seen_B1TC = seen_B1TC & (cell_C // size == position_B1T1 // size)
        if config._attn_implementation == "eager":
            hidden = torch.finfo(dtype).min
            addend_B1TC = torch.zeros_like(seen_B1TC, dtype=dtype)
            seen_B1TC = addend_B1TC.masked_fill_(~seen_B1TC, hidden)
        found[kind] = seen_B1TC
    if getattr(config, "layer_types", None) is not None:
        return found
    return next(iter(found.values()))


@contextmanager
def narrowed(config: Any, reach: int) -> Iterator[None]:
    """Narrow the config's windows to `reach`, so that a few tokens show whether masks are right.

    Models look their window up at each pass; one that does not will disagree with our mask, and
    that is what the probe wants to know.
    """
    before = {key: getattr(config, key, None) for key in _REACH.values() if key}
    changed = {key: value for key, value in before.items() if value is not None}
    try:
        for key in changed:
            setattr(config, key, reach)
        yield
    finally:
        for key, value in changed.items():
            setattr(config, key, value)
