"""Problems per minute of `crossroads evaluate` beside a loop that answers one problem at a time.

    python benchmarks/evaluate.py --task gsm8k:train.jsonl --out benchmarks/results/evaluate.json

Both take the same path through the code (answers are graded, traces are stored), with 8 rows and
with one; systems take turns. Read the ratios.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from crossroads.artifacts import write_json
from crossroads.evaluation.folder import RunFolder
from crossroads.evaluation.run import Bench, RunSettings, run_system
from crossroads.evaluation.systems import System, parse_systems
from crossroads.models.pairs import load_pair, resolve_pair
from crossroads.provenance import provenance
from crossroads.routing.choose import choose_router
from crossroads.tasks.evaluation import EvaluationTask, load_task
from crossroads.types import SilentProgress

SYSTEMS = ("small", "large", "router")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", required=True)
    parser.add_argument("--last", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    task = load_task(options.task, slice(-options.last, None))
    seconds: dict[str, dict[int, float]] = {name: {} for name in SYSTEMS}
    spec = resolve_pair(None, small=None, large=None)
    with load_pair(spec, context_length=1024, max_rows=options.rows) as pair:
        chosen = choose_router(None, pair.small.info, pair.large.info)
        systems = parse_systems(SYSTEMS, pair.small.info.vocab_size, chosen)
        for system in systems:
            for rows in (options.rows, 1):
                settings = RunSettings(max_tokens=options.max_tokens, rows=rows)
                with tempfile.TemporaryDirectory() as folder:
                    bench = Bench(pair, RunFolder(Path(folder)), settings, SilentProgress())
                    seconds[system.name][rows] = _timed(bench, task, system)
    result: dict[str, Any] = {
        "problems": len(task.items),
        "rows": options.rows,
        "problems_per_minute": {
            name: {str(rows): 60 * len(task.items) / value for rows, value in found.items()}
            for name, found in seconds.items()
        },
        "ratio": {name: found[1] / found[options.rows] for name, found in seconds.items()},
        "provenance": provenance(threads=torch.get_num_threads()),
    }
    print(json.dumps({k: v for k, v in result.items() if k != "provenance"}, indent=2))
    if options.out:
        write_json(options.out, result)


def _timed(bench: Bench, task: EvaluationTask, system: System) -> float:
    started = time.perf_counter()
    run_system(bench, task, system)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
