"""Which systems are better than which, or a refusal to say so.

All pairs are compared; the chance that any pair is called different though it is not stays below
1 - level. Systems that share a letter are not separated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist
from string import ascii_letters

from crossroads.errors import DataError
from crossroads.evaluation.statistics import (
    ROUNDING,
    Comparison,
    Floats,
    Samples,
    compare,
    mean,
    paired_differences,
    problem_shares,
    two_sided_quantile,
)

_POWER = 0.8  # the chance to see a difference that `problems_needed` is worked out for


@dataclass(frozen=True, slots=True)
class Pair:
    """Two systems compared; `first` has the higher accuracy or comes first by name.

    `comparison` is of this pair alone. `adjusted_p` takes account of all pairs, and decides.
    """

    first: str
    second: str
    comparison: Comparison
    adjusted_p: float
    separated: bool


@dataclass(frozen=True, slots=True)
class Ranking:
    """All pairs, a compact letter display, and tiers if the letters allow them.

    `systems` and `letters` go from the highest accuracy down; letters say more than their order.
    `order` holds the tiers from best to worst: every system of a tier is separated from every
    system of the others. It is None where there are no such tiers, and `reason` says why.
    `problems_needed` is a rough number for the closest pair that is not separated; None where all
    are separated, or where that pair has the same accuracy.
    """

    systems: tuple[str, ...]
    letters: Mapping[str, str]
    pairs: tuple[Pair, ...]
    order: tuple[tuple[str, ...], ...] | None
    reason: str | None
    problems_needed: int | None


def rank(correct_by_system: Mapping[str, Samples], seed: int, level: float = 0.95) -> Ranking:
    """Compare all pairs of systems on the same problems, and rank them only if that can be done.

    p values of all pairs are adjusted by Holm (1979), "A simple sequentially rejective multiple
    test procedure", which needs no assumption on how the pairs depend on each other.

    Raises:
        DataError: there are fewer than two systems, they answered different numbers of problems,
            or the level is not in (0, 1).
    """
    _check_systems(correct_by_system)
    accuracy = {name: mean(problem_shares(rows)) for name, rows in correct_by_system.items()}
    systems = tuple(sorted(accuracy, key=lambda name: (-accuracy[name], name)))
    pairs = _pairs(correct_by_system, systems, seed, level)
    separated = {frozenset((pair.first, pair.second)) for pair in pairs if pair.separated}
    letters = _letters(systems, separated)
    needed = _problems_needed(correct_by_system, pairs, level)
    order = _tiers(systems, letters)
    problems = len(correct_by_system[systems[0]])
    reason = None if order else _reason(systems, pairs, problems, needed)
    return Ranking(systems, letters, pairs, order, reason, needed)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return adjusted p values, each at most 1, in the order given. Holm (1979)."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for i, at in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        highest = max(highest, min(1.0, (len(p_values) - i) * p_values[at]))
        adjusted[at] = highest
    return adjusted


def problems_for(difference_P: Floats, level: float, pairs: int = 1) -> int | None:
    """Return how many problems would show this difference at a power of 80 %, roughly.

    Takes the mean and spread that were seen for the true ones, and divides the error among
    `pairs`. For one sample per problem it is the size of Connor (1987), "Sample size for testing
    differences in proportions for the paired-sample design". None where the mean is 0.
    """
    value = mean(difference_P)
    if abs(value) < ROUNDING:
        return None
    square = mean(difference_P * difference_P)
    level_quantile = two_sided_quantile(1 - (1 - level) / pairs)
    power_quantile = NormalDist().inv_cdf(_POWER)
    # The variance if there is no difference is the mean square; if there is, less than that.
    spread = max(0.0, square - value * value)
    reach = level_quantile * math.sqrt(square) + power_quantile * math.sqrt(spread)
    return math.ceil((reach / value) ** 2)


def _check_systems(correct_by_system: Mapping[str, Samples]) -> None:
    if len(correct_by_system) < 2:
        raise DataError(f"a ranking needs at least two systems, got {len(correct_by_system)}")
    counts = {name: len(rows) for name, rows in correct_by_system.items()}
    if len(set(counts.values())) > 1:
        fewest, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        raise DataError(
            "a ranking needs the same problems for every system, "
            f"got {counts[fewest]} of {fewest} and {counts[most]} of {most}"
        )


def _pairs(
    correct_by_system: Mapping[str, Samples], systems: Sequence[str], seed: int, level: float
) -> tuple[Pair, ...]:
    named = list(combinations(systems, 2))
    found = [compare(correct_by_system[a], correct_by_system[b], seed, level) for a, b in named]
    adjusted = holm([comparison.p_value for comparison in found])
    return tuple(
        Pair(a, b, comparison, p_value, p_value <= 1 - level)
        for (a, b), comparison, p_value in zip(named, found, adjusted, strict=True)
    )


def _letters(systems: Sequence[str], separated: set[frozenset[str]]) -> dict[str, str]:
    """Return each system's letters: two systems share one exactly if they are not separated.

    Insert and absorb: Piepho (2004), "An algorithm for a letter-based representation of
    all-pairwise comparisons". A column is the systems of one letter.
    """
    columns = {frozenset(systems)}
    for pair in separated:
        split = {column for column in columns if pair <= column}
        halves = {column - {name} for column in split for name in pair}
        columns = _absorb((columns - split) | halves)
    if len(columns) > len(ascii_letters):
        raise DataError(
            f"{len(systems)} systems need {len(columns)} letters, more than there are; rank fewer"
        )
    place = {name: i for i, name in enumerate(systems)}
    ordered = sorted(columns, key=lambda column: sorted(place[name] for name in column))
    return {
        name: "".join(
            letter for letter, column in zip(ascii_letters, ordered, strict=False) if name in column
        )
        for name in systems
    }


def _absorb(columns: set[frozenset[str]]) -> set[frozenset[str]]:
    """Drop the columns that lie within another."""
    return {column for column in columns if not any(column < other for other in columns)}


def _tiers(
    systems: Sequence[str], letters: Mapping[str, str]
) -> tuple[tuple[str, ...], ...] | None:
    """Return the tiers, or None if there is one only, or a system is between two."""
    tiers: dict[str, list[str]] = {}
    for name in systems:
        if len(letters[name]) > 1:
            return None
        tiers.setdefault(letters[name], []).append(name)
    # A tier must also be a stretch of the list: exact tests of few problems can separate a system
    # from two others on its sides that are not separated from each other.
    in_order = [name for tier in tiers.values() for name in tier] == list(systems)
    return tuple(map(tuple, tiers.values())) if in_order and len(tiers) > 1 else None


def _closest(pairs: Sequence[Pair]) -> Pair | None:
    unseparated = [pair for pair in pairs if not pair.separated]
    return min(unseparated, key=lambda pair: abs(pair.comparison.difference), default=None)


def _problems_needed(
    correct_by_system: Mapping[str, Samples], pairs: Sequence[Pair], level: float
) -> int | None:
    closest = _closest(pairs)
    if closest is None:
        return None
    first, second = correct_by_system[closest.first], correct_by_system[closest.second]
    return problems_for(paired_differences(first, second), level, len(pairs))


def _reason(
    systems: Sequence[str], pairs: Sequence[Pair], problems: int, needed: int | None
) -> str:
    closest = _closest(pairs)
    assert closest is not None  # with every pair separated each system is a tier
    seen = sum(pair.separated for pair in pairs)
    start = (
        f"{problems} problems separate {seen} of the {len(pairs)} pairs of {len(systems)} systems"
        f"{', not in tiers' if seen else ''}"
    )
    names = f"{closest.first} and {closest.second}"
    if needed is None:
        return f"{start}; the closest, {names}, are equally often right"
    return f"{start}; the closest, {names}, would need about {needed} problems"
