"""Simulated datasets with their truth: what labelling would have written, and the best score."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crossroads.artifacts import canonical_hash, load_tensors, save_tensors, sha256_file, write_json
from crossroads.dataset import (
    CARD,
    EMBEDDINGS,
    FORMAT,
    LABELS,
    LabelledDataset,
    Labels,
    ResponseRow,
)
from crossroads.errors import ConfigError
from crossroads.exchange.folders import atomic_folder, is_filled
from crossroads.provenance import provenance
from crossroads.rates import base_rates
from crossroads.routing.checkpoint import SmallModelId
from crossroads.simulation.faults import FAULTS, Planned, parse_faults
from crossroads.simulation.world import Drawn, SimulationConfig, World
from crossroads.splits import assign_splits
from crossroads.types import Label, Progress, SilentProgress, Split

TRUTH = "truth.safetensors"
_TEST_SHIFT = "changed_base_rate"


@dataclass(frozen=True, slots=True)
class Truth:
    """What only the simulator knows of each position, in the order of the dataset's labels.

    posterior_N: P(divergent | all that is stored), of the world without faults but with the test
    split's own rates: the Bayes-optimal score. posterior_mismatch_N: the same of a mismatch.
    clean_label_N: the label before any fault. affected_N: positions that a fault touched.
    """

    posterior_N: np.ndarray
    posterior_mismatch_N: np.ndarray
    clean_label_N: np.ndarray
    affected_N: np.ndarray
    split_N: np.ndarray

    def scores(self, split: Split, objective: str = "divergent") -> np.ndarray:
        """Return the Bayes-optimal scores of a split [n]."""
        posterior_N = self.posterior_N if objective == "divergent" else self.posterior_mismatch_N
        chosen: np.ndarray = posterior_N[self.split_N == list(Split).index(split)]
        return chosen

    def curve(self, split: Split, objective: str = "divergent") -> tuple[np.ndarray, np.ndarray]:
        """Return positive_rate and expected recall [n] of the Bayes-optimal router, threshold
        falling. Expectation over labels given the inputs, so no draw of labels blurs it.
        """  # noqa: D205
        score_n = np.sort(self.scores(split, objective))[::-1].astype(np.float64)
        rate_n = np.arange(1, len(score_n) + 1) / len(score_n)
        return rate_n, score_n.cumsum() / score_n.sum()

    def positive_rate(self, split: Split, recall: float, objective: str = "divergent") -> float:
        """Return the least positive_rate with that expected recall."""
        rate_n, recall_n = self.curve(split, objective)
        return float(rate_n[min(int(np.searchsorted(recall_n, recall)), len(rate_n) - 1)])


@dataclass(frozen=True, slots=True)
class Simulated:
    """A simulated dataset and its truth."""

    dataset: LabelledDataset
    truth: Truth


def simulate(config: SimulationConfig, folder: Path, progress: Progress | None = None) -> Simulated:
    """Write a simulated dataset to `folder`; one problem is in memory at a time.

    Effects: `folder` appears whole or not at all; the same simulation again is opened as it is.

    Raises:
        ConfigError: a fault that is not known, or `folder` holds something else.
    """
    strengths = parse_faults(config.faults)
    identity = canonical_hash(json.loads(json.dumps(asdict(config))))
    if is_filled(folder):
        opened = LabelledDataset.open(folder)
        if opened.card.get("simulation", {}).get("identity") != identity:
            raise ConfigError(
                f"{folder} holds another dataset; give another folder for the simulation"
            )
        return Simulated(opened, load_truth(folder))
    world = World(config)
    plans = _planned(config, strengths)
    with atomic_folder(folder) as temporary:
        _write(world, plans, strengths, temporary, identity, progress or SilentProgress())
    return Simulated(LabelledDataset.open(folder), load_truth(folder))


def load_truth(folder: Path) -> Truth:
    """Return the truth beside a simulated dataset.

    Raises:
        DataError: there is none.
    """
    stored = load_tensors(folder / TRUTH, "simulation truth")
    return Truth(**{name: tensor.numpy() for name, tensor in stored.items()})


def _planned(config: SimulationConfig, strengths: Mapping[str, float]) -> list[Planned]:
    """Return the responses that will be written."""
    generator = np.random.default_rng([config.seed, 5])
    shares = np.array(list(config.domains.values()))
    domains = generator.choice(len(shares), size=config.problems, p=shares / shares.sum())
    names = list(config.domains)
    ids = [f"simulated-{number}" for number in range(config.problems)]
    split_of = assign_splits(
        {problem: names[domain] for problem, domain in zip(ids, domains, strict=True)},
        config.shares,
        config.seed,
    )
    plans = [
        Planned(number, problem, int(domain), split_of[problem])
        for number, (problem, domain) in enumerate(zip(ids, domains, strict=True))
    ]
    for name, strength in strengths.items():
        change = FAULTS[name].plan
        if change is not None:
            plans = change(plans, strength, np.random.default_rng([config.seed, 6]))
    return plans


def _drawn(
    world: World, plan: Planned, strengths: Mapping[str, float]
) -> tuple[Drawn, np.ndarray, np.ndarray]:
    """Return a response with its faults, its labels without them, and what they touched."""
    shift = strengths.get(_TEST_SHIFT, 0.0) if plan.split == Split.TEST else 0.0
    drawn = world.draw(plan.source, plan.domain, shift)
    clean_N = drawn.label_N
    copied = plan.sample > 0 or plan.problem_id.endswith("-again")
    touched_N = np.full(len(clean_N), bool(shift) or copied)
    for name, strength in strengths.items():
        change = FAULTS[name].change
        if change is not None:
            generator = np.random.default_rng([world.config.seed, 7, plan.source])
            drawn = change(world, drawn, strength, generator)
            touched_N |= (drawn.label_N != clean_N) if name == "label_noise" else True
    return drawn, clean_N, touched_N


def _write(
    world: World,
    plans: Sequence[Planned],
    strengths: Mapping[str, float],
    folder: Path,
    identity: str,
    progress: Progress,
) -> None:
    config = world.config
    rows: list[ResponseRow] = []
    labels: list[torch.Tensor] = []
    truths: list[dict[str, np.ndarray]] = []
    names = list(config.domains)
    progress.start("simulation", len(plans), "responses")
    for plan, start in zip(plans, _starts(plans, config.tokens_per_problem), strict=True):
        drawn, clean_N, touched_N = _drawn(world, plan, strengths)
        file = f"compare/{canonical_hash([plan.problem_id, plan.sample])[:16]}.safetensors"
        save_tensors(folder / file, drawn.comparison.to_tensors(), {})
        rows.append(
            ResponseRow(
                plan.problem_id,
                plan.sample,
                names[plan.domain],
                plan.split,
                file,
                start,
                len(clean_N),
            )
        )
        labels.append(torch.from_numpy(drawn.label_N))
        split_N = np.full(len(clean_N), list(Split).index(plan.split), np.uint8)
        truths.append(
            {
                "posterior_N": drawn.divergent_N.astype(np.float32),
                "posterior_mismatch_N": drawn.mismatch_N.astype(np.float32),
                "clean_label_N": clean_N,
                "affected_N": touched_N,
                "split_N": split_N,
            }
        )
        progress.advance()
    progress.finish()
    _finish(config, folder, identity, rows, torch.cat(labels), truths)


def _starts(plans: Sequence[Planned], tokens: int) -> Iterator[int]:
    yield from (number * tokens for number in range(len(plans)))


def _finish(
    config: SimulationConfig,
    folder: Path,
    identity: str,
    rows: Sequence[ResponseRow],
    label_N: torch.Tensor,
    truths: Sequence[Mapping[str, np.ndarray]],
) -> None:
    """Write labels, embeddings, truth and, last, the card."""
    probability_N = (label_N == Label.DIVERGENT).to(torch.float16)
    save_tensors(folder / LABELS, {"label": label_N, "probability": probability_N}, {})
    generator = np.random.default_rng([config.seed, 8])
    table = generator.standard_normal((config.vocab_size, config.hidden_size)).astype(np.float16)
    ids = torch.arange(config.vocab_size)
    save_tensors(folder / EMBEDDINGS, {"ids": ids, "rows": torch.from_numpy(table)}, {})
    together = {
        name: torch.from_numpy(np.concatenate([truth[name] for truth in truths]))
        for name in truths[0]
    }
    save_tensors(folder / TRUTH, together, {})
    labels = Labels(label_N, probability_N.float())
    files = [LABELS, EMBEDDINGS, *(row.file for row in rows)]
    card: dict[str, Any] = {
        "format": FORMAT,
        "pair": "simulated",
        "small": asdict(
            SmallModelId(
                "simulated-small",
                "simulated",
                canonical_hash(["small", config.seed]),
                config.hidden_size,
                config.vocab_size,
            )
        ),
        "large": {"name": "simulated-large", "fingerprint": canonical_hash(["large"])},
        "judges": [{"name": "simulated"}],
        "combine": None,
        "base_rates": {name: asdict(rates) for name, rates in base_rates(rows, labels).items()},
        "simulation": {"identity": identity, "faults": list(config.faults)},
        "responses": [asdict(row) for row in rows],
        "sha256": {file: sha256_file(folder / file) for file in files},
        "provenance": provenance(seed=config.seed),
    }
    write_json(folder / CARD, card)
