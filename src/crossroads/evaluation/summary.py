"""A run's numbers: one row per task and system, comparisons, ranking; all from stored answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from crossroads.decoding.cost import active_parameters
from crossroads.errors import DataError
from crossroads.evaluation.folder import RunFolder, RunRecord, SystemEntry, TaskEntry
from crossroads.evaluation.kinds import SystemKind
from crossroads.evaluation.ranking import Pair, Ranking, rank
from crossroads.evaluation.statistics import Estimate, average_at_k, pass_at_k
from crossroads.evaluation.stored import StoredAnswer
from crossroads.evaluation.trade_off import (
    Gap,
    RoutedAnswers,
    TradeOff,
    against_heuristic,
    recovered_gap,
)
from crossroads.routing.routers.heuristics import HEURISTICS
from crossroads.statistics import Interval, ratio_interval
from crossroads.types import Usage

_SEED = 0  # of every bootstrap here; fixed, so that the same answers always give the same numbers


@dataclass(frozen=True, slots=True)
class SystemResult:
    """One system on one task.

    accuracy: mean over problems of the mean over samples (avg@k). pass_at: by k, unbiased; only
    with several samples. unparsed: answers without a readable result; they are not correct.
    large_fraction: share of generated tokens that the large model wrote. replaced_fraction: share
    in which it wrote another token than the small one had proposed; None for a model alone.
    tokens: mean length of an answer. active_parameters: per generated token, small +
    large_fraction x large + router. cost: active parameters per answer, tokens x active_parameters
    (R2R, arXiv 2505.21600). router share: of the active parameters. recovered: share of the gap
    between the models alone. finish: how many answers ended in each way.
    """

    task: str
    system: str
    kind: SystemKind
    problems: int
    samples: int
    accuracy: Estimate
    pass_at: Mapping[int, Estimate]
    unparsed: int
    finish: Mapping[str, int]
    large_fraction: Estimate
    replaced_fraction: float | None
    tokens: Estimate
    tokens_per_second: float
    active_parameters: float
    cost: float
    router_share: float
    large_calls: int
    lag_per_call: float
    recovered: Gap | None = None
    threshold: float | None = None
    matched_to: str | None = None
    recall: float | None = None
    positive_rate: float | None = None


@dataclass(frozen=True, slots=True)
class AgainstCurve:
    """A trained router against a heuristic's curve, at the router's own large_fraction.

    The curve joins all thresholds at which the heuristic was run, and the models alone.
    """

    system: str
    heuristic: str
    trade_off: TradeOff


@dataclass(frozen=True, slots=True)
class TaskResult:
    """All systems on one task; `ranking` compares them in pairs, None for a single one."""

    task: str
    rule: str
    card: Mapping[str, Any]
    systems: tuple[SystemResult, ...]
    against: tuple[AgainstCurve, ...]
    ranking: Ranking | None

    @property
    def comparisons(self) -> tuple[Pair, ...]:
        """Every two systems on the same problems."""
        return self.ranking.pairs if self.ranking else ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(slots=True)
class _Tally:
    """What one pass over a system's answers adds up."""

    correct: dict[str, dict[int, bool]] = field(default_factory=dict)
    usage: dict[str, Usage] = field(default_factory=dict)
    active: float = 0.0
    replaced: int = 0
    unparsed: int = 0
    seconds: float = 0.0
    finish: Counter[str] = field(default_factory=Counter)

    def add(self, answer: StoredAnswer, small: int, large: int, router: int) -> None:
        """Count one answer."""
        problem, records = answer.problem_id, answer.trace.records
        self.correct.setdefault(problem, {})[answer.sample] = answer.grade.correct
        self.usage[problem] = self.usage.get(problem, Usage()) + answer.trace.usage
        self.active += active_parameters(records, small, large, router) * len(records)
        self.replaced += sum(record.replaced for record in records)
        self.unparsed += answer.grade.unparsed
        self.seconds += answer.seconds
        self.finish[answer.trace.finish_reason.value] += 1


def summarise(folder: RunFolder) -> list[TaskResult]:
    """Return the numbers of every task of a run; answers are read one at a time.

    Raises:
        DataError: an answer is missing: the run is not finished.
    """
    record = folder.record()
    return [_task(folder, record, task) for task in record.tasks]


def _task(folder: RunFolder, record: RunRecord, task: TaskEntry) -> TaskResult:
    order = [item.problem.id for item in folder.items(task.name)]
    tallies = {
        system.name: _tally(folder.answers(task.name, system.name), record, system)
        for system in record.systems
    }
    samples = int(record.settings["samples"])
    for name, tally in tallies.items():
        _check_whole(folder, task.name, name, tally, order, samples)
    correct = {
        name: [[tally.correct[p][i] for i in range(samples)] for p in order]
        for name, tally in tallies.items()
    }
    gaps = _gaps(record.systems, correct)
    results = tuple(
        _result(task, s, tallies[s.name], correct[s.name], gaps.get(s.name), record)
        for s in record.systems
    )
    return TaskResult(
        task=task.name,
        rule=task.rule,
        card=task.card,
        systems=results,
        against=_against(record.systems, tallies, correct, order),
        ranking=rank(correct, _SEED) if len(correct) > 1 else None,
    )


def _gaps(
    systems: Sequence[SystemEntry], correct: Mapping[str, Sequence[Sequence[bool]]]
) -> dict[str, Gap]:
    """Return what each system recovered of the gap between the models alone, if both were run."""
    name_of = {system.kind: system.name for system in systems}
    if not {SystemKind.SMALL, SystemKind.LARGE} <= name_of.keys():
        return {}
    alone = {kind: name_of[kind] for kind in (SystemKind.SMALL, SystemKind.LARGE)}
    small, large = (correct[name] for name in alone.values())
    return {
        name: recovered_gap(mixed, small, large)
        for name, mixed in correct.items()
        if name not in alone.values()
    }


def _against(
    systems: Sequence[SystemEntry],
    tallies: Mapping[str, _Tally],
    correct: Mapping[str, Sequence[Sequence[bool]]],
    order: Sequence[str],
) -> tuple[AgainstCurve, ...]:
    """Compare every trained router with every heuristic's curve."""
    answers = {
        name: RoutedAnswers(
            correct[name],
            [tally.usage[problem].large_tokens for problem in order],
            [tally.usage[problem].generated_tokens for problem in order],
        )
        for name, tally in tallies.items()
        if any(usage.generated_tokens for usage in tally.usage.values())
    }
    alone = [
        answers[system.name]
        for system in systems
        if system.kind in (SystemKind.SMALL, SystemKind.LARGE) and system.name in answers
    ]
    run: dict[str, list[RoutedAnswers]] = {}
    for system in systems:
        heuristic = system.kind is SystemKind.BASELINE and system.router in HEURISTICS
        if heuristic and system.router and system.name in answers:
            run.setdefault(system.router, []).append(answers[system.name])
    return tuple(
        AgainstCurve(
            system.name,
            heuristic,
            against_heuristic(answers[system.name], thresholds, alone, _SEED),
        )
        for system in systems
        if system.kind is SystemKind.ROUTER and system.name in answers
        for heuristic, thresholds in run.items()
    )


def _tally(answers: Iterable[StoredAnswer], record: RunRecord, system: SystemEntry) -> _Tally:
    tally = _Tally()
    small, large = (int(m["active_parameters"]) for m in (record.small, record.large))
    for answer in answers:
        tally.add(answer, small, large, system.router_parameters)
    return tally


def _check_whole(
    folder: RunFolder, task: str, system: str, tally: _Tally, order: Sequence[str], samples: int
) -> None:
    missing = sum(samples - len(tally.correct.get(problem, {})) for problem in order)
    if missing:
        raise DataError(
            f"the run {folder.path} is not finished: {system} has {missing} of "
            f"{samples * len(order)} answers to {task} left; run the same `crossroads evaluate` "
            "again"
        )


def _result(
    task: TaskEntry,
    system: SystemEntry,
    tally: _Tally,
    correct: Sequence[Sequence[bool]],
    gap: Gap | None,
    record: RunRecord,
) -> SystemResult:
    usage = sum(tally.usage.values(), Usage())
    generated = usage.generated_tokens
    samples = len(correct[0])
    alone = system.kind in (SystemKind.SMALL, SystemKind.LARGE)
    active = tally.active / generated if generated else 0.0
    scored = bool(system.router_parameters)
    thresholds = system.thresholds or {}
    return SystemResult(
        task=task.name,
        system=system.name,
        kind=system.kind,
        problems=len(correct),
        samples=samples,
        accuracy=average_at_k(correct),
        pass_at={k: pass_at_k(correct, k) for k in _powers(samples)},
        unparsed=tally.unparsed,
        finish=dict(sorted(tally.finish.items())),
        large_fraction=_fraction(list(tally.usage.values())),
        replaced_fraction=None if alone else tally.replaced / max(1, generated),
        tokens=_length(list(tally.usage.values()), samples, record.settings["max_tokens"]),
        tokens_per_second=generated / tally.seconds if tally.seconds else 0.0,
        active_parameters=active,
        cost=active * generated / (len(correct) * samples),
        router_share=system.router_parameters / active if scored and active else 0.0,
        large_calls=usage.large_calls,
        lag_per_call=usage.lag_tokens / usage.large_calls if usage.large_calls else 0.0,
        recovered=gap,
        threshold=thresholds.get(task.name, system.threshold),
        matched_to=system.matched_to,
        recall=system.recall,
        positive_rate=system.positive_rate,
    )


def _powers(samples: int) -> list[int]:
    """Return 1, 2, 4, ... and the number of samples itself; nothing for a single sample."""
    if samples == 1:
        return []
    return sorted({samples, *(1 << i for i in range(samples.bit_length()) if 1 << i <= samples)})


def _fraction(usages: Sequence[Usage]) -> Estimate:
    large = [usage.large_tokens for usage in usages]
    generated = [usage.generated_tokens for usage in usages]
    total = sum(generated)
    if not total:
        return Estimate(0.0, Interval(0.0, 1.0))
    share = sum(large) / total
    if share in (0.0, 1.0):
        # One model alone: the share is a fact of the system, not an estimate.
        return Estimate(share, Interval(share, share))
    return Estimate(share, ratio_interval(large, generated, _SEED))


def _length(usages: Sequence[Usage], samples: int, most: int) -> Estimate:
    """Return the mean number of tokens of an answer, which has at most `most`."""
    generated = [usage.generated_tokens for usage in usages]
    mean = sum(generated) / (len(usages) * samples)
    if len(usages) == 1:
        return Estimate(mean, Interval(0.0, float(most)))
    return Estimate(mean, ratio_interval(generated, [samples] * len(usages), _SEED))
