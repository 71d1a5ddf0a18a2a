"""Pairs on which the laws are stated: scripted (exact), tiny transformer, tiny GGUF."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crossroads.decoding.mixed import MixedModels, generate
from crossroads.decoding.request import Request
from crossroads.decoding.single import generate_alone
from crossroads.models.pairs import Pair
from crossroads.models.scripted import ScriptedLM, ScriptedTokenizer
from crossroads.routing.routers.base import Router
from crossroads.routing.routers.heuristics import entropy
from crossroads.sampling import SamplingParams
from crossroads.types import Role, Trace

VOCAB = 64


def scripted_pair(max_rows: int = 64, context_length: int = 4096) -> Pair:
    """Return a small model that mostly agrees with the large one."""
    size = {"context_length": context_length, "max_rows": max_rows}
    large = ScriptedLM.hashed(1, VOCAB, name="large", **size)
    small = ScriptedLM.hashed(2, VOCAB, agrees_with=1, agreement=0.6, name="small", **size)
    return Pair("scripted", small, large, ScriptedTokenizer(VOCAB))


def mixed(
    pair: Pair,
    requests: Sequence[Request],
    threshold: float,
    router: Router | None = None,
    max_rows: int = 8,
) -> list[Trace]:
    """Return the mixed loop's traces in the order of the requests."""
    models = MixedModels(
        pair.small,
        pair.large,
        router or entropy(pair.small.info.vocab_size),
        pair.tokenizer,
        threshold,
    )
    return [t for _, t in sorted(generate(models, requests, max_rows=max_rows), key=lambda x: x[0])]


def alone(pair: Pair, role: Role, requests: Sequence[Request]) -> list[Trace]:
    """Return one model's traces in the order of the requests."""
    model = pair.small if role is Role.SMALL else pair.large
    found = generate_alone(model, role, pair.tokenizer, requests)
    return [t for _, t in sorted(found, key=lambda x: x[0])]


def random_requests(
    count: int, seed: int, temperature: float = 0.0, vocab: int = VOCAB, max_tokens: int = 40
) -> list[Request]:
    """Return requests with prompts of ragged lengths and a seed each."""
    generator = np.random.default_rng(seed)
    return [
        Request(
            tuple(
                int(t) for t in generator.integers(1, vocab, size=int(generator.integers(1, 12)))
            ),
            max_tokens=int(generator.integers(1, max_tokens + 1)),
            sampling=SamplingParams(temperature=temperature, seed=int(generator.integers(1000))),
            id=str(i),
        )
        for i in range(count)
    ]


def tokens(traces: Sequence[Trace]) -> list[tuple[int, ...]]:
    """Return the generated ids of each trace."""
    return [trace.token_ids for trace in traces]
