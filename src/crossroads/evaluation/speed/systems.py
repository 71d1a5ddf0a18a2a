"""What is timed: each model by its engine's own loop, ours at some fractions, others' ways."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from crossroads.decoding.mixed import MixedModels, generate
from crossroads.decoding.request import Request
from crossroads.errors import ConfigError
from crossroads.evaluation.speed.measure import Run, Timed
from crossroads.models.llamacpp import LlamaCppLM
from crossroads.models.llamacpp_own import OwnRun, PromptLookup, generate_greedily
from crossroads.models.pairs import Pair
from crossroads.routing.routers.base import Router
from crossroads.routing.routers.heuristics import never, random

System = Callable[[Sequence[int]], Run]
LARGE_ALONE = "large alone (llama.cpp)"
DRAFTS = (2, 4, 6)
"""Draft lengths at which lossless speculation is timed."""


@dataclass(frozen=True, slots=True)
class NativePair:
    """A pair whose models are both llama.cpp's."""

    pair: Pair
    small: LlamaCppLM
    large: LlamaCppLM

    @classmethod
    def of(cls, pair: Pair) -> NativePair:
        """Return the pair.

        Raises:
            ConfigError: a model of another engine, which has no loop of llama.cpp's own.
        """
        small, large = pair.small, pair.large
        if not isinstance(small, LlamaCppLM) or not isinstance(large, LlamaCppLM):
            raise ConfigError(
                "bench speed compares with llama.cpp's own loops and needs two GGUF models; "
                f"{pair.name} has {small.info.engine} and {large.info.engine}"
            )
        return cls(pair, small, large)

    def models(self, router: Router, threshold: float) -> MixedModels:
        """Return what the mixed loop works with."""
        return MixedModels(self.small, self.large, router, self.pair.tokenizer, threshold)


def own_loops(native: NativePair, max_tokens: int) -> dict[str, System]:
    """Return each model alone by llama.cpp's own greedy loop."""

    def system(model: LlamaCppLM) -> System:
        return lambda prompt: _of_own(generate_greedily(model, prompt, max_tokens))

    return {
        "small alone (llama.cpp)": system(native.small),
        LARGE_ALONE: system(native.large),
    }


def prompt_lookup(native: NativePair, lookup: PromptLookup, max_tokens: int) -> dict[str, System]:
    """Return the large model with prompt-lookup drafts, by llama-cpp-python."""
    eos = native.large.info.eos_ids
    return {
        "large, prompt lookup": lambda prompt: _of_own(
            lookup.generate_greedily(prompt, max_tokens, eos)
        )
    }


def _of_own(run: OwnRun) -> Run:
    return Run(len(run.token_ids), run.seconds)


def routed(
    native: NativePair, router: Router, thresholds: dict[float, float], max_tokens: int
) -> dict[str, System]:
    """Return the mixed loop at each threshold, and at random at the same large_fraction.

    thresholds: by the large_fraction that each is meant to have.
    """
    systems: dict[str, System] = {}
    chance = random(native.small.info.vocab_size, seed=0)
    for fraction, threshold in thresholds.items():
        request = Request((0,), max_tokens=max_tokens)
        systems[f"{router.name} at {fraction:g}"] = mixed(native, router, threshold, request)
        systems[f"random at {fraction:g}"] = mixed(native, chance, 1 - fraction, request)
    return systems


def speculation(native: NativePair, max_tokens: int) -> dict[str, System]:
    """Return lossless speculation: no router, drafts of a fixed length."""
    router = never(native.small.info.vocab_size)
    return {
        f"lossless, drafts of {length}": mixed(
            native,
            router,
            1.0,
            Request((0,), max_tokens=max_tokens, lossless=True, max_lag=length - 1),
        )
        for length in DRAFTS
    }


def mixed(native: NativePair, router: Router, threshold: float, request: Request) -> System:
    """Return the mixed loop with one row; `request` without its prompt."""
    models = native.models(router, threshold)

    def run(prompt: Sequence[int]) -> Run:
        started = time.perf_counter()
        ((_, trace),) = generate(models, [replace(request, prompt_ids=tuple(prompt))])
        return Run(len(trace.records), time.perf_counter() - started, trace)

    return run


@dataclass(frozen=True, slots=True)
class BatchRun:
    """All prompts in one run of the loop, and where the time went, prompts included."""

    tokens: int
    seconds: float
    small_seconds: float
    large_seconds: float

    @property
    def ms_per_token(self) -> dict[str, float]:
        """Milliseconds per token in each model, and in the loop itself."""
        loop = self.seconds - self.small_seconds - self.large_seconds
        parts = {"small": self.small_seconds, "large": self.large_seconds, "loop": loop}
        return {name: 1000 * seconds / self.tokens for name, seconds in parts.items()}


def batch_run(
    native: NativePair,
    router: Router,
    threshold: float,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    rows: int,
) -> BatchRun:
    """Run all prompts through the loop, `rows` at a time."""
    requests = [Request(tuple(prompt), max_tokens=max_tokens) for prompt in prompts]
    small, large = Timed(native.small), Timed(native.large)
    models = replace(native.models(router, threshold), small=small, large=large)
    started = time.perf_counter()
    tokens = sum(len(trace.records) for _, trace in generate(models, requests, max_rows=rows))
    return BatchRun(tokens, time.perf_counter() - started, small.seconds, large.seconds)


def thresholds_for(
    native: NativePair,
    router: Router,
    fractions: Sequence[float],
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
) -> dict[float, float]:
    """Return, for each wanted large_fraction, a threshold that comes near it on these prompts.

    A threshold moves the text, and the text the scores, so this goes there in two steps: from the
    scores of the small model alone, then from those at the first threshold.
    """
    found = {}
    for fraction in fractions:
        threshold = 1.5
        for _ in range(2):
            scores = _scores(native, router, threshold, prompts, max_tokens)
            threshold = float(np.quantile(scores, 1 - fraction))
        found[fraction] = threshold
    return found


def _scores(
    native: NativePair,
    router: Router,
    threshold: float,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
) -> list[float]:
    requests = [Request(tuple(prompt), max_tokens=max_tokens) for prompt in prompts]
    traces = generate(native.models(router, threshold), requests, max_rows=len(requests))
    return [record.score or 0.0 for _, trace in traces for record in trace.records]
