"""Three splits, by problem and never by token: train, calibration, test."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crossroads.errors import ConfigError, DataError
from crossroads.types import Split


@dataclass(frozen=True, slots=True)
class SplitShares:
    """Shares of the problems; they sum to 1."""

    train: float = 0.6
    calibration: float = 0.2
    test: float = 0.2

    def __post_init__(self) -> None:
        """Refuse shares that leave a split empty.

        Raises:
            ConfigError: a share that is not positive, or a sum other than 1.
        """
        shares = (self.train, self.calibration, self.test)
        if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-9:
            raise ConfigError(f"split shares must be positive and sum to 1, got {shares}")


def assign_splits(
    domains: Mapping[str, str],
    shares: SplitShares,
    seed: int,
    groups: Mapping[str, str] | None = None,
) -> dict[str, Split]:
    """Return each problem's split; `domains` gives each problem id's domain.

    Stratified: within every domain, the problems (in the order of their ids, so that the input's
    order does not matter) are shuffled and cut. A domain's remainder goes to train.

    `groups` names the group of an id, such as its duplicates; an id that it does not name is a
    group of its own. The problems of a group stay in one split, and its domain is that of its
    first id. A group too large for what calibration and test still lack goes to train.

    Raises:
        DataError: fewer than three problems in all, or a split that would stay empty.
    """
    units = _units(domains, groups or {})
    by_domain: dict[str, list[list[str]]] = defaultdict(list)
    for unit in units:
        by_domain[domains[unit[0]]].append(unit)
    generator = np.random.default_rng(seed)
    split_of: dict[str, Split] = {}
    for _, own in sorted(by_domain.items()):
        split_of |= _cut([own[i] for i in generator.permutation(len(own))], shares)
    missing = set(Split) - set(split_of.values())
    if missing:
        names = ", ".join(sorted(missing))
        grouped = (
            f" ({len(units)} when each group counts once)" if len(units) < len(domains) else ""
        )
        raise DataError(
            f"{len(domains)} problems{grouped} leave no problem for {names}; label more problems "
            "(at least 5 per domain with the default shares)"
        )
    return split_of


def _units(domains: Mapping[str, str], groups: Mapping[str, str]) -> list[list[str]]:
    """Return the ids that stay together, sorted, in the order of their first ids."""
    members: dict[str, list[str]] = defaultdict(list)
    for problem_id in sorted(domains):
        members[groups.get(problem_id, problem_id)].append(problem_id)
    return list(members.values())


def _cut(units: Sequence[Sequence[str]], shares: SplitShares) -> dict[str, Split]:
    """Fill calibration, then test, with the units that fit, in order; the rest is train."""
    count = sum(len(unit) for unit in units)
    room = {
        Split.CALIBRATION: round(count * shares.calibration),
        Split.TEST: round(count * shares.test),
    }
    split_of: dict[str, Split] = {}
    for unit in units:
        split = next((split for split, left in room.items() if len(unit) <= left), Split.TRAIN)
        if split in room:
            room[split] -= len(unit)
        split_of |= dict.fromkeys(unit, split)
    return split_of
