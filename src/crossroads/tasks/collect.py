"""The front door for labelling: sources merged, evaluation questions found, nothing skipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crossroads.errors import DataError, EngineError
from crossroads.tasks.benchmarks import BENCHMARKS, benchmark_texts
from crossroads.tasks.overlap import (
    Contaminated,
    DuplicateReport,
    contamination,
    duplicate_groups,
    problem_text,
)
from crossroads.types import Problem


@dataclass(frozen=True, slots=True)
class BenchmarkTexts:
    """The questions of the evaluation sets; `unchecked` tells why each other one is missing."""

    texts: Mapping[str, Sequence[str]]
    unchecked: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Screening:
    """Problems without evaluation questions, in their order, and the findings about the others."""

    clean: tuple[Problem, ...]
    contaminated: tuple[Contaminated, ...]


def merge(sources: Mapping[str, Sequence[Problem]]) -> list[Problem]:
    """Return the problems of all sources in order.

    Raises:
        DataError: an id occurs twice, in two sources or in one.
    """
    source_of: dict[str, str] = {}
    for source, problems in sources.items():
        for problem in problems:
            if problem.id in source_of:
                raise DataError(
                    f"the id {problem.id!r} occurs in {source_of[problem.id]} and in {source}; "
                    "give every problem its own"
                )
            source_of[problem.id] = source
    return [problem for problems in sources.values() for problem in problems]


def gather_benchmarks(names: Sequence[str] | None = None) -> BenchmarkTexts:
    """Return the questions of the named evaluation sets, None for all of `BENCHMARKS`.

    Raises:
        ConfigError: no such evaluation set.
    """
    texts: dict[str, list[str]] = {}
    unchecked: dict[str, str] = {}
    for name in BENCHMARKS if names is None else names:
        try:
            texts[name] = benchmark_texts(name)
        except (DataError, EngineError) as error:
            unchecked[name] = str(error)
    return BenchmarkTexts(texts, unchecked)


def find_duplicates(problems: Sequence[Problem]) -> DuplicateReport:
    """Return which problems ask the same; `group_of` keeps them in one split."""
    return duplicate_groups({problem.id: problem_text(problem) for problem in problems})


def screen(problems: Sequence[Problem], against: Mapping[str, Sequence[str]]) -> Screening:
    """Return the problems apart from those that hold a question of an evaluation set."""
    texts = {problem.id: problem_text(problem) for problem in problems}
    found = contamination(texts, against)
    dirty = {finding.problem_id for finding in found}
    return Screening(tuple(p for p in problems if p.id not in dirty), found)


def require_clean(screening: Screening) -> list[Problem]:
    """Return the problems of a screening that found nothing.

    Raises:
        DataError: it found evaluation questions; names the first.
    """
    if not screening.contaminated:
        return list(screening.clean)
    first = screening.contaminated[0]
    how = "is a question" if first.kind == "exact" else "shares a run of words with a question"
    count = len({finding.problem_id for finding in screening.contaminated})
    raise DataError(
        f"{count} of {count + len(screening.clean)} problems hold questions of evaluation sets "
        f"(the first, {first.problem_id!r}, {how} of {first.benchmark}; {first.kind}); "
        "leave them out with --drop-contaminated"
    )
