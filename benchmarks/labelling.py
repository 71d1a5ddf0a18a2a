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
from crossroads.decoding.request import Request
from crossroads.decoding.single import generate_alone
from crossroads.labelling.build import BuildConfig
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
from crossroads.types import Problem, Role

JUDGES = ("likelihood", "convergence")


def main() -> None:
    """Run baseline and stages, write the JSON after each."""
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
        result["baseline"] = one_at_a_time(pair, problems[: options.baseline], options.max_tokens)
        write_json(options.out, result)
        folder = options.folder or Path(tempfile.mkdtemp())
        result["stages"] = stage_by_stage(pair, problems, folder, options)
    result["speedup"] = {
        stage: result["baseline"]["ms_per_token"][stage] / result["stages"]["ms_per_token"][stage]
        for stage in ("respond", "compare", "continue", "all")
    }
    write_json(options.out, result)
    print(result["speedup"])


def one_at_a_time(pair: Pair, problems: Sequence[Problem], max_tokens: int) -> dict[str, Any]:
    """Return the times of answering, comparing and continuing without batches or forks."""
    seconds = dict.fromkeys(("respond", "compare", "continue"), 0.0)
    tokens = mismatches = grown = 0
    for problem in problems:
        started = time.perf_counter()
        request = Request(tuple(pair.tokenizer.render(problem.messages)), max_tokens=max_tokens)
        ((_, trace),) = generate_alone(
            pair.large, Role.LARGE, pair.tokenizer, [request], max_rows=1
        )
        seconds["respond"] += time.perf_counter() - started
        tokens += len(trace.token_ids)
        started = time.perf_counter()
        comparison = compare(pair.small, pair.large, trace.prompt_ids, trace.token_ids)
        seconds["compare"] += time.perf_counter() - started
        started = time.perf_counter()
        text = [*trace.prompt_ids, *trace.token_ids]
        for mismatch in mismatches_of(comparison):
            at = len(trace.prompt_ids) + mismatch.position
            grown += len(continue_alone(pair, [*text[:at], mismatch.small_id]))
            mismatches += 1
        seconds["continue"] += time.perf_counter() - started
    return summary(seconds, tokens) | {
        "problems": len(problems), "mismatches": mismatches, "continuation_tokens": grown,
    }  # fmt: skip


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


def stage_by_stage(
    pair: Pair, problems: Sequence[Problem], folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Return the times of the stages as `crossroads label` runs them."""
    judges = [judge_by_name(name) for name in JUDGES]
    config = LabelConfig(
        RespondConfig(options.max_tokens), build=BuildConfig(), max_rows=options.rows
    )
    seconds = {}
    with RichProgress() as progress:
        for stage in STAGES:
            started = time.perf_counter()
            label(pair, problems, judges, folder, progress, config, stages=[stage])
            seconds[stage] = time.perf_counter() - started
            print(stage, f"{seconds[stage]:.0f} s", flush=True)
    card = read_json(folder / "dataset.json", "dataset card")
    positions = card["base_rates"]["all"]["positions"]
    files = [path for path in folder.rglob("*") if path.is_file()]
    return summary(seconds, positions) | {
        "problems": len(problems),
        "unfinished": len(card["unfinished"]),
        "base_rates": card["base_rates"],
        "bytes_per_position": sum(path.stat().st_size for path in files) / positions,
    }


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
