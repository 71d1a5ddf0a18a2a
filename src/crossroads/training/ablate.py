"""The ablation table: which inputs are worth what, for which objective, by which recipe.

Like Table 4 of R2R (arXiv 2505.21600), under three splits by problem, over several seeds, beside
the heuristics, and with intervals.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crossroads.artifacts import ensure_writable, write_json, write_text
from crossroads.dataset import LabelledDataset
from crossroads.errors import ConfigError
from crossroads.names import nearest
from crossroads.provenance import provenance
from crossroads.routing.features import FEATURES
from crossroads.training.config import OBJECTIVES, FitConfig, names_of
from crossroads.training.fit import score_rows
from crossroads.training.folds import LEAST_FOLDS, folds
from crossroads.training.grid import RECALLS, SCORED, Bench, Cell, Grid, Measured
from crossroads.training.recipes import RECIPES, recipe
from crossroads.training.rows import Corpus
from crossroads.training.train import BASELINE_INPUTS, baselines
from crossroads.types import Progress, Split

SCALARS = ("entropy", "margin", "top_probability", "proposed_logprob", "logsumexp")
HISTORY = ("previous_entropy", "previous_surprise")
BIG = ("hidden", "token", "distribution")
"""R2R's three inputs; the distribution is raw logits in its recipe, log-probabilities in ours."""


@dataclass(frozen=True, slots=True)
class AblationConfig:
    """What the table has. inputs: sets of inputs joined by +, empty for the usual ones.

    changes: fields of FitConfig that replace the recipes'; those under a recipe's name replace its
    alone. only: fit and show the rows whose name
    contains one of these; others are left for another time. folds: 1 for the datasets' own splits,
    else cross-validation with so many.
    """

    recipes: tuple[str, ...] = ("default", "r2r")
    objectives: tuple[str, ...] = OBJECTIVES
    inputs: tuple[str, ...] = ()
    seeds: int = 3
    changes: Mapping[str, Any] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    folds: int = 1

    def __post_init__(self) -> None:
        """Refuse a table without rows.

        Raises:
            ConfigError: no recipe, no seed.
        """
        if not self.recipes or not self.objectives:
            raise ConfigError("an ablation needs at least one recipe and one objective")
        if self.seeds < 1:
            raise ConfigError(f"an ablation needs at least one seed, got {self.seeds}")
        if self.folds != 1 and self.folds < LEAST_FOLDS:
            raise ConfigError(
                f"folds must be 1 (the datasets' own splits) or at least {LEAST_FOLDS}, "
                f"got {self.folds}"
            )
        check_changes(self.changes)


def check_changes(changes: Mapping[str, Any]) -> None:
    """Refuse a change of what an ablation or a curve itself varies.

    Raises:
        ConfigError: names it.
    """
    for part in (changes, *(changes[name] for name in RECIPES if name in changes)):
        taken = sorted({"inputs", "objective", "seed"} & set(part))
        if taken:
            raise ConfigError(f"--set cannot change {taken[0]!r}: it has an option of its own")


def changes_for(name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes that a recipe gets: those of all recipes, then those under its name."""
    found = {key: value for key, value in changes.items() if key not in RECIPES}
    for key, value in changes.get(name, {}).items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = {**found[key], **value} if both else value
    return found


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: some inputs, one objective, one recipe, several seeds."""

    recipe: str
    label: str
    cells: tuple[Cell, ...]

    @property
    def config(self) -> FitConfig:
        """The config of the first seed."""
        return self.cells[0].config


def usual_inputs(name: str) -> tuple[str, ...]:
    """Return the sets of inputs that a recipe's rows have: alone, pairs, all, and then ours.

    R2R's network has a place for its three inputs only.
    """
    hidden, token, distribution = BIG
    sets = (
        *BIG,
        f"{hidden}+{token}",
        f"{hidden}+{distribution}",
        f"{token}+{distribution}",
        f"{hidden}+{token}+{distribution}",
    )
    if recipe(name).architecture == "r2r":
        return sets
    return (
        *sets,
        "scalars",
        "scalars+history",
        "scalars+history+distribution",
        "everything",
    )


def parse_inputs(text: str, name: str) -> tuple[str, ...]:
    """Return the router inputs of a set such as `hidden+distribution` for a recipe.

    Raises:
        ConfigError: an unknown name.
    """
    logits = "top_logits" if "top_logits" in recipe(name).inputs else "top_logprobs"
    groups = {
        "distribution": (logits,),
        "token": ("token_embedding",),
        "scalars": SCALARS,
        "history": HISTORY,
        "everything": (*SCALARS, *HISTORY, "hidden", "token_embedding", logits),
        "recipe": recipe(name).inputs,
    }
    found: list[str] = []
    for part in text.split("+"):
        word = part.strip()
        if word not in groups and word not in FEATURES:
            raise ConfigError(f"unknown input {word!r}; {nearest(word, [*groups, *FEATURES])}")
        found += groups.get(word, (word,))
    return tuple(dict.fromkeys(found))


def rows_of(config: AblationConfig) -> list[Row]:
    """Return the table's rows, trained or not.

    Raises:
        ConfigError: an unknown recipe, input or field, or `only` matches no row.
    """
    rows = []
    for name in dict.fromkeys(config.recipes):
        labels = list(config.inputs or usual_inputs(name))
        sets = {label: parse_inputs(label, name) for label in labels}
        own = recipe(name).inputs
        if not config.inputs and not any(set(own) == set(inputs) for inputs in sets.values()):
            sets["own inputs"] = own
        for objective in dict.fromkeys(config.objectives):
            for label, inputs in sets.items():
                changes = changes_for(name, config.changes)
                base = recipe(name, **changes, inputs=inputs, objective=objective)
                rows.append(_row(name, label, base, config.seeds))
    return _chosen(rows, config.only)


def _row(name: str, label: str, base: FitConfig, seeds: int) -> Row:
    title = f"{name} {label} {base.objective}"
    cells = (Cell(title, dataclasses.replace(base, seed=base.seed + n)) for n in range(seeds))
    return Row(name, label, tuple(cells))


def _chosen(rows: list[Row], only: Sequence[str]) -> list[Row]:
    found = [r for r in rows if not only or any(part in r.cells[0].name for part in only)]
    if not found:
        known = ", ".join(repr(row.cells[0].name) for row in rows)
        raise ConfigError(f"no row's name contains {only[0]!r}; the rows are {known}")
    return found


def open_corpus(
    datasets: Sequence[LabelledDataset],
    configs: Sequence[FitConfig],
    folder: Path,
    progress: Progress,
) -> Corpus:
    """Return the rows with what the configs and the heuristics read, prepared in `folder`."""
    names = tuple(dict.fromkeys((*names_of(configs), *BASELINE_INPUTS)))
    return Corpus.open(datasets, names, folder / "features", progress)


def ablate(
    datasets: Sequence[LabelledDataset], folder: Path, config: AblationConfig, progress: Progress
) -> dict[str, Any]:
    """Fit what is missing, measure all, write `ablation.json`, `.md` and `.html` to `folder`.

    Effects: finished cells in `folder` are not fitted again, whichever table they were for.

    Raises:
        ConfigError: settings that cannot work. DataError: data that cannot be trained on.
        EngineError: matplotlib is not installed.
    """
    from crossroads.training.grid_page import write_ablation_page  # noqa: PLC0415  optional parts
    from crossroads.training.grid_tables import ablation_tables, markdown  # noqa: PLC0415

    rows = rows_of(config)
    ensure_writable(folder)
    cells = [cell for row in rows for cell in row.cells]
    corpus = open_corpus(datasets, [cell.config for cell in cells], folder, progress)
    parts = [corpus] if config.folds == 1 else folds(corpus, config.folds)
    grids = [Grid(part, folder) for part in parts]
    for grid in grids:
        grid.check(cells)
    for grid in grids:
        grid.fit(cells, progress)
    result = {**table(grids, rows), "provenance": provenance(config=dataclasses.asdict(config))}
    write_json(folder / "ablation.json", result)
    write_text(folder / "ablation.md", markdown(ablation_tables(result)))
    write_ablation_page(folder / "ablation.html", result)
    return result


def table(grids: Sequence[Grid], rows: Sequence[Row]) -> dict[str, Any]:
    """Return the table's numbers from stored scores alone; several grids are folds."""
    found: list[dict[str, Any]] = []
    for objective in dict.fromkeys(row.config.objective for row in rows):
        # Folds have other problems, so each draws its own.
        benches = [Bench.of(grid.corpus, objective, seed=n) for n, grid in enumerate(grids)]
        heuristics = _heuristics(grids, benches)
        mine = [row for row in rows if row.config.objective == objective]
        measured = [_measured(grids, benches, row) for row in mine]
        anchor = _anchor(mine, measured)
        for row, numbers in zip(mine, measured, strict=True):
            others = _references(heuristics, anchor)
            found.append({**_described(grids, row), **_values(numbers, others)})
        for name, numbers in heuristics.items():
            values = _values(numbers, _references(heuristics, anchor))
            found.append({"kind": "heuristic", "name": name, "objective": objective, **values})
    return {"counts": _counts(grids), "folds": len(grids), "recalls": list(RECALLS), "rows": found}


def _measured(grids: Sequence[Grid], benches: Sequence[Bench], row: Row) -> Measured:
    each = [bench.measure(_scores(grid, row)) for grid, bench in zip(grids, benches, strict=True)]
    return Measured.over_folds(each)


def _heuristics(grids: Sequence[Grid], benches: Sequence[Bench]) -> dict[str, Measured]:
    each = [measure_heuristics(g.corpus, bench) for g, bench in zip(grids, benches, strict=True)]
    return {name: Measured.over_folds([found[name] for found in each]) for name in each[0]}


def _scores(grid: Grid, row: Row) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (grid.scores(cell, Split.CALIBRATION), grid.scores(cell, Split.TEST)) for cell in row.cells
    ]


References = list[tuple[str, Measured]]
"""Per recall target: against what a row is set, and that one's numbers."""


def _references(
    heuristics: Mapping[str, Measured], anchor: Measured | None
) -> dict[str, References]:
    best = [best_heuristic(heuristics, number) for number in range(len(RECALLS))]
    found: dict[str, References] = {"heuristic": [(name, heuristics[name]) for name in best]}
    if anchor is not None:
        found["r2r"] = [("r2r", anchor)] * len(RECALLS)
    return found


def _anchor(rows: Sequence[Row], measured: Sequence[Measured]) -> Measured | None:
    """Return the numbers of R2R's recipe with its own inputs, where the table has it."""
    for row, numbers in zip(rows, measured, strict=True):
        if row.recipe == "r2r" and set(row.config.inputs) == set(recipe("r2r").inputs):
            return numbers
    return None


def _values(numbers: Measured, others: Mapping[str, References]) -> dict[str, Any]:
    values = numbers.values()
    for number, at in enumerate(values["at"]):
        at["ratios"] = {
            kind: {"against": named[number][0], **numbers.ratio(named[number][1], number)}
            for kind, named in others.items()
        }
    return values


def _described(grids: Sequence[Grid], row: Row) -> dict[str, Any]:
    records = [grid.record(cell) for grid in grids for cell in row.cells]
    return {
        "kind": "router",
        "name": f"{row.recipe}: {row.label.replace('+', ' + ')}",
        "recipe": row.recipe,
        "label": row.label,
        "inputs": list(row.config.inputs),
        "objective": row.config.objective,
        "keys": [grid.key(cell) for grid in grids for cell in row.cells],
        "parameters": records[0]["parameters"],
        "best_epochs": [record["best_epoch"] for record in records],
        "seconds": [record["seconds"] for record in records],
    }


def measure_heuristics(corpus: Corpus, bench: Bench, seed: int = 0) -> dict[str, Measured]:
    """Return what entropy, margin, max-probability and random are worth, by the same code."""
    found = {}
    for router in baselines(corpus, seed):
        calibration_N, test_N = (score_rows(router, corpus.split(split)) for split in SCORED)
        found[router.name] = bench.measure([(calibration_N, test_N)])
    return found


def best_heuristic(heuristics: Mapping[str, Measured], number: int) -> str:
    """Return which one sends the fewest tokens at a recall on test.

    It is chosen on test itself, in its favour: a router that beats it beat the luckiest.
    """
    return min(heuristics, key=lambda name: heuristics[name].rates(number)[0])


def _counts(grids: Sequence[Grid]) -> dict[str, dict[str, int]]:
    """Return how many of each a fold trains and calibrates on (the mean), and all that are tested.

    With one grid both are its splits' own.
    """
    each = [counts(grid.corpus) for grid in grids]
    return {
        str(split): {
            name: round(
                sum(fold[str(split)][name] for fold in each)
                / (1 if split is Split.TEST else len(each))
            )
            for name in each[0][str(split)]
        }
        for split in Split
    }


def counts(corpus: Corpus) -> dict[str, dict[str, int]]:
    """Return how many problems, tokens and positives each split has."""
    return {
        str(split): {
            "problems": len(np.unique(corpus.split(split).problem_N)),
            "tokens": len(corpus.split(split)),
            "divergent": int(corpus.split(split).positive("divergent").sum()),
            "mismatch": int(corpus.split(split).positive("mismatch").sum()),
        }
        for split in Split
    }
