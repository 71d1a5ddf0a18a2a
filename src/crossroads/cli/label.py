"""`crossroads label`: problems to a labelled dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from crossroads.cli.options import FILE, FOLDER, PairOptions, pair_options
from crossroads.errors import ConfigError

if TYPE_CHECKING:
    from crossroads.types import Problem


@click.command()
@click.argument("out", type=FOLDER)
@click.option("--problems", type=FILE, help="JSONL file: id, prompt or messages, answer, domain.")
@click.option("--task", default=None, help="Problems of a task, such as reasoning_gym:chain_sum.")
@click.option("--count", default=100, show_default=True, help="How many of the task's problems.")
@click.option("--seed", default=0, show_default=True, help="Seed of problems and splits.")
@pair_options(context=2048)
@click.option("--judge", default="likelihood", show_default=True)
@click.option("--max-tokens", default=512, show_default=True, help="Longest response.")
@click.option("--rows", default=16, show_default=True, type=click.IntRange(1), help="Rows at once.")
def label(
    out: Path,
    problems: Path | None,
    task: str | None,
    count: int,
    seed: int,
    models: PairOptions,
    judge: str,
    max_tokens: int,
    rows: int,
) -> None:
    """Label problems into the dataset folder OUT; run again after a stop to go on."""
    from crossroads.artifacts import ensure_writable
    from crossroads.cli.console import RichProgress, console
    from crossroads.labelling.build import LabelConfig
    from crossroads.labelling.build import label as label_problems
    from crossroads.labelling.judges import judge_by_name

    chosen = _problems(problems, task, count, seed)
    verdicts = judge_by_name(judge)
    ensure_writable(out)
    config = LabelConfig(max_tokens=max_tokens, max_rows=rows, seed=seed)
    with models.load(max_rows=rows) as pair, RichProgress() as progress:
        label_problems(pair, chosen, verdicts, out, progress, config)
    console().print(base_rate_table(out))


def _problems(path: Path | None, task: str | None, count: int, seed: int) -> list[Problem]:
    """Return the problems that --problems or --task name."""
    from crossroads.tasks import load_problems
    from crossroads.tasks.jsonl import read_problems

    if path is not None and task is None:
        return read_problems(path)
    if task is not None and path is None:
        return load_problems(task, count, seed)
    raise ConfigError("give either --problems FILE or --task NAME")


def base_rate_table(dataset: Path) -> object:
    """Return the label shares per split as a terminal table."""
    from rich.table import Table

    from crossroads.dataset import LabelledDataset

    card = LabelledDataset.open(dataset).card
    table = Table(title=f"labels in {dataset} (judge: {card['judge']['name']})")
    table.add_column("split")
    for column in ("positions", "identical %", "neutral %", "divergent %"):
        table.add_column(column, justify="right")
    for split, rates in card["base_rates"].items():
        shares = [f"{100 * rates[kind]:.2f}" for kind in ("identical", "neutral", "divergent")]
        table.add_row(split, str(rates["positions"]), *shares)
    return table
