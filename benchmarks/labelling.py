"""Tokens labelled per second, stage by stage, against one sequence at a time.

    python benchmarks/labelling.py --problems gsm8k:train.jsonl --out results/labelling.json

Baseline, on the first few of the same problems: every answer alone, and every continuation alone,
from a fresh cache over its whole prefix. Compare reads one response at a time in both. A stage's
rate is response tokens by seconds of the stage, so that the stages' times per token add up.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossroads.artifacts import read_json, write_json
from crossroads.cli.console import RichProgress
from crossroads.dataset import Comparison
from crossroads.decoding.request import Request
from crossroads.decoding.single import generate_alone
from crossroads.labelling.cases import mismatches_of
from crossroads.labelling.compare import compare
from crossroads.labelling.judges import judge_by_name
from crossroads.labelling.respond import RespondConfig
from crossroads.labelling.run import STAGES, LabelConfig, label
from crossroads.labelling.sentences import Cutter, SentenceRule
from crossroads.models.base import Want
from crossroads.models.pairs import Pair, load_pair
from crossroads.provenance import provenance
from crossroads.tasks import load_problems
from crossroads.types import Problem, Role, Trace

JUDGES = ("likelihood", "convergence")


def main() -> None:
    """Run baseline and stages, print the ratios, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", default="qwen2.5-coder")
    parser.add_argument("--problems", required=True, help="a task, such as gsm8k:train.jsonl")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--baseline", type=int, default=5, help="problems one at a time")
    parser.add_argument("--max-tokens", type=int, default=400)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=None, help="keep the labels here")
    options = parser.parse_args()
    problems = load_problems(options.problems, options.count, 0)
    result: dict[str, Any] = {
        "provenance": provenance(threads=options.threads or len(os.sched_getaffinity(0))),
        "options": {k: str(v) for k, v in vars(options).items()},
    }
    with load_pair(
        options.pair, context_length=1024, max_rows=options.rows + 1, threads=options.threads
    ) as pair:
        result |= measure(pair, problems, options)
    result["speedup"] = {
        stage: result["baseline"]["ms_per_token"][stage] / result["stages"]["ms_per_token"][stage]
        for stage in ("respond", "compare", "continue", "all")
    }
    write_json(options.out, result)
    print(result["speedup"])


def measure(pair: Pair, problems: Sequence[Problem], options: argparse.Namespace) -> dict[str, Any]:
    """Return the times of both ways; every stage's baseline runs right before the stage."""
    folder = options.folder or Path(tempfile.mkdtemp())
    judges = [judge_by_name(name) for name in JUDGES]
    config = LabelConfig(RespondConfig(options.max_tokens), max_rows=options.rows)
    alone = Alone(pair, problems[:: max(1, len(problems) // options.baseline)], options.max_tokens)
    seconds: dict[str, float] = {}
    with RichProgress() as progress:
        for stage in STAGES:
            alone.run(stage)
            started = time.perf_counter()
            label(pair, problems, judges, folder, progress, config, stages=[stage])
            seconds[stage] = time.perf_counter() - started
            print(stage, f"{seconds[stage]:.0f} s; alone", alone.seconds.get(stage), flush=True)
    card = read_json(folder / "dataset.json", "dataset card")
    positions = card["base_rates"]["all"]["positions"]
    files = [path for path in folder.rglob("*") if path.is_file()]
    stages = summary(seconds, positions) | {
        "problems": len(problems),
        "unfinished": len(card["unfinished"]),
        "base_rates": card["base_rates"],
        "bytes_per_position": sum(path.stat().st_size for path in files) / positions,
    }
    return {"baseline": alone.summary(), "stages": stages}


class Alone:
    """The same work one sequence at a time, on some of the problems."""

    def __init__(self, pair: Pair, problems: Sequence[Problem], max_tokens: int) -> None:
        self.pair = pair
        self.problems = problems
        self.max_tokens = max_tokens
        self.seconds: dict[str, float] = {}
        self.traces: list[Trace] = []
        self.comparisons: list[Comparison] = []
        self.mismatches = self.grown = 0

    def run(self, stage: str) -> None:
        work = {"respond": self.respond, "compare": self.compare, "continue": self.continue_}
        if stage in work:
            started = time.perf_counter()
            work[stage]()
            self.seconds[stage] = time.perf_counter() - started

    def respond(self) -> None:
        for problem in self.problems:
            prompt = tuple(self.pair.tokenizer.render(problem.messages))
            requests = [Request(prompt, max_tokens=self.max_tokens)]
            answers = generate_alone(
                self.pair.large, Role.LARGE, self.pair.tokenizer, requests, max_rows=1
            )
            self.traces += [trace for _, trace in answers]

    def compare(self) -> None:
        self.comparisons = [
            compare(self.pair.small, self.pair.large, trace.prompt_ids, trace.token_ids)
            for trace in self.traces
        ]

    def continue_(self) -> None:
        for trace, comparison in zip(self.traces, self.comparisons, strict=True):
            text = [*trace.prompt_ids, *trace.token_ids]
            for mismatch in mismatches_of(comparison):
                at = len(trace.prompt_ids) + mismatch.position
                self.grown += len(continue_alone(self.pair, [*text[:at], mismatch.small_id]))
                self.mismatches += 1

    def summary(self) -> dict[str, Any]:
        tokens = sum(len(trace.token_ids) for trace in self.traces)
        return summary(self.seconds, tokens) | {
            "problems": len(self.problems),
            "mismatches": self.mismatches,
            "continuation_tokens": self.grown,
        }


def continue_alone(pair: Pair, text: Sequence[int]) -> tuple[int, ...]:
    """Return one continuation, read and grown by itself."""
    cutter = Cutter(SentenceRule(), pair.tokenizer, pair.large.info.eos_ids)
    cache, unread = pair.large.new_cache(), list(text)
    try:
        ended = cutter.add(text[-1])
        while not ended:
            output = pair.large.extend([cache], [unread], Want())
            unread = [int(output.top_ids_NK[0, 0])]
            ended = cutter.add(unread[0])
    finally:
        cache.release()
    return cutter.span().token_ids


def summary(seconds: dict[str, float], tokens: int) -> dict[str, Any]:
    """Return seconds, and milliseconds per labelled token, by stage and in all."""
    seconds = seconds | {"all": sum(seconds.values())}
    return {
        "tokens": tokens,
        "seconds": seconds,
        "ms_per_token": {stage: 1000 * value / tokens for stage, value in seconds.items()},
    }


if __name__ == "__main__":
    main()
