"""Several processes take the steps that one would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from crossroads.artifacts import load_tensors
from crossroads.dataset import LabelledDataset
from training import two_processes

pytest.importorskip("accelerate")


@pytest.mark.slow
def test_two_processes_train_the_same_router_as_one(
    dataset: LabelledDataset, tmp_path: Path
) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = [two_processes.__file__, str(dataset.folder), str(tmp_path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    subprocess.run([*launch, *script], check=True, env=env, timeout=300, capture_output=True)
    two_processes.main(dataset.folder, tmp_path)
    alone, first, second = (
        load_tensors(tmp_path / f"{name}.safetensors", "weights") for name in ("1-0", "2-0", "2-1")
    )
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], value, rtol=1e-3, atol=1e-5), name
