"""Run problems through systems; resumable per answer, graded, with every trace kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from crossroads.artifacts import canonical_hash, pin_config
from crossroads.decoding.mixed import MixedModels, generate
from crossroads.decoding.oracle import generate_oracle
from crossroads.decoding.progress import AnswerProgress
from crossroads.decoding.request import Request
from crossroads.decoding.served import drawn_by
from crossroads.decoding.single import generate_alone
from crossroads.errors import DataError
from crossroads.evaluation.folder import RunFolder
from crossroads.evaluation.stored import StoredAnswer, answer_key
from crossroads.evaluation.systems import System
from crossroads.grading.rules import grade_by_rule
from crossroads.models.pairs import Pair
from crossroads.sampling import SamplingParams
from crossroads.tasks.evaluation import EvaluationTask, Item
from crossroads.types import OnLoss, Progress, Role, Trace


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How every system is run.

    max_tokens: of an answer; None takes each task's own. rows: answers at a time. samples:
    answers per problem. sampling: how tokens are drawn; its seed starts the answers' own seeds.
    on_loss: what routed answers do when no server of the large model answers.
    """

    max_tokens: int | None = None
    rows: int = 8
    samples: int = 1
    sampling: SamplingParams = SamplingParams()  # noqa: RUF009  frozen
    on_loss: OnLoss = OnLoss.FAIL

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing.

        Raises:
            DataError: several samples of the one answer that greedy decoding gives.
        """
        if self.samples > 1 and self.sampling.greedy:
            raise DataError(
                f"{self.samples} samples of a greedy answer are all the same; "
                "give a --temperature above 0"
            )

    def limit(self, task: EvaluationTask) -> int:
        """Return the longest answer to that task."""
        return self.max_tokens or task.max_tokens


@dataclass(frozen=True, slots=True)
class Bench:
    """What systems are run with."""

    pair: Pair
    folder: RunFolder
    settings: RunSettings
    progress: Progress


def run_system(bench: Bench, task: EvaluationTask, system: System) -> None:
    """Let a system with a threshold answer the task; what is answered already is not run again.

    Effects: each finished answer is graded and added to the run folder's log.

    Raises:
        ConfigError: the folder holds answers of another system of that name.
    """
    log = bench.folder.log(task.name, system.name)
    pin_config(log.path.with_suffix(".json"), identity_of(bench, task, system), "answers")
    done = {record["key"] for record in log}
    settings = bench.settings
    wanted = [
        (item, sample)
        for item in task.items
        for sample in range(settings.samples)
        if answer_key(item.problem.id, sample) not in done
    ]
    total = len(task.items) * settings.samples
    bench.progress.start(f"{task.name}: {system.name}", total, "answers")
    bench.progress.advance(total - len(wanted))
    shown = AnswerProgress(bench.progress, settings.limit(task))
    requests = [request_for(bench, task, system, item, sample) for item, sample in wanted]
    before = time.perf_counter()
    for number, trace in traces(bench, system, requests, shown.token):
        seconds = time.perf_counter() - before
        item, sample = wanted[number]
        gold = item.problem.answer or ""
        grade = grade_by_rule(task.rule, trace.text, gold, item.details)
        log.append(StoredAnswer(item.problem.id, sample, trace, grade, seconds).to_json())
        shown.answer(len(trace.records))
        before = time.perf_counter()  # grading is no part of generating
    bench.progress.finish()


def traces(
    bench: Bench,
    system: System,
    requests: Sequence[Request],
    on_token: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, Trace]]:
    """Yield (index of the request, its trace) as a system finishes them."""
    pair, rows = bench.pair, bench.settings.rows
    if system.role is not None:
        model = pair.small if system.role is Role.SMALL else pair.large
        yield from generate_alone(
            model, system.role, pair.tokenizer, requests, max_rows=rows, on_token=on_token
        )
    elif system.oracle_ratio is not None:
        yield from generate_oracle(
            pair, requests, ratio=system.oracle_ratio, max_rows=rows, on_token=on_token
        )
    else:
        assert system.router is not None
        assert system.threshold is not None
        models = MixedModels(
            pair.small, pair.large, system.router, pair.tokenizer, system.threshold
        )
        yield from generate(
            models, requests, max_rows=rows, on_token=on_token, on_loss=bench.settings.on_loss
        )


def request_for(
    bench: Bench, task: EvaluationTask, system: System, item: Item, sample: int
) -> Request:
    """Return what a system is asked for one answer; its seed is the same for every system."""
    sampling = bench.settings.sampling
    if not sampling.greedy:
        sampling = replace(sampling, seed=_seed(sampling.seed, item.problem.id, sample))
    return Request(
        tuple(bench.pair.tokenizer.render(item.problem.messages)),
        max_tokens=bench.settings.limit(task),
        sampling=sampling,
        stop=task.stop,
        id=answer_key(item.problem.id, sample),
        **system.options,
    )


def _seed(seed: int, problem_id: str, sample: int) -> int:
    """Return the seed of an answer: the same for every system, another for every sample."""
    return int(canonical_hash([seed, problem_id, sample])[:8], 16)


def identity_of(bench: Bench, task: EvaluationTask, system: System) -> dict[str, Any]:
    """Return all that an answer depends on; how many rows run together is not among it."""
    on_loss = bench.settings.on_loss
    sampling = bench.settings.sampling
    alone = bench.pair.large if system.role is Role.LARGE else bench.pair.small
    return {
        # Left out where nothing can be lost, so that runs from before there was a choice go on.
        **({} if on_loss is OnLoss.FAIL else {"on_loss": on_loss.value}),
        "small": bench.pair.small.info.fingerprint,
        "large": bench.pair.large.info.fingerprint,
        "task": canonical_hash([[asdict(item.problem), dict(item.details)] for item in task.items]),
        "rule": task.rule,
        "stop": list(task.stop),
        "system": system.name,
        "router": system.identity,
        "threshold": system.threshold,
        "options": dict(system.options),
        "max_tokens": bench.settings.limit(task),
        "samples": bench.settings.samples,
        "sampling": asdict(sampling),
        **drawn_by(alone, sampling),
    }
