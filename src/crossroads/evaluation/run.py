"""Run problems through systems; resumable per problem, graded, with every trace kept."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from crossroads.artifacts import ResumableLog, canonical_hash, pin_config
from crossroads.decoding.mixed import MixedModels, generate
from crossroads.decoding.progress import AnswerProgress
from crossroads.decoding.request import Request
from crossroads.decoding.single import generate_alone
from crossroads.errors import DataError
from crossroads.evaluation.results import GradedTrace, SystemKind, SystemRun
from crossroads.grading import grade
from crossroads.models.pairs import Pair
from crossroads.routing.routers.base import Router
from crossroads.types import Problem, Progress, Role, Trace


@dataclass(frozen=True, slots=True)
class System:
    """What answers the problems: one model alone (`role`), or both with a router.

    `recall` and `positive_rate` are what calibration promised at the threshold; for the tables.
    """

    name: str
    kind: SystemKind
    role: Role | None = None
    router: Router | None = None
    threshold: float | None = None
    recall: float | None = None
    positive_rate: float | None = None


@dataclass(frozen=True, slots=True)
class RunConfig:
    """How every system is run."""

    max_tokens: int = 512
    max_rows: int = 8


def run_system(
    pair: Pair,
    system: System,
    problems: Sequence[Problem],
    folder: Path,
    progress: Progress,
    config: RunConfig = RunConfig(),
) -> SystemRun:
    """Return the system's graded traces, in the problems' order.

    Effects: each finished trace is added to `folder/traces.jsonl` with the time since the one
    before it; what is there already is not run again.

    Raises:
        DataError: a problem without an answer. ConfigError: the folder holds another run.
    """
    missing_answer = [problem.id for problem in problems if problem.answer is None]
    if missing_answer:
        raise DataError(f"problem {missing_answer[0]!r} has no answer to grade against")
    pin_config(folder / "config.json", _identity(pair, system, problems, config), "traces")
    log = ResumableLog(folder / "traces.jsonl")
    done = {r["trace"]["id"]: (Trace.from_json(r["trace"]), float(r["seconds"])) for r in log}
    missing = [problem for problem in problems if problem.id not in done]
    progress.start(system.name, len(problems), "problems")
    progress.advance(len(problems) - len(missing))
    shown = AnswerProgress(progress, config.max_tokens)
    before = time.perf_counter()
    for trace in _traces(pair, system, missing, config, shown):
        now = time.perf_counter()
        log.append({"trace": trace.to_json(), "seconds": now - before})
        done[trace.id] = (trace, now - before)
        before = now
        shown.answer(len(trace.records))
    progress.finish()
    return _graded(system, problems, done)


def _identity(
    pair: Pair, system: System, problems: Sequence[Problem], config: RunConfig
) -> dict[str, object]:
    return {
        "small": pair.small.info.fingerprint,
        "large": pair.large.info.fingerprint,
        "problems": canonical_hash([asdict(problem) for problem in problems]),
        "system": system.name,
        "router": system.router.name if system.router else None,
        "threshold": system.threshold,
        "max_tokens": config.max_tokens,
    }


def _traces(
    pair: Pair,
    system: System,
    problems: Sequence[Problem],
    config: RunConfig,
    shown: AnswerProgress,
) -> Iterator[Trace]:
    requests = [
        Request(
            tuple(pair.tokenizer.render(problem.messages)),
            max_tokens=config.max_tokens,
            id=problem.id,
        )
        for problem in problems
    ]
    if system.role is not None:
        model = pair.small if system.role is Role.SMALL else pair.large
        alone = generate_alone(
            model,
            system.role,
            pair.tokenizer,
            requests,
            max_rows=config.max_rows,
            on_token=shown.token,
        )
        yield from (trace for _, trace in alone)
        return
    assert system.router is not None
    assert system.threshold is not None
    models = MixedModels(pair.small, pair.large, system.router, pair.tokenizer, system.threshold)
    mixed = generate(models, requests, max_rows=config.max_rows, on_token=shown.token)
    yield from (trace for _, trace in mixed)


def _graded(
    system: System, problems: Sequence[Problem], done: dict[str, tuple[Trace, float]]
) -> SystemRun:
    graded = tuple(
        GradedTrace(problem, done[problem.id][0], grade(done[problem.id][0].text, problem.answer))
        for problem in problems
        if problem.answer is not None
    )
    return SystemRun(
        name=system.name,
        kind=system.kind,
        threshold=system.threshold,
        graded=graded,
        seconds=sum(done[problem.id][1] for problem in problems),
        recall=system.recall,
        positive_rate=system.positive_rate,
    )


def threshold_for_fraction(scores: Sequence[float], large_fraction: float) -> float:
    """Return the threshold that would send `large_fraction` of these live tokens on.

    For matching a heuristic to a router: the scores of the heuristic on the tokens of the
    router's own traces. Its own run takes its own path, so the match is close, not exact: tables
    show what was measured.
    """
    if not scores:
        raise DataError("there are no tokens to match a threshold on")
    ordered = np.sort(np.asarray(scores, dtype=np.float32))[::-1]
    sent = min(len(ordered) - 1, max(0, round(large_fraction * len(ordered)) - 1))
    return float(ordered[sent])
