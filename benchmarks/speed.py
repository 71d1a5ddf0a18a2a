"""Tokens per second of a pair: small alone, large alone, mixed at two thresholds, one run.

    python benchmarks/speed.py --out benchmarks/results/speed.json

Systems take turns prompt by prompt, so that a noisy machine slows all of them; read the ratios.
The ideal of a mixed run is `t_small + large_fraction * t_large`, with both times from the models
alone in the same run: it leaves out that the large model also reads its lag, the router, and the
loop. The loop's own time is what passes outside of the two models' `extend`.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crossroads.decoding.mixed import MixedModels, generate
from crossroads.decoding.request import Request
from crossroads.decoding.single import generate_alone
from crossroads.models.base import CausalLM
from crossroads.models.pairs import Pair, load_pair
from crossroads.provenance import provenance
from crossroads.routing.routers.heuristics import entropy
from crossroads.types import Message, Role, Trace

QUESTIONS = (
    "A baker sells 48 rolls in the morning and half as many in the afternoon. How many in all?",
    "Ann saves 15 dollars a week. How many weeks until she can buy a bicycle for 210 dollars?",
    "A train covers 180 km in 2 hours and 45 km in the next half hour. What is its mean speed?",
    "Three friends share 7 pizzas of 8 slices. Two slices are left. How many slices did each eat?",
    "A tank of 240 litres loses 3 litres an hour. After how many hours is a quarter of it gone?",
)
INSTRUCTION = "Think step by step, then give the final answer in \\boxed{}."
THRESHOLDS = {"mixed, few calls": 0.10, "mixed, more calls": 0.03}


class Timed:
    """A model that keeps the time spent in `extend`."""

    def __init__(self, model: CausalLM) -> None:
        self._model = model
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def extend(self, *arguments: Any) -> Any:
        started = time.perf_counter()
        output = self._model.extend(*arguments)
        self.seconds += time.perf_counter() - started
        return output


@dataclass(frozen=True)
class Row:
    """One system: medians over the prompts; times in milliseconds per generated token."""

    system: str
    tokens_per_second: float
    large_fraction: float
    ms_per_token: float
    ms_in_models: float
    ms_loop: float
    ideal_ms: float | None
    over_ideal: float | None


def main() -> None:
    """Run, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", default="qwen2.5-coder")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    first, peak = first_token(options.pair, options.threads)
    with load_pair(options.pair, context_length=1024, threads=options.threads) as pair:
        rows = measure(pair, options.tokens)
    show(rows)
    print(f"command to first token: {first:.1f} s; peak memory of that process: {peak:.2f} GiB")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        result = {
            "rows": [asdict(row) for row in rows],
            "command_to_first_token_seconds": first,
            "peak_memory_gib": peak,
            "provenance": provenance(questions=len(QUESTIONS), tokens=options.tokens),
        }
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(pair: Pair, max_tokens: int) -> list[Row]:
    """Return one row per system."""
    small, large = Timed(pair.small), Timed(pair.large)
    router = entropy(pair.small.info.vocab_size)

    def alone(model: Timed, role: Role) -> Callable[[Request], Trace]:
        return lambda r: next(iter(generate_alone(model, role, pair.tokenizer, [r])))[1]

    def mixed(threshold: float) -> Callable[[Request], Trace]:
        models = MixedModels(small, large, router, pair.tokenizer, threshold)
        return lambda r: next(iter(generate(models, [r])))[1]

    systems = {
        "small alone": alone(small, Role.SMALL),
        "large alone": alone(large, Role.LARGE),
        **{name: mixed(threshold) for name, threshold in THRESHOLDS.items()},
    }
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in systems}
    for number, question in enumerate(("Warm up.", *QUESTIONS)):
        message = Message("user", f"{question}\n{INSTRUCTION}")
        request = Request(tuple(pair.tokenizer.render([message])), max_tokens=max_tokens)
        for name, system in systems.items():
            small.seconds = large.seconds = 0.0
            started = time.perf_counter()
            trace = system(request)
            seconds = time.perf_counter() - started
            if number:  # the first prompt warms the caches of the machine
                tokens = len(trace.records)
                inside = small.seconds + large.seconds
                fraction = trace.usage.large_fraction
                taken[name].append((seconds / tokens, inside / tokens, fraction))
    return rows_of(taken)


def rows_of(taken: dict[str, list[tuple[float, float, float]]]) -> list[Row]:
    """Return medians over the prompts; ideals are taken prompt by prompt."""
    rows = []
    for name, samples in taken.items():
        whole = [1000 * sample[0] for sample in samples]
        inside = [1000 * sample[1] for sample in samples]
        ideal = over = None
        if name in THRESHOLDS:
            ideals = [
                1000 * (small[0] + sample[2] * large[0])
                for sample, small, large in zip(
                    samples, taken["small alone"], taken["large alone"], strict=True
                )
            ]
            ideal = statistics.median(ideals)
            over = statistics.median([w / i for w, i in zip(whole, ideals, strict=True)])
        rows.append(
            Row(
                system=name,
                tokens_per_second=1000 / statistics.median(whole),
                large_fraction=statistics.mean([sample[2] for sample in samples]),
                ms_per_token=statistics.median(whole),
                ms_in_models=statistics.median(inside),
                ms_loop=statistics.median([w - i for w, i in zip(whole, inside, strict=True)]),
                ideal_ms=ideal,
                over_ideal=over,
            )
        )
    return rows


def first_token(pair: str, threads: int | None) -> tuple[float, float]:
    """Return seconds from the command to its first character, and its peak memory in GiB."""
    command = [sys.executable, "-m", "crossroads", "generate", "Say hello.", "--pair", pair]
    command += ["--max-tokens", "8"]
    command += [] if threads is None else ["--threads", str(threads)]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        seconds = time.perf_counter() - started
        process.stdout.read()
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    print(f"{'system':<20}{'tok/s':>8}{'large':>8}{'ms/tok':>9}{'loop ms':>9}{'ideal':>9}{'x':>7}")
    for r in rows:
        ideal = f"{r.ideal_ms:9.1f}{r.over_ideal:7.2f}" if r.ideal_ms and r.over_ideal else ""
        print(
            f"{r.system:<20}{r.tokens_per_second:8.1f}{r.large_fraction:8.3f}"
            f"{r.ms_per_token:9.1f}{r.ms_loop:9.2f}{ideal}"
        )


if __name__ == "__main__":
    main()
