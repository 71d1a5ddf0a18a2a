"""vLLM's model classes, each with one addition: the hidden states of the last step are kept.

vLLM finds a class by "module:name"; the names here are those of its own classes after a prefix,
and the class is made when it is asked for, so that no architecture has to be named.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

PREFIX = "Routed"
_ORIGINALS: dict[str, tuple[str, str]] = {}

last_hidden: dict[str, Tensor] = {}
"""Under "hidden": what `compute_logits` was last given [N, H], after the final norm."""


def register_all() -> None:
    """Let every language model of vLLM's registry be served with its hidden states kept."""
    from vllm.model_executor.models import ModelRegistry  # noqa: PLC0415

    for architecture, entry in list(ModelRegistry.models.items()):
        module, name = getattr(entry, "module_name", None), getattr(entry, "class_name", None)
        if module is None or name is None or module == __name__:
            continue
        _ORIGINALS[PREFIX + name] = (module, name)
        if architecture.endswith("ForCausalLM"):
            ModelRegistry.register_model(architecture, f"{__name__}:{PREFIX}{name}")


def __getattr__(name: str) -> Any:
    """Return the routed subclass of one of vLLM's classes."""
    if name not in _ORIGINALS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, original = _ORIGINALS[name]
    base = getattr(importlib.import_module(module), original)
    made = type(name, (base,), {"compute_logits": _compute_logits(base), "__module__": __name__})
    globals()[name] = made
    return made


def _compute_logits(base: type) -> Any:
    def compute_logits(self: Any, hidden_states: Tensor, *rest: Any, **more: Any) -> Tensor | None:
        logits_NV = base.compute_logits(self, hidden_states, *rest, **more)  # type: ignore[attr-defined]
        if (
            logits_NV is not None
        ):  # None on the ranks of a pipeline or tensor group that do not sample
            last_hidden["hidden"] = hidden_states
        return logits_NV  # type: ignore[no-any-return]

    return compute_logits


def hidden_of(logits_NV: Tensor) -> Tensor | None:
    """Return the hidden states that belong to logits of this many rows; None if there are none."""
    hidden_NH = last_hidden.get("hidden")
    if hidden_NH is None or hidden_NH.shape[0] != logits_NV.shape[0]:
        return None
    return hidden_NH.to(torch.float32)
