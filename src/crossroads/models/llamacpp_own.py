"""llama.cpp's own ways to generate, without our loop: baselines for `crossroads bench speed`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossroads.errors import EngineError
from crossroads.models.llamacpp import LlamaCppLM


@dataclass(frozen=True, slots=True)
class OwnRun:
    """Generated ids, the seconds until the first of them, and until the last."""

    token_ids: tuple[int, ...]
    first_seconds: float
    seconds: float


def generate_greedily(model: LlamaCppLM, prompt_ids: Sequence[int], max_tokens: int) -> OwnRun:
    """Return a greedy continuation by `llama_decode` and llama.cpp's own greedy sampler.

    The sampler reads the logits where llama.cpp left them: nothing is copied to Python.
    """
    library, context = model._llama, model._context
    cache = model.new_cache()
    sampler = library.llama_sampler_init_greedy()
    written: list[int] = []
    started = time.perf_counter()
    first = 0.0
    try:
        tokens = list(prompt_ids)
        while len(written) < max_tokens and (not written or written[-1] not in model.info.eos_ids):
            model.read_only(cache, tokens)
            written.append(int(library.llama_sampler_sample(sampler, context, -1)))
            first = first or time.perf_counter() - started
            tokens = written[-1:]
        return OwnRun(tuple(written), first, time.perf_counter() - started)
    finally:
        library.llama_sampler_free(sampler)
        cache.release()


class PromptLookup:
    """llama-cpp-python's generation with its prompt-lookup drafts, in a context of its own."""

    def __init__(self, path: Path, context_length: int, threads: int | None) -> None:
        """Load the file once more (its pages are shared).

        Raises:
            EngineError: llama-cpp-python is not installed, or cannot load it.
        """
        try:
            from llama_cpp import Llama  # noqa: PLC0415
            from llama_cpp.llama_speculative import LlamaPromptLookupDecoding  # noqa: PLC0415
        except ImportError as error:
            raise EngineError(f"llama-cpp-python cannot be loaded: {error}") from error
        self._llama: Any = Llama(
            str(path),
            n_ctx=context_length,
            n_threads=threads,
            n_threads_batch=threads,
            logits_all=True,
            verbose=False,
            # Two drafts are what its documentation advises without a GPU.
            draft_model=LlamaPromptLookupDecoding(num_pred_tokens=2),
        )

    def generate_greedily(
        self, prompt_ids: Sequence[int], max_tokens: int, eos_ids: Sequence[int]
    ) -> OwnRun:
        """Return a greedy continuation."""
        written: list[int] = []
        started = time.perf_counter()
        first = 0.0
        self._llama.reset()
        for token in self._llama.generate(list(prompt_ids), temp=0.0, repeat_penalty=1.0):
            written.append(int(token))
            first = first or time.perf_counter() - started
            if len(written) >= max_tokens or token in eos_ids:
                break
        return OwnRun(tuple(written), first, time.perf_counter() - started)

    def close(self) -> None:
        """Free the context."""
        self._llama.close()
