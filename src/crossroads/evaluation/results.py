"""What one evaluation gives: runs of systems over problems, and one summary row per run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from crossroads.decoding.cost import active_parameters
from crossroads.errors import DataError
from crossroads.grading import Grade
from crossroads.statistics import Interval, accuracy_interval, ratio_interval
from crossroads.types import Message, Problem, Trace, Usage

_SEED = 0  # of the intervals; fixed, so that the same runs always give the same report


class SystemKind(StrEnum):
    """What a system is compared as."""

    SMALL = "small"
    LARGE = "large"
    BASELINE = "baseline"
    ROUTER = "router"
    ORACLE = "oracle"


@dataclass(frozen=True, slots=True)
class GradedTrace:
    """One problem, how a system answered it, and whether that is right."""

    problem: Problem
    trace: Trace
    grade: Grade

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "problem": asdict(self.problem),
            "trace": self.trace.to_json(),
            "grade": asdict(self.grade),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> GradedTrace:
        """Return what `to_json` wrote."""
        problem = value["problem"]
        messages = tuple(Message(**message) for message in problem["messages"])
        return cls(
            Problem(**{**problem, "messages": messages}),
            Trace.from_json(value["trace"]),
            Grade(**value["grade"]),
        )


@dataclass(frozen=True, slots=True)
class SystemRun:
    """One system's answers to all problems; `seconds` is the wall time of generating them.

    `kind` decides how reports draw and compare it. `recall` and `positive_rate` are what
    calibration promised at this threshold, where it did.
    """

    name: str
    threshold: float | None
    graded: tuple[GradedTrace, ...]
    seconds: float
    kind: SystemKind = SystemKind.BASELINE
    recall: float | None = None
    positive_rate: float | None = None

    @property
    def usage(self) -> Usage:
        """Counts over all problems."""
        return sum((graded.trace.usage for graded in self.graded), Usage())

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "name": self.name,
            "threshold": self.threshold,
            "graded": [graded.to_json() for graded in self.graded],
            "seconds": self.seconds,
            "kind": self.kind.value,
            "recall": self.recall,
            "positive_rate": self.positive_rate,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SystemRun:
        """Return the run that `to_json` wrote."""
        graded = tuple(GradedTrace.from_json(item) for item in value["graded"])
        return cls(**{**value, "kind": SystemKind(value["kind"]), "graded": graded})


@dataclass(frozen=True, slots=True)
class SystemSummary:
    """One row of the results.

    `large_fraction` is the share of *generated* tokens that the large model wrote;
    `positive_rate` and `recall` belong to the calibration tokens and are another population.
    `unparsed` counts the answers without a readable result; they are not correct.
    """

    name: str
    kind: SystemKind
    accuracy: float
    accuracy_interval: Interval
    large_fraction: float
    large_fraction_interval: Interval
    tokens_per_second: float
    mean_tokens: float
    active_parameters_per_token: float
    n_problems: int
    unparsed: int
    recall: float | None = None
    positive_rate: float | None = None
    threshold: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "kind": self.kind.value}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SystemSummary:
        """Return the row that `to_json` wrote."""
        intervals = {
            name: Interval(**value[name])
            for name in ("accuracy_interval", "large_fraction_interval")
        }
        return cls(**{**value, **intervals, "kind": SystemKind(value["kind"])})


def summarise_run(
    run: SystemRun, small_parameters: int, large_parameters: int, router_parameters: int
) -> SystemSummary:
    """Return the row of one run.

    Args:
        run: at least one graded problem.
        small_parameters: active parameters of the small model.
        large_parameters: active parameters of the large model.
        router_parameters: parameters of the router, 0 for heuristics.

    Raises:
        DataError: the run has no problems.
    """
    if not run.graded:
        raise DataError(f"{run.name} answered no problems; there is nothing to summarise")
    usages = [graded.trace.usage for graded in run.graded]
    records = [record for graded in run.graded for record in graded.trace.records]
    total = run.usage
    correct = [graded.grade.correct for graded in run.graded]
    return SystemSummary(
        name=run.name,
        kind=run.kind,
        accuracy=sum(correct) / len(correct),
        accuracy_interval=accuracy_interval(correct),
        large_fraction=total.large_fraction,
        large_fraction_interval=_fraction_interval(usages),
        tokens_per_second=total.generated_tokens / run.seconds if run.seconds > 0 else 0.0,
        mean_tokens=total.generated_tokens / len(usages),
        active_parameters_per_token=active_parameters(
            records, small_parameters, large_parameters, router_parameters
        ),
        n_problems=len(correct),
        unparsed=sum(graded.grade.unparsed for graded in run.graded),
        recall=run.recall,
        positive_rate=run.positive_rate,
        threshold=run.threshold,
    )


def _fraction_interval(usages: list[Usage]) -> Interval:
    large = [usage.large_tokens for usage in usages]
    generated = [usage.generated_tokens for usage in usages]
    if not sum(generated):
        return Interval(0.0, 1.0)
    if sum(large) in (0, sum(generated)):
        # One model alone: the share is a fact of the system, not an estimate.
        share = sum(large) / sum(generated)
        return Interval(share, share)
    return ratio_interval(large, generated, _SEED)
