"""Tokens per second of the transformers engine, rows read together beside rows read one by one.

    python benchmarks/slot_cache.py --out benchmarks/results/slot-cache.json

A random Qwen2 of some million parameters, so that the numbers say what batching does and nothing
about a real model. Prompts are ragged. Three workloads: `write`, one token per row and step;
`catch up`, 1 to 12 tokens per row and step, as a large model reads its lag; `alternate`, one token
for every other row, so that the slots of a pass do not follow each other. Both paths take turns,
repeat by repeat, so that a noisy machine slows both; read the ratios. On a busy machine take
`--clock cpu --threads 1`: the processor time of the run, which others do not take part in.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from crossroads.models.base import Want
from crossroads.models.transformers import TransformersLM
from crossroads.provenance import provenance

VOCAB, CONTEXT, LAG = 8192, 4096, 12
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Row:
    """One workload: new tokens per second, medians over the repeats."""

    workload: str
    rows: int
    together: float
    one_by_one: float
    ratio: float


def main() -> None:
    """Run, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--prompt", type=int, default=192, help="tokens of the longest prompt")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--threads", type=int, default=None, help="torch's; its own choice if left out"
    )
    parser.add_argument(
        "--free-area", type=int, default=None, help="padded tokens of a pass not worth another one"
    )
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    network = random_model(options.hidden, options.layers).to(
        device=options.device, dtype=getattr(torch, options.dtype)
    )
    engines = [
        TransformersLM(network, name="random", fingerprint="random", batched=batched)
        for batched in (True, False)
    ]
    if options.free_area is not None:
        engines[0]._store._free_area = options.free_area
    rows = [
        measure(name, workload, engines, count, options)
        for count in options.rows
        for name, workload in WORKLOADS.items()
    ]
    show(rows)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        result = {
            "rows": [asdict(row) for row in rows],
            "provenance": provenance(
                parameters=engines[0].info.parameters,
                settings={key: value for key, value in vars(options).items() if key != "out"},
                threads=torch.get_num_threads(),
                device=torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
            ),
        }
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def random_model(hidden: int, layers: int) -> Any:
    """Return a Qwen2 with grouped heads of 64 and random weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM  # noqa: PLC0415

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 128),
        max_position_embeddings=CONTEXT,
    )
    return Qwen2ForCausalLM(config)


def write(count: int, _step: int, _generator: random.Random) -> dict[int, int]:
    """Return how many tokens each row reads in a step: one."""
    return dict.fromkeys(range(count), 1)


def catch_up(count: int, _step: int, generator: random.Random) -> dict[int, int]:
    """Return ragged numbers of tokens."""
    return {row: generator.randint(1, LAG) for row in range(count)}


def alternate(count: int, step: int, _generator: random.Random) -> dict[int, int]:
    """Return one token for every other row, even and odd rows by turns."""
    return dict.fromkeys(range(step % 2 if count > 1 else 0, count, 2), 1)


Workload = Callable[[int, int, random.Random], dict[int, int]]
WORKLOADS: dict[str, Workload] = {"write": write, "catch up": catch_up, "alternate": alternate}


def measure(
    name: str,
    workload: Workload,
    engines: Sequence[TransformersLM],
    count: int,
    options: argparse.Namespace,
) -> Row:
    """Return the medians of one workload; the first repeat warms up and does not count."""
    speeds: list[list[float]] = [[] for _ in engines]
    for repeat in range(options.repeats + 1):
        for engine, taken in zip(engines, speeds, strict=True):
            speed = run(engine, workload, count, options)
            if repeat:
                taken.append(speed)
    together, one_by_one = (statistics.median(taken) for taken in speeds)
    return Row(name, count, together, one_by_one, together / one_by_one)


def run(
    engine: TransformersLM, workload: Workload, count: int, options: argparse.Namespace
) -> float:
    """Return new tokens per second of one run, its prompts left out."""
    generator = random.Random(0)

    def some(size: int) -> list[int]:
        return [generator.randrange(VOCAB) for _ in range(size)]

    steps = []
    prompts = [some(generator.randint(options.prompt // 4, options.prompt)) for _ in range(count)]
    for step in range(options.steps):
        sizes = workload(count, step, generator)
        steps.append({row: some(size) for row, size in sizes.items()})
    caches = [engine.new_cache() for _ in range(count)]
    engine.extend(caches, prompts)
    clock = CLOCKS[options.clock]
    started = clock()
    for tokens in steps:  # outputs come to the CPU, so a GPU has finished when they are there
        engine.extend([caches[row] for row in tokens], list(tokens.values()), Want(top_k=10))
    seconds = clock() - started
    for cache in caches:
        cache.release()
    return sum(len(new) for tokens in steps for new in tokens.values()) / seconds


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    print(f"{'workload':<12}{'rows':>5}{'together':>11}{'one by one':>12}{'ratio':>7}")
    for r in rows:
        print(f"{r.workload:<12}{r.rows:>5}{r.together:11.0f}{r.one_by_one:12.0f}{r.ratio:7.2f}")


if __name__ == "__main__":
    main()
