"""What a Hugging Face causal language model is made of: its decoder, its head, its numbers.

Shapes: N positions, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crossroads.errors import ConfigError

# How a family multiplies what its head returns, by the start of `config.model_type`. The engine's
# probe at construction refuses a model that does something else.
_LOGIT_SCALES: dict[str, Callable[[Any], float | None]] = {
    "cohere": lambda config: getattr(config, "logit_scale", None),
    "granite": lambda config: 1.0 / getattr(config, "logits_scaling", 1.0),
    "hyperclovax": lambda config: getattr(config, "logits_scaling", None),
}


@dataclass(frozen=True, slots=True)
class Head:
    """From the last hidden state to logits, as the model's own forward pass does it."""

    module: Any
    scale: float
    softcap: float | None

    def __call__(self, hidden_NH: Tensor) -> Tensor:
        """Return the logits [N, V], float32."""
        logits_NV: Tensor = self.module(hidden_NH).float() * self.scale
        if self.softcap is not None:
            logits_NV = self.softcap * torch.tanh(logits_NV / self.softcap)
        return logits_NV


def head_of(model: Any, config: Any) -> Head:
    """Return the model's output head."""
    family = config.model_type
    scales = [read(config) for start, read in _LOGIT_SCALES.items() if family.startswith(start)]
    scale = scales[0] if scales else None
    return Head(
        module=model.get_output_embeddings(),
        scale=1.0 if scale is None else float(scale),
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def decoder_of(model: Any) -> Any:
    """Return the part of the model that ends in the final norm."""
    decoder = model.get_decoder()
    return getattr(model, "model", model.base_model) if decoder is model else decoder


def count_parameters(model: Any, config: Any) -> tuple[int, int]:
    """Return all parameters and an estimate of those one token uses.

    Of the routed experts a token uses `num_experts_per_tok` out of all; everything else it uses.
    """
    total = int(model.num_parameters())
    counts = ("num_experts", "num_local_experts", "n_routed_experts")
    experts = next((n for n in (getattr(config, c, None) for c in counts) if n), None)
    chosen = getattr(config, "num_experts_per_tok", None)
    if not experts or not chosen:
        return total, total
    routed = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    return total, total - routed + routed * int(chosen) // int(experts)


def context_length_of(name: str, config: Any, wanted: int | None) -> int:
    """Return the shorter of the model's context and the wanted one.

    Raises:
        ConfigError: an impossible length, or none to be found.
    """
    if wanted is not None and wanted < 1:
        raise ConfigError(f"context_length must be at least 1, got {wanted}")
    known = getattr(config, "max_position_embeddings", None)
    sizes = [int(size) for size in (known, wanted) if size]
    if not sizes:
        raise ConfigError(f"{name} does not say how long its context is; give context_length")
    return min(sizes)


def eos_ids_of(model: Any) -> tuple[int, ...]:
    """Return every end id of the generation config and the config, in that order."""
    ids: list[int] = []
    for config in (getattr(model, "generation_config", None), model.config):
        value = getattr(config, "eos_token_id", None)
        ids += [value] if isinstance(value, int) else list(value or ())
    return tuple(dict.fromkeys(ids))
