"""Cross-validation by problem: every problem is tested once, by routers that never saw it.

Each fold is a whole experiment with three splits of its own. Shapes: N positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from crossroads.errors import DataError
from crossroads.training.columns import Column
from crossroads.training.rows import Corpus, Rows
from crossroads.types import Split

LEAST_FOLDS = 3
"""One part to test, one to calibrate, and at least one to train on."""


def folds(corpus: Corpus, count: int, seed: int = 0) -> list[Corpus]:
    """Return `count` corpora over the same rows: fold k tests part k and calibrates on part k + 1.

    Problems are dealt into parts by `seed`; the datasets' own splits do not matter.

    Raises:
        DataError: there are fewer problems than parts.
    """
    rows = joined([corpus.split(split) for split in Split])
    problems = len(rows.problem_ids)
    if problems < count:
        raise DataError(f"{count} folds need at least {count} problems, and there are {problems}")
    part_C = np.empty(problems, dtype=np.int64)
    part_C[np.random.default_rng(seed).permutation(problems)] = np.arange(problems) % count
    part_N = part_C[rows.problem_N]

    def fold(number: int) -> Corpus:
        test_N, calibration_N = part_N == number, part_N == (number + 1) % count
        splits = {
            Split.TRAIN: rows.take(~(test_N | calibration_N)),
            Split.CALIBRATION: rows.take(calibration_N),
            Split.TEST: rows.take(test_N),
        }
        identity = {**corpus.identity, "fold": {"number": number, "of": count, "seed": seed}}
        return Corpus(corpus.small, corpus.card, identity, splits)

    return [fold(number) for number in range(count)]


def joined(parts: Sequence[Rows]) -> Rows:
    """Return the rows of several splits of one corpus as one, sharing their files."""
    problem_ids = tuple(name for part in parts for name in part.problem_ids)
    domains = tuple(sorted({name for part in parts for name in part.domains}))
    first_problem = np.cumsum([0, *(len(part.problem_ids) for part in parts)])
    columns = [list(part.columns.values()) for part in parts]
    first_row = np.cumsum([0, *(len(of_part[0]) for of_part in columns)])
    return replace(
        parts[0],
        label_N=np.concatenate([part.label_N for part in parts]),
        probability_N=np.concatenate([part.probability_N for part in parts]),
        large_probability_N=np.concatenate([part.large_probability_N for part in parts]),
        problem_N=np.concatenate(
            [part.problem_N + first for part, first in zip(parts, first_problem, strict=False)]
        ),
        problem_ids=problem_ids,
        domain_N=np.concatenate([_renumbered(part, domains) for part in parts]),
        domains=domains,
        position_N=np.concatenate([part.position_N for part in parts]),
        index_N=np.concatenate(
            [part.index_N + first for part, first in zip(parts, first_row, strict=False)]
        ),
        columns={
            name: Column.joined([part.columns[name] for part in parts]) for name in parts[0].columns
        },
    )


def _renumbered(part: Rows, domains: Sequence[str]) -> np.ndarray:
    """Return a part's domains [N] as indices into `domains`."""
    at = np.array([domains.index(name) for name in part.domains], dtype=np.int64)
    return at[part.domain_N] if len(at) else part.domain_N
