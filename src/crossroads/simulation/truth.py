"""What only the simulator knows: the probability of every label, and the best possible router.

Ranking by P(positive | inputs) is optimal (Neyman and Pearson 1933): among all ways to send a share
of the positions on, sending those with the largest probability catches the most positives in
expectation. So the curve of the posterior is the best curve that any router can have.

Shapes: N positions of a dataset, n of a split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crossroads.artifacts import load_tensors, save_tensors, write_json
from crossroads.errors import ConfigError
from crossroads.simulation.faults import FAULTS, Planned
from crossroads.simulation.world import Drawn, SimulationConfig, World
from crossroads.types import Split

TRUTH, TRUTH_CARD = "truth.safetensors", "truth.json"
POPULATION_DRAWS = 1_000_000


@dataclass(frozen=True, slots=True)
class Truth:
    """What only the simulator knows of each position, in the order of the dataset's labels.

    posterior_N: P(divergent | all that is stored), of the world without faults but with the test
    split's own rates: the Bayes-optimal score. posterior_mismatch_N: the same of a mismatch.
    clean_label_N: the label before any fault. affected_N: positions that a fault touched, or added.
    split_N: index into the members of Split.
    """

    posterior_N: np.ndarray
    posterior_mismatch_N: np.ndarray
    clean_label_N: np.ndarray
    affected_N: np.ndarray
    split_N: np.ndarray

    def scores(self, split: Split, objective: str = "divergent") -> np.ndarray:
        """Return the Bayes-optimal scores of a split [n], in the order of its positions."""
        posterior_N = self.posterior_N if objective == "divergent" else self.posterior_mismatch_N
        chosen: np.ndarray = posterior_N[self.split_N == list(Split).index(split)]
        return chosen

    def curve(self, split: Split, objective: str = "divergent") -> tuple[np.ndarray, np.ndarray]:
        """Return positive_rate and expected recall [n] of the Bayes-optimal router, threshold
        falling. Expectation over labels given the inputs, so no draw of labels blurs it.
        """  # noqa: D205
        return _curve(self.scores(split, objective))

    def positive_rate(self, split: Split, recall: float, objective: str = "divergent") -> float:
        """Return the least positive_rate with that expected recall."""
        return _rate_at(*self.curve(split, objective), recall)


def optimal_positive_rates(
    config: SimulationConfig, recalls: Sequence[float], objective: str = "divergent"
) -> list[float]:
    """Return the least positive_rate of any router at each recall, over all problems of a world.

    From POPULATION_DRAWS positions, each of a problem of its own; faults are left out. A split of
    a dataset scatters around it, since its few problems are easier or harder.

    Raises:
        ConfigError: a recall is outside (0, 1].
    """
    for recall in recalls:
        if not 0 < recall <= 1:
            raise ConfigError(f"the recall target must be in (0, 1], got {recall}")
    mismatch_N, divergent_N = World(config).population(POPULATION_DRAWS)
    rate_n, recall_n = _curve(divergent_N if objective == "divergent" else mismatch_N)
    return [_rate_at(rate_n, recall_n, recall) for recall in recalls]


def _curve(score_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return positive_rate and expected recall [n], the likeliest positions sent on first."""
    falling_n = np.sort(score_n)[::-1].astype(np.float64)
    rate_n = np.arange(1, len(falling_n) + 1) / len(falling_n)
    return rate_n, falling_n.cumsum() / falling_n.sum()


def _rate_at(rate_n: np.ndarray, recall_n: np.ndarray, recall: float) -> float:
    return float(rate_n[min(int(np.searchsorted(recall_n, recall)), len(rate_n) - 1)])


# Files


class TruthWriter:
    """Collects the truth, response by response, in arrays that are as long as they will get.

    Small arrays kept between large temporary ones would pin the heap: memory would grow with the
    dataset by far more than they hold.
    """

    def __init__(self, positions: int) -> None:
        """Make room."""
        self._truth = Truth(
            posterior_N=np.empty(positions, np.float32),
            posterior_mismatch_N=np.empty(positions, np.float32),
            clean_label_N=np.empty(positions, np.uint8),
            affected_N=np.empty(positions, bool),
            split_N=np.empty(positions, np.uint8),
        )

    def add(
        self, part: slice, drawn: Drawn, clean_N: np.ndarray, affected_N: np.ndarray, split: Split
    ) -> None:
        """Put in the positions of one response."""
        self._truth.posterior_N[part] = drawn.divergent_N
        self._truth.posterior_mismatch_N[part] = drawn.mismatch_N
        self._truth.clean_label_N[part] = clean_N
        self._truth.affected_N[part] = affected_N
        self._truth.split_N[part] = list(Split).index(split)

    def write(
        self,
        folder: Path,
        config: SimulationConfig,
        strengths: Mapping[str, float],
        plans: Sequence[Planned],
    ) -> None:
        """Write the truth's two files."""
        arrays = {field.name: getattr(self._truth, field.name) for field in fields(Truth)}
        save_tensors(folder / TRUTH, {k: torch.from_numpy(v) for k, v in arrays.items()}, {})
        card: dict[str, Any] = {
            "config": asdict(config),
            "faults": {
                name: {
                    "strength": strength,
                    "meaning": FAULTS[name].meaning,
                    "does": FAULTS[name].does,
                }
                for name, strength in strengths.items()
            },
            "positions": len(self._truth.affected_N),
            "affected": int(self._truth.affected_N.sum()),
            "copies": copies(plans),
        }
        write_json(folder / TRUTH_CARD, card)


def copies(plans: Sequence[Planned]) -> dict[str, str]:
    """Return the responses that are drawn from the problem of an earlier one, with that one's key.

    A key is `problem_id#sample`.
    """
    first_of: dict[int, str] = {}
    found: dict[str, str] = {}
    for plan in plans:
        original = first_of.setdefault(plan.source, plan.key)
        if original != plan.key:
            found[plan.key] = original
    return found


def load_truth(folder: Path) -> Truth:
    """Return the truth beside a simulated dataset.

    Raises:
        DataError: there is none.
    """
    stored = load_tensors(folder / TRUTH, "simulation truth")
    return Truth(**{name: tensor.numpy() for name, tensor in stored.items()})
