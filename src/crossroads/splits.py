"""Three splits, by problem and never by token: train, calibration, test."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
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


def assign_splits(domains: Mapping[str, str], shares: SplitShares, seed: int) -> dict[str, Split]:
    """Return each problem's split; `domains` gives each problem id's domain.

    Stratified: within every domain, the problems (in the order of their ids, so that the input's
    order does not matter) are shuffled and cut. A domain's remainder goes to train.

    Raises:
        DataError: fewer than three problems in all, or a split that would stay empty.
    """
    by_domain: dict[str, list[str]] = defaultdict(list)
    for problem_id, domain in sorted(domains.items()):
        by_domain[domain].append(problem_id)
    generator = np.random.default_rng(seed)
    split_of: dict[str, Split] = {}
    for _, ids in sorted(by_domain.items()):
        order = [ids[i] for i in generator.permutation(len(ids))]
        calibration = round(len(ids) * shares.calibration)
        test = round(len(ids) * shares.test)
        for rank, problem_id in enumerate(order):
            if rank < calibration:
                split_of[problem_id] = Split.CALIBRATION
            elif rank < calibration + test:
                split_of[problem_id] = Split.TEST
            else:
                split_of[problem_id] = Split.TRAIN
    missing = set(Split) - set(split_of.values())
    if missing:
        names = ", ".join(sorted(missing))
        raise DataError(
            f"{len(domains)} problems leave no problem for {names}; label more problems "
            "(at least 5 per domain with the default shares)"
        )
    return split_of
