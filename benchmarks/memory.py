"""Peak memory and disk of labelling against the number of positions, on a synthetic pair.

    python benchmarks/memory.py --out results/memory.json

Every size runs in a process of its own: labels, the dataset, and its export, from a scripted pair
whose hidden states are as wide as the default small model's. The pair itself takes no memory, so
what a process has beyond its imports is what labelling adds to the models.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

import numpy as np

from crossroads.artifacts import write_json
from crossroads.dataset import LabelledDataset
from crossroads.exchange.r2r_export import export_r2r
from crossroads.labelling.judges.convergence import ConvergenceJudge
from crossroads.labelling.judges.likelihood import LikelihoodJudge
from crossroads.labelling.respond import RespondConfig
from crossroads.labelling.run import LabelConfig, label
from crossroads.models.pairs import Pair
from crossroads.models.scripted import ScriptedLM, ScriptedTokenizer
from crossroads.provenance import provenance
from crossroads.types import Message, Problem, SilentProgress

HIDDEN, VOCABULARY, LETTERS = 896, 1000, 94
POSITIONS_PER_ANSWER = 400
MISMATCH = 0.066  # share of positions, as the default pair has it


def main() -> None:
    """Run each size, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--positions", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", type=int, help="run this size here and print its row")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    rows = []
    for positions in options.positions:
        command = [sys.executable, __file__, "--one", str(positions)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout))
        print(rows[-1], flush=True)
    if options.out:
        write_json(options.out, {"rows": rows, "provenance": provenance()})


def measure(positions: int) -> dict[str, float]:
    """Return peak memory (MiB), disk bytes per position and seconds of one size."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    count = max(5, positions // POSITIONS_PER_ANSWER)
    problems = [Problem(f"p{i}", (Message("user", f"Q {i} " + "?" * 60),)) for i in range(count)]
    config = LabelConfig(RespondConfig(POSITIONS_PER_ANSWER + 1), max_rows=16)
    judges = [LikelihoodJudge(), ConvergenceJudge()]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "labels"
        label(pair(), problems, judges, folder, SilentProgress(), config)
        labelled = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        seconds = time.perf_counter() - started
        dataset = LabelledDataset.open(folder)
        export_r2r(dataset, Path(temporary) / "export", kind="parquet")
        needed = [folder / name for name in dataset.card["sha256"]]
        sizes = {
            "dataset": sum(path.stat().st_size for path in needed),
            "with_logs": sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()),
            "export": sum(p.stat().st_size for p in Path(temporary, "export").rglob("*.parquet")),
        }
        rates = dataset.card["base_rates"]["all"]
    return {
        "positions": rates["positions"],
        "mismatch_share": round(1 - rates["identical"], 4),
        "mib_before": round(before),
        "mib_labelling": round(labelled),
        "mib_with_export": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        **{f"{k}_bytes_per_position": round(v / rates["positions"], 1) for k, v in sizes.items()},
        "seconds": round(seconds, 1),
    }


def pair() -> Pair:
    """Return two models that write the same text but for MISMATCH of the positions."""
    size = {"hidden_size": HIDDEN, "context_length": 1024, "max_rows": 20}
    large = ScriptedLM(_logits(small=False), VOCABULARY, name="large", **size)
    small = ScriptedLM(_logits(small=True), VOCABULARY, name="small", **size)
    for model in (large, small):
        model.calls = deque(maxlen=1)  # a test's record of every call is no part of labelling
    return Pair("synthetic", small, large, Letters(VOCABULARY))


class Letters(ScriptedTokenizer):
    """The scripted tokenizer over more ids than there are letters."""

    def pieces(self) -> list[bytes | None]:
        """Return every id's bytes."""
        return [self.text_bytes(i) for i in range(self.vocab_size)]

    def text_bytes(self, token_id: int) -> bytes:
        """Return a letter; nothing for eos."""
        return super().text_bytes(1 + token_id % LETTERS) if token_id else b""


def _logits(*, small: bool):
    noise = np.random.default_rng(0).standard_normal(VOCABULARY).astype(np.float32)
    noise[0] = -20.0

    def logits(prefix: tuple[int, ...]) -> np.ndarray:
        values = np.roll(noise, prefix[-1])
        values[0] = 30.0 if len(prefix) >= POSITIONS_PER_ANSWER + 60 else -20.0
        draw = (prefix[-1] * 2654435761 + len(prefix) * 40503) % 10_000 / 10_000
        chosen = 1 + (prefix[-1] * 31 + len(prefix) * 7) % (VOCABULARY - 2)
        values[chosen] += 9.0
        if small and draw < MISMATCH:
            values[chosen + 1] += 12.0
        return values

    return logits


if __name__ == "__main__":
    main()
