"""The labelled rows as a diagnosis reads them: a few numbers of every position, wide ones of some.

Responses are read one at a time; what stays in memory is some 70 bytes a position, and hidden
states of a bounded sample. Shapes: N positions, R responses, T positions of a response, H hidden.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crossroads.dataset import UNJUDGED, Comparison, LabelledDataset, Labels, ResponseRow
from crossroads.diagnosis.hashing import hash_rows
from crossroads.errors import DataError
from crossroads.routing.checkpoint import SmallModelId
from crossroads.routing.routers.base import Router
from crossroads.types import Label, Progress, SilentProgress, Split

SPLITS = tuple(Split)
MOST_POSITIONS = 2_000_000
"""Positions that are read at most; whole problems beyond it are left out, and it is said."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Every position that was read, responses one after the other, in the data's order.

    label_N: values of types.Label or UNJUDGED. entropy_N: nats. doubt_N: 1 - the probability of
    the small model's token, computed so that a certain token's is not lost to rounding.
    large_doubt_N: how much less likely the large model finds the small token than its own, in
    nats; nan where it is not stored. output_N: a hash of what the small model put out there.
    problem_N, domain_N, split_N: indices into problem_ids, domains, SPLITS. start_R: where each
    response begins, with the total at its end.
    """

    label_N: np.ndarray
    probability_N: np.ndarray
    entropy_N: np.ndarray
    doubt_N: np.ndarray
    large_doubt_N: np.ndarray
    proposed_N: np.ndarray
    real_N: np.ndarray
    position_N: np.ndarray
    output_N: np.ndarray
    response_N: np.ndarray
    problem_N: np.ndarray
    domain_N: np.ndarray
    split_N: np.ndarray
    start_R: np.ndarray
    responses: tuple[ResponseRow, ...]
    problem_ids: tuple[str, ...]
    domains: tuple[str, ...]

    def __len__(self) -> int:
        """Number of positions."""
        return len(self.label_N)

    @property
    def judged_N(self) -> np.ndarray:
        """Which positions have a label, bool."""
        judged: np.ndarray = self.label_N != UNJUDGED
        return judged

    def positive(self, objective: str) -> np.ndarray:
        """Return the positive class [N], bool: `divergent`, or `mismatch` (neutral counts too)."""
        if objective == "divergent":
            divergent: np.ndarray = self.label_N == Label.DIVERGENT
            return divergent
        mismatch: np.ndarray = self.judged_N & (self.label_N != Label.IDENTICAL)
        return mismatch

    def in_split(self, *splits: Split) -> np.ndarray:
        """Return which judged positions are in the splits, bool."""
        return self.judged_N & np.isin(self.split_N, [SPLITS.index(split) for split in splits])

    @property
    def held_out_N(self) -> np.ndarray:
        """Which judged positions no router was trained on, bool."""
        return self.in_split(Split.CALIBRATION, Split.TEST)


class Data:
    """One or several labelled datasets of one small model."""

    def __init__(
        self,
        datasets: Sequence[LabelledDataset],
        progress: Progress | None = None,
        most_positions: int = MOST_POSITIONS,
    ) -> None:
        """Take the datasets; nothing is read yet.

        Raises:
            DataError: no dataset, or datasets of different small models.
        """
        if not datasets:
            raise DataError("there is no dataset to diagnose; give at least one with --data")
        if len({dataset.small for dataset in datasets}) > 1:
            names = " and ".join(sorted({dataset.small.name for dataset in datasets}))
            raise DataError(
                f"the datasets hold outputs of different small models ({names}); diagnose the "
                "datasets of one model at a time"
            )
        self.progress = progress or SilentProgress()
        rows = [(dataset, row) for dataset in datasets for row in dataset.responses]
        self._rows = _bounded(rows, most_positions)
        self.left_out = len(rows) - len(self._rows)
        self.datasets = tuple(datasets) if not self.left_out else _views(self._rows)
        if not self._rows:
            raise DataError("the datasets have no response; label problems first")

    @property
    def small(self) -> SmallModelId:
        """The small model whose outputs are stored."""
        return self.datasets[0].small

    def comparisons(
        self, what: str, only: Collection[int] | None = None
    ) -> Iterator[tuple[int, LabelledDataset, Comparison, Labels]]:
        """Yield each response's number, dataset, outputs and labels; one is in memory at a time.

        `only` names the responses that are read, by their numbers; all without it.
        """
        labels = {dataset.folder: dataset.labels() for dataset in self.datasets}
        wanted = [i for i in range(len(self._rows)) if only is None or i in only]
        self.progress.start(what, len(wanted), "responses")
        for number in wanted:
            dataset, row = self._rows[number]
            yield number, dataset, dataset.comparison(row), labels[dataset.folder].of(row)
            self.progress.advance()
        self.progress.finish()

    @cached_property
    def tokens(self) -> Tokens:
        """The scalars of every position."""
        rows = tuple(row for _, row in self._rows)
        lengths = np.array([row.positions for row in rows])
        parts = [_scalars(comparison, own) for *_, comparison, own in self.comparisons("reads")]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        # Sorted, so that no resample of problems depends on the order of the responses.
        problem_ids = tuple(sorted({row.problem_id for row in rows}))
        domains = tuple(sorted({row.domain for row in rows}))
        problem_at = {name: i for i, name in enumerate(problem_ids)}
        return Tokens(
            **joined,
            response_N=np.repeat(np.arange(len(rows)), lengths),
            problem_N=np.repeat([problem_at[row.problem_id] for row in rows], lengths),
            domain_N=np.repeat([domains.index(row.domain) for row in rows], lengths),
            split_N=np.repeat([SPLITS.index(row.split) for row in rows], lengths),
            start_R=np.concatenate([[0], lengths.cumsum()]),
            responses=rows,
            problem_ids=problem_ids,
            domains=domains,
        )

    def score(self, router: Router) -> np.ndarray:
        """Return a router's scores of every position [N], float32."""
        embed = {dataset.folder: dataset.embeddings() for dataset in self.datasets}
        parts = [
            router.score(comparison.features(router.inputs, embed[dataset.folder])).numpy()
            for _, dataset, comparison, _ in self.comparisons(f"{router.name} scores")
        ]
        scores_N: np.ndarray = np.concatenate(parts)
        return scores_N


def _bounded(
    rows: Sequence[tuple[LabelledDataset, ResponseRow]], most: int
) -> list[tuple[LabelledDataset, ResponseRow]]:
    """Return the responses of as many problems as fit, drawn once and for all, in their order."""
    if sum(row.positions for _, row in rows) <= most:
        return list(rows)
    problems = sorted({row.problem_id for _, row in rows})
    sizes = dict.fromkeys(problems, 0)
    for _, row in rows:
        sizes[row.problem_id] += row.positions
    kept: set[str] = set()
    total = 0
    for number in np.random.default_rng(0).permutation(len(problems)):
        total += sizes[problems[number]]
        if total > most and kept:
            break
        kept.add(problems[number])
    return [(dataset, row) for dataset, row in rows if row.problem_id in kept]


def _views(rows: Sequence[tuple[LabelledDataset, ResponseRow]]) -> tuple[LabelledDataset, ...]:
    """Return the datasets as if they had these responses only."""
    kept: dict[Path, list[dict[str, Any]]] = {}
    for dataset, row in rows:
        kept.setdefault(dataset.folder, []).append(asdict(row))
    whole = {dataset.folder: dataset for dataset, _ in rows}
    return tuple(
        replace(whole[folder], card={**whole[folder].card, "responses": responses})
        for folder, responses in kept.items()
    )


def _scalars(comparison: Comparison, labels: Labels) -> dict[str, np.ndarray]:
    step, large = comparison.step, comparison.large
    logprob_TK = step.top_logits_NK - step.logsumexp_N[:, None]
    unknown_T = torch.full((len(comparison.real_N),), torch.nan)
    doubt_T = unknown_T if large is None else large.logprob_real_N - large.logprob_small_N
    return {
        "label_N": labels.label_N.numpy(),
        "probability_N": labels.probability_N.float().numpy(),
        "entropy_N": step.entropy_N.float().numpy(),
        "doubt_N": _doubt(logprob_TK).numpy(),
        "large_doubt_N": doubt_T.float().numpy(),
        "proposed_N": comparison.proposed_N.int().numpy(),
        "real_N": comparison.real_N.int().numpy(),
        "position_N": comparison.position_N.int().numpy(),
        "output_N": hash_rows(
            step.top_ids_NK.int().numpy(),
            logprob_TK.half().numpy(),
            step.entropy_N.float().numpy()[:, None],
            comparison.real_N.int().numpy()[:, None],
        ),
    }


def _doubt(logprob_TK: torch.Tensor) -> torch.Tensor:
    """Return 1 - p of the first entry; the larger of `1 - p` and the sum of the other entries.

    Half precision rounds the log-probability of a nearly certain token to 0, while those of the
    tokens after it still tell how certain it is.
    """
    others_T = torch.exp(logprob_TK[:, 1:]).sum(dim=1)
    return torch.maximum(-torch.expm1(logprob_TK[:, 0].clamp(max=0.0)), others_T).clamp(max=1.0)
