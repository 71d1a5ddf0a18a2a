"""transformers' assisted generation on the weights of two GGUF files, unpacked to bfloat16."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from crossroads.evaluation.speed.measure import Run
from crossroads.evaluation.speed.systems import System
from crossroads.models.hf_source import find_source
from crossroads.models.llamacpp import LlamaCppLM


def assisted(small: LlamaCppLM, large: LlamaCppLM) -> Callable[[int], dict[str, System]]:
    """Return what makes the systems: transformers' large model alone, and with its assistant.

    Effects: the models are loaded when the systems are made.

    Raises (then):
        EngineError: transformers is not installed, or cannot load them.
    """

    def systems(max_tokens: int) -> dict[str, System]:
        models = [
            find_source(model.path.parent, None, model.path.name).load_model("bfloat16", "cpu")
            for model in (large, small)
        ]
        return {
            "large alone (transformers)": _system(models[0], None, max_tokens),
            "assisted (transformers)": _system(models[0], models[1], max_tokens),
        }

    return systems


def _system(model: Any, assistant: Any, max_tokens: int) -> System:
    def run(prompt: Sequence[int]) -> Run:
        ids = torch.tensor([list(prompt)])
        started = time.perf_counter()
        with torch.inference_mode():
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                assistant_model=assistant,
                max_new_tokens=max_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return Run(output.shape[1] - len(prompt), time.perf_counter() - started)

    return run
