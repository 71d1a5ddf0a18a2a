"""`crossroads export`: a labelled dataset in R2R's columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import click

from crossroads.cli.options import FOLDER

_KINDS: dict[str, Literal["parquet", "datasets"]] = {
    "r2r-parquet": "parquet",
    "r2r-datasets": "datasets",
}


@click.command()
@click.argument("dataset", type=FOLDER)
@click.argument("out", type=FOLDER)
@click.option(
    "--format",
    "layout",
    type=click.Choice(list(_KINDS)),
    default="r2r-parquet",
    show_default=True,
    help="Parquet shards, or a folder for load_from_disk of the package datasets.",
)
def export(dataset: Path, out: Path, layout: str) -> None:
    """Write the labelled DATASET to the folder OUT in R2R's columns, with a dataset card."""
    from crossroads.cli.console import RichProgress, console
    from crossroads.dataset import LabelledDataset
    from crossroads.exchange.r2r_export import export_r2r

    labelled = LabelledDataset.open(dataset)
    with RichProgress() as progress:
        report = export_r2r(
            labelled, out, kind=_KINDS[layout], prompts=_prompts(dataset), progress=progress
        )
    rows = ", ".join(f"{count} {split}" for split, count in report.rows.items())
    console().print(
        f"{report.responses} responses, {report.scored} scored positions, {report.unjudged} "
        f"without a verdict; rows: {rows}; in {out}"
    )


def _prompts(dataset: Path) -> Callable[[str], Sequence[int] | None] | None:
    """Return the prompts that labelling kept beside its dataset, None where there are none."""
    from crossroads.artifacts import IndexedLog

    path = dataset / "respond" / "responses.jsonl"
    if not path.exists():
        return None
    log = IndexedLog(path)

    def prompt_ids(key: str) -> Sequence[int] | None:
        return log.get(key)["prompt_ids"] if key in log else None

    return prompt_ids
