"""Run by torchrun in test_workers: one epoch, and the weights it ends with."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from crossroads.artifacts import save_tensors
from crossroads.dataset import LabelledDataset
from crossroads.training.config import FitConfig
from crossroads.training.fit import fit
from crossroads.training.rows import Corpus
from crossroads.training.workers import Workers
from crossroads.types import SilentProgress

CONFIG = FitConfig(
    inputs=("entropy", "margin", "hidden"),
    network={"dropout": 0.0},
    epochs=2,
    batch_size=101,
    probabilities=False,
)


def main(data: Path, out: Path) -> None:
    torch.set_num_threads(1)
    corpus = Corpus.open([LabelledDataset.open(data)], CONFIG.inputs)
    result = fit(corpus, CONFIG, SilentProgress())
    workers = Workers.of_environment("cpu")
    name = f"{workers.world}-{workers.rank}.safetensors"
    save_tensors(out / name, result.router.network.state_dict(), {})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
