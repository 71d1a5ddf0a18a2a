"""Rows trained and fed per second, beside what the machine's arithmetic allows; memory by size.

    python benchmarks/training.py --out results/training.json

The network is R2R's at its size (hidden 1536: 56 M trained numbers), batch 1024, from feature files
on disk, labels from the simulator. The allowance is 6 operations per parameter and row (forward,
and twice that backward) at the rate of the machine's own matrix multiplications of these shapes,
measured in turn with the training steps, so that both see the same machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crossroads.artifacts import write_json
from crossroads.provenance import provenance
from crossroads.simulation.simulate import SimulationConfig, simulate
from crossroads.training.config import FitConfig
from crossroads.training.fit import targets
from crossroads.training.losses import build_loss
from crossroads.training.recipes import recipe
from crossroads.training.rows import Corpus
from crossroads.training.trainer import Trainer
from crossroads.training.workers import Workers
from crossroads.types import Split

HIDDEN, WIDTH, EXPANSION = 1536, 1024, 4
STEPS, ROUNDS = 4, 5


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--positions", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", type=int, help="memory at this size, here; print its row")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(memory(options.one)))
        return
    result: dict[str, Any] = {"provenance": provenance(threads=torch.get_num_threads())}
    with tempfile.TemporaryDirectory() as folder:
        corpus = synthetic(Path(folder), 20_000)
        result["steps"] = steps(corpus)
        result["feed"] = feed(corpus)
    print(json.dumps(result["steps"], indent=2), json.dumps(result["feed"]), flush=True)
    result["memory"] = []
    for positions in options.positions:
        command = [sys.executable, __file__, "--one", str(positions)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        result["memory"].append(json.loads(done.stdout.splitlines()[-1]))
        print(result["memory"][-1], flush=True)
    if options.out:
        write_json(options.out, result)


def synthetic(folder: Path, positions: int) -> Corpus:
    """Return a simulated corpus with feature files under `folder`."""
    config = SimulationConfig(
        problems=max(10, positions // 400), tokens_per_problem=400, hidden_size=HIDDEN
    )
    dataset = simulate(config, folder / "data").dataset
    return Corpus.open([dataset], recipe("r2r").inputs, folder / "features")


def trainer_of(corpus: Corpus, config: FitConfig) -> Trainer:
    """Return a trainer of R2R's network."""
    rows = corpus.split(Split.TRAIN)
    positives = float(rows.positive(config.objective).sum())
    loss = build_loss(config.loss, positives, len(rows) - positives)
    values = config.network_values(corpus.small.hidden_size)
    return Trainer(rows, targets(rows, config), config, values, loss, Workers())


def steps(corpus: Corpus) -> dict[str, Any]:
    """Return rows per second in fp32 and bf16, and the shares of what arithmetic allows."""
    kinds = {name: replace(recipe("r2r"), dtype=name) for name in ("float32", "bfloat16")}
    trainers = {name: trainer_of(corpus, config) for name, config in kinds.items()}
    parameters = sum(p.numel() for p in trainers["float32"].network.parameters())
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    multiplied: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(ROUNDS):
        for name, trainer in trainers.items():
            multiplied[name].append(multiplications(getattr(torch, name)))
            rates[name].append(rows_per_second(trainer))
    found: dict[str, Any] = {"parameters": parameters, "batch": 1024, "rounds": ROUNDS}
    for name in kinds:
        allowed = statistics.median(multiplied[name]) / (6 * parameters)
        measured = statistics.median(rates[name])
        found[name] = {
            "rows_per_second": measured,
            "gflops_of_matmul": statistics.median(multiplied[name]) / 1e9,
            "rows_per_second_allowed": allowed,
            "share_of_allowed": measured / allowed,
        }
    found["bfloat16_by_float32"] = (
        found["bfloat16"]["rows_per_second"] / found["float32"]["rows_per_second"]
    )
    return found


def rows_per_second(trainer: Trainer) -> float:
    """Return the rate of STEPS whole training steps, reading included."""
    size = trainer.config.batch_size
    order = np.random.default_rng(trainer.steps).permutation(len(trainer.rows))[: STEPS * size]
    started = time.perf_counter()
    for rows_n, features, count in trainer._batches(
        order[start : start + size] for start in range(0, len(order), size)
    ):
        trainer._update(rows_n, features, count)
    return len(order) / (time.perf_counter() - started)


def multiplications(dtype: torch.dtype) -> float:
    """Return operations per second of the network's commonest product and its two gradients."""
    rows = torch.randn(1024, WIDTH).to(dtype)
    weight = torch.randn(EXPANSION * WIDTH, WIDTH).to(dtype)
    back = torch.randn(1024, EXPANSION * WIDTH).to(dtype)
    products: list[Callable[[], torch.Tensor]] = [
        lambda: rows @ weight.T,
        lambda: back @ weight,
        lambda: back.T @ rows,
    ]
    for product in products:
        product()
    repeats = 10
    started = time.perf_counter()
    for _ in range(repeats):
        for product in products:
            product()
    operations = repeats * 3 * 2 * 1024 * WIDTH * EXPANSION * WIDTH
    return operations / (time.perf_counter() - started)


def feed(corpus: Corpus) -> dict[str, float]:
    """Return rows read per second in random order, without a network."""
    trainer = trainer_of(corpus, replace(recipe("r2r"), network={"hidden_dims": [8]}))
    size = trainer.config.batch_size
    rounds = 5
    orders = [np.random.default_rng(i).permutation(len(trainer.rows)) for i in range(rounds)]
    started = time.perf_counter()
    parts = (o[s : s + size] for o in orders for s in range(0, len(o), size))
    read = sum(count for _, _, count in trainer._batches(parts))
    return {"rows_per_second": read / (time.perf_counter() - started)}


def memory(positions: int) -> dict[str, Any]:
    """Return memory (MiB) after an epoch was read and a small network trained."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = synthetic(Path(folder), positions)
        config = replace(
            recipe("r2r"), architecture="mlp", network={}, normalise=True, batch_size=1024
        )
        trainer = trainer_of(corpus, config)
        started = time.perf_counter()
        trainer.epoch(1, lambda: None)
        seconds = time.perf_counter() - started
        trainer.logits(corpus.split(Split.TRAIN))
        rows = len(trainer.rows)
        private = _status_mib("RssAnon")
    return {
        "positions": positions,
        "train_rows": rows,
        "rows_per_second_small_network": rows / seconds,
        "mib_peak": round(_status_mib("VmHWM")),
        "mib_private": round(private),
    }


def _status_mib(name: str) -> float:
    """Return a line of this process's status in MiB.

    VmHWM: the peak, file pages that happen to be in memory included. RssAnon: now, without them.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this benchmark reads /proc/self/status, so it needs Linux")


if __name__ == "__main__":
    main()
