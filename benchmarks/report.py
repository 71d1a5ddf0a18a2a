"""Time and peak memory of a report, against the number of traces, on a synthetic run folder.

    python benchmarks/report.py --traces 10000 --out benchmarks/results/DATE-report.json
    python benchmarks/report.py --traces 200 --keep /tmp/run      # a run folder to look at

The run is written first, by a process of its own; then another process summarises it and writes
the report, so that its peak memory is that of a report and nothing else.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from crossroads.artifacts import write_json
from crossroads.evaluation.folder import RunFolder, RunRecord, SystemEntry, TaskEntry
from crossroads.evaluation.kinds import SystemKind
from crossroads.evaluation.report import write_report
from crossroads.evaluation.stored import StoredAnswer
from crossroads.evaluation.summary import summarise
from crossroads.grading import Grade
from crossroads.provenance import provenance
from crossroads.tasks.evaluation import Item
from crossroads.types import Cause, FinishReason, Message, Problem, Role, TokenRecord, Trace

TASK = "synthetic"
VOCABULARY = 20_000
SYLLABLES = [*"abcdefghijklmnopqrstuvwxyz0123456789+=(),.\n"]
# name, kind, router, threshold, share of tokens that the large model writes, accuracy
SYSTEMS = (
    ("small", SystemKind.SMALL, None, None, 0.0, 0.25),
    ("large", SystemKind.LARGE, None, None, 1.0, 0.6),
    ("router", SystemKind.ROUTER, "default", 0.03, 0.08, 0.45),
    ("router~0.2", SystemKind.ROUTER, "default", 0.01, 0.2, 0.55),
    ("entropy~router", SystemKind.BASELINE, "entropy", 0.2, 0.08, 0.37),
    ("entropy~0.2", SystemKind.BASELINE, "entropy", 0.1, 0.2, 0.45),
    ("random~router", SystemKind.BASELINE, "random", 0.92, 0.08, 0.3),
    ("random~0.2", SystemKind.BASELINE, "random", 0.8, 0.2, 0.33),
)


def main() -> None:
    """Write a run, measure its report, print and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=200, help="mean length of an answer")
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="write the run here, and keep it")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", type=Path, help="report on this run and print its row")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        path = options.keep or Path(temporary) / "run"
        write_run(path, options.traces, options.tokens, options.samples)
        command = [sys.executable, __file__, "--measure", str(path)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row = {"traces": options.traces, "tokens": options.tokens} | json.loads(done.stdout)
    for name, value in row.items():
        print(f"{name:>26} {value:,.1f}" if isinstance(value, float) else f"{name:>26} {value:,}")
    if options.out:
        write_json(options.out, {"row": row, "provenance": provenance()})


def measure(path: Path) -> dict[str, float]:
    """Summarise and report; return seconds, and MiB of memory and files."""
    folder = RunFolder(path)
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start, worked = time.perf_counter(), time.process_time()
    results = summarise(folder)
    summarised, summary_work = time.perf_counter(), time.process_time()
    page = write_report(folder, results)
    end, report_work = time.perf_counter(), time.process_time()
    return {
        "summary_seconds": summarised - start,
        "report_seconds": end - summarised,
        # Of the processor alone: what the seconds would be on a machine with nothing else to do.
        "summary_processor_seconds": summary_work - worked,
        "report_processor_seconds": report_work - summary_work,
        "imports_mib": imported,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "page_mib": page.stat().st_size / 2**20,
        "table_mib": (path / "answers.parquet").stat().st_size / 2**20,
    }


def write_run(path: Path, traces: int, tokens: int, samples: int) -> None:
    """Write a run of about `traces` answers; the same numbers give the same run."""
    generator = np.random.default_rng(0)
    folder = RunFolder(path)
    problems = max(1, traces // (len(SYSTEMS) * samples))
    items = [
        Item(Problem(f"s-{i}", (Message("user", question(i)),), str(i), TASK), {})
        for i in range(problems)
    ]
    folder.write_items(TASK, items)
    folder.add_pieces({i: piece(i) for i in range(VOCABULARY)})
    for system in SYSTEMS:
        log = folder.log(TASK, system[0])
        log.path.parent.mkdir(parents=True, exist_ok=True)
        with log.path.open("w", encoding="utf-8") as file:  # `append` waits for the disk each time
            for item in items:
                for sample in range(samples):
                    answer = answer_of(item.problem, sample, system, tokens, generator)
                    file.write(json.dumps(answer.to_json(), ensure_ascii=False) + "\n")
    model: dict[str, Any] = {"fingerprint": "none", "dtype": "none"}
    folder.write_record(
        RunRecord(
            pair="synthetic",
            small={"name": "small", "active_parameters": 494_000_000, **model},
            large={"name": "large", "active_parameters": 1_540_000_000, **model},
            tasks=(TaskEntry(TASK, "math", problems, {"about": "made-up answers", "seed": 0}),),
            systems=tuple(entry(system) for system in SYSTEMS),
            settings={"samples": samples, "max_tokens": 4 * tokens, "seed": 0},
            provenance={"command": "benchmarks/report.py"},
        )
    )


def entry(system: tuple[Any, ...]) -> SystemEntry:
    name, kind, router, threshold, *_ = system
    parameters = 2_000_000 if router == "default" else 0
    like = name.partition("~")[2] or None
    return SystemEntry(name, kind, router, parameters, threshold, matched_to=like)


def question(number: int) -> str:
    return f"What is {number} + 0? Think step by step and put the answer into \\boxed{{}}."


def piece(token: int) -> bytes:
    """Return made-up text; one id in a hundred is a part of a character."""
    if token % 100 == 0:
        return "\N{SLIGHTLY SMILING FACE}".encode()[:2]
    if token % 100 == 1:
        return "\N{SLIGHTLY SMILING FACE}".encode()[2:]
    first, second = token % len(SYLLABLES), token // len(SYLLABLES) % len(SYLLABLES)
    return f" {SYLLABLES[first]}{SYLLABLES[second]}".encode()


def answer_of(
    problem: Problem,
    sample: int,
    system: tuple[Any, ...],
    tokens: int,
    generator: np.random.Generator,
) -> StoredAnswer:
    _, kind, router, threshold, fraction, accuracy = system
    count = 1 + int(generator.gamma(4, tokens / 4))
    # Common tokens are common, and the large model is asked more often at the start.
    ids = np.minimum(generator.zipf(1.3, count), VOCABULARY - 1).tolist()
    slope = 1.5 - np.arange(count) / count
    large = generator.random(count) < np.minimum(1, fraction * slope if router else fraction)
    entropies = generator.gamma(0.3, 1.0, count).tolist()
    scores = np.where(large, 0.5, 0.01) * generator.random(count)
    records, lag = [], 0
    for i in range(count):
        lag += 1
        wrote = bool(large[i])
        records.append(
            TokenRecord(
                position=i,
                token_id=ids[i],
                writer=Role.LARGE if wrote else Role.SMALL,
                proposed_id=(
                    None
                    if kind is SystemKind.LARGE
                    else int(generator.integers(2, 2000))
                    if wrote and i % 2
                    else ids[i]
                ),
                score=float(scores[i]) if router else None,
                entropy=None if kind is SystemKind.LARGE else entropies[i],
                lag=lag if wrote else 0,
                seconds=0.03 * i,
                cause=Cause.ROUTER if wrote and router else None,
            )
        )
        lag = 0 if wrote else lag
    luck = generator.random()
    text = b"".join(piece(i) for i in ids).decode("utf-8", "replace")
    if luck < accuracy:
        grade, reason = Grade(True, problem.answer, "equal as numbers"), FinishReason.EOS
    elif luck < accuracy + 0.8 * (1 - accuracy):
        grade, reason = Grade(False, "-1", "another number"), FinishReason.EOS
    else:
        grade, reason = Grade(False, None, "no complete \\boxed{}"), FinishReason.LENGTH
    trace = Trace((1, 2, 3), tuple(records), reason, text, threshold, sample, problem.id)
    return StoredAnswer(problem.id, sample, trace, grade, 0.03 * count)


if __name__ == "__main__":
    main()
