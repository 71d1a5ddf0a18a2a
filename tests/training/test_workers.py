"""Several processes take the steps that one would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from crossroads.artifacts import load_tensors, read_json
from crossroads.dataset import LabelledDataset
from crossroads.routing.checkpoint import load_router
from training import two_processes

pytest.importorskip("accelerate")


def _launch(arguments: Sequence[str]) -> str:
    """Run a script or module in two processes and return what both printed."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*launch, *arguments], check=True, env=env, timeout=300, capture_output=True, text=True
    )
    return done.stdout


@pytest.mark.slow
def test_two_processes_train_the_same_router_as_one(
    dataset: LabelledDataset, tmp_path: Path
) -> None:
    script = [two_processes.__file__, str(dataset.folder), str(tmp_path)]
    _launch(script)
    two_processes.main(dataset.folder, tmp_path)
    alone, first, second = (
        load_tensors(tmp_path / f"{name}.safetensors", "weights") for name in ("1-0", "2-0", "2-1")
    )
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], value, rtol=1e-3, atol=1e-5), name


@pytest.mark.slow
def test_two_processes_write_one_router_folder_and_speak_once(
    dataset: LabelledDataset, tmp_path: Path
) -> None:
    out = tmp_path / "router"
    verb = ["-m", "crossroads", "train", str(dataset.folder), str(out), "--set", "epochs=2"]
    printed = _launch(verb)
    assert printed.count("router and report.html in") == 1
    assert not (out / "state").exists()
    assert len((out / "history.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    assert read_json(out / "report.json", "report")["best_epoch"] in (1, 2)
    assert load_router(out).card.threshold > 0
    assert _launch(verb).count("router and report.html in") == 1
