"""Simulated datasets with their truth: what labelling would have written, and the best score."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crossroads.artifacts import canonical_hash, read_json, save_tensors, sha256_file, write_json
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
from crossroads.simulation.truth import Truth, TruthWriter, copies, load_truth
from crossroads.simulation.world import Drawn, SimulationConfig, World
from crossroads.splits import assign_splits
from crossroads.types import Label, Progress, SilentProgress, Split

_TEST_SHIFT = "changed_base_rate"


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
        return _earlier(folder, identity)
    world = World(config)
    plans = _planned(config, strengths)
    with atomic_folder(folder) as temporary:
        _write(world, plans, strengths, temporary, identity, progress or SilentProgress())
    return Simulated(LabelledDataset.open(folder), load_truth(folder))


def _earlier(folder: Path, identity: str) -> Simulated:
    """Return the same simulation, which is there already."""
    card = read_json(folder / CARD, "dataset card") if (folder / CARD).exists() else {}
    if card.get("simulation", {}).get("identity") != identity:
        raise ConfigError(
            f"{folder} is not empty and holds something other than this simulation; "
            "give another folder"
        )
    return Simulated(LabelledDataset.open(folder), load_truth(folder))


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
    """Return a response with its faults, its labels without them, and which positions they touched.

    Faults are drawn by the problem, so that copies of a response have the same ones.
    """
    shift = strengths.get(_TEST_SHIFT, 0.0) if plan.split == Split.TEST else 0.0
    drawn = world.draw(plan.source, plan.domain, shift)
    clean_N = drawn.label_N
    touched_N = np.full(len(clean_N), bool(shift))
    for name, strength in strengths.items():
        change = FAULTS[name].change
        if change is not None:
            generator = np.random.default_rng([world.config.seed, 7, plan.source])
            before, drawn = drawn, change(world, drawn, strength, generator)
            touched_N |= _differs(before, drawn)
    return drawn, clean_N, touched_N


def _differs(before: Drawn, after: Drawn) -> np.ndarray:
    """Return at which positions a label or a hidden state is another one, bool [N]."""
    first_NH, second_NH = before.comparison.step.hidden_NH, after.comparison.step.hidden_NH
    assert first_NH is not None
    assert second_NH is not None
    moved_N = (first_NH != second_NH).any(dim=1).numpy()
    differs_N: np.ndarray = moved_N | (before.label_N != after.label_N)
    return differs_N


def _write(
    world: World,
    plans: Sequence[Planned],
    strengths: Mapping[str, float],
    folder: Path,
    identity: str,
    progress: Progress,
) -> None:
    config, count = world.config, world.config.tokens_per_problem
    rows: list[ResponseRow] = []
    label_N = torch.empty(len(plans) * count, dtype=torch.uint8)
    truth = TruthWriter(len(label_N))
    names, copied = list(config.domains), copies(plans)
    progress.start("simulation", len(plans), "responses")
    for number, plan in enumerate(plans):
        drawn, clean_N, touched_N = _drawn(world, plan, strengths)
        file = f"compare/{canonical_hash([plan.problem_id, plan.sample])[:16]}.safetensors"
        save_tensors(folder / file, drawn.comparison.to_tensors(), {})
        start, domain = number * count, names[plan.domain]
        rows.append(
            ResponseRow(plan.problem_id, plan.sample, domain, plan.split, file, start, count)
        )
        part = slice(start, start + count)
        label_N[part] = torch.from_numpy(drawn.label_N)
        truth.add(part, drawn, clean_N, touched_N | (plan.key in copied), plan.split)
        progress.advance()
    progress.finish()
    truth.write(folder, config, strengths, plans)
    _finish(config, folder, identity, rows, label_N)


def _finish(
    config: SimulationConfig,
    folder: Path,
    identity: str,
    rows: Sequence[ResponseRow],
    label_N: torch.Tensor,
) -> None:
    """Write labels, embeddings and, last, the card."""
    probability_N = (label_N == Label.DIVERGENT).to(torch.float16)
    save_tensors(folder / LABELS, {"label": label_N, "probability": probability_N}, {})
    generator = np.random.default_rng([config.seed, 8])
    table = generator.standard_normal((config.vocab_size, config.hidden_size)).astype(np.float16)
    ids = torch.arange(config.vocab_size)
    save_tensors(folder / EMBEDDINGS, {"ids": ids, "rows": torch.from_numpy(table)}, {})
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
