"""What a router's score costs beside a step of the small model, one row at a time.

    python benchmarks/router.py --router ROUTER --out benchmarks/results/router.json

Every round takes a step without and a step with the hidden state, in turn, and scores the second
one: router inputs from the step's output, then the network. Medians; read the ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from crossroads.artifacts import write_json
from crossroads.models.base import CausalLM, KVCache, Want
from crossroads.models.catalogue import find_pair
from crossroads.models.pairs import load_model
from crossroads.provenance import provenance
from crossroads.routing.checkpoint import load_router
from crossroads.routing.features import TOP_K, FeatureInputs, compute
from crossroads.routing.routers.base import Router
from crossroads.types import Message

QUESTION = "A baker sells 48 rolls in the morning and half as many in the afternoon. How many?"
ROUNDS, WARM_UP = 200, 10


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--router", type=Path, required=True)
    parser.add_argument("--small", help="[default: that of the router's pair]")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    card = load_router(options.router).card
    loaded = load_model(options.small or find_pair(card.pair).small)
    router = load_router(options.router, loaded.model.info).router
    prompt = loaded.tokenizer.render([Message("user", QUESTION)])
    times = measure(loaded.model, router, prompt)
    loaded.close()
    plain, hidden, score = (statistics.median(values) for values in times)
    result: dict[str, Any] = {
        "router": {"inputs": list(router.inputs), "parameters": router.parameters},
        "rounds": ROUNDS,
        "step_ms": 1000 * plain,
        "step_with_hidden_ms": 1000 * hidden,
        "score_ms": 1000 * score,
        "score_share_of_step": score / plain,
        "score_and_hidden_share_of_step": (score + hidden - plain) / plain,
        "provenance": provenance(threads=torch.get_num_threads()),
    }
    print(json.dumps({k: v for k, v in result.items() if k != "provenance"}, indent=2))
    if options.out:
        write_json(options.out, result)


def measure(
    model: CausalLM, router: Router, prompt: list[int]
) -> tuple[list[float], list[float], list[float]]:
    """Return seconds per round: a plain step, a step with hidden state, the score."""
    cache = model.new_cache()
    model.extend([cache], [prompt], Want())
    token = prompt[-1]
    times: tuple[list[float], list[float], list[float]] = ([], [], [])
    for round_ in range(WARM_UP + ROUNDS):
        plain, _ = _step(model, cache, token, hidden=False)
        with_hidden, step = _step(model, cache, token, hidden=True)
        token = int(step.top_ids_NK[0, 0])
        inputs = FeatureInputs(step, torch.tensor([token]), torch.tensor([round_]), model.embed)
        seconds, _ = _timed(lambda i=inputs: router.score(compute(router.inputs, i)))
        if round_ >= WARM_UP:
            for values, value in zip(times, (plain, with_hidden, seconds), strict=True):
                values.append(value)
    return times


def _step(model: CausalLM, cache: KVCache, token: int, *, hidden: bool) -> tuple[float, Any]:
    want = Want(top_k=TOP_K, hidden=hidden)
    return _timed(lambda: model.extend([cache], [[token]], want))


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    value = work()
    return time.perf_counter() - started, value


if __name__ == "__main__":
    main()
