"""`crossroads calibrate`: a router's threshold anew, and how far the old one has drifted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossroads.cli.options import FOLDER

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from crossroads.routing.checkpoint import LoadedRouter
    from crossroads.training.calibrate import Recalibration
    from crossroads.training.report import Labelled


@click.command()
@click.argument("router", type=FOLDER)
@click.argument("datasets", nargs=-1, required=True, type=FOLDER, metavar="DATASET...")
@click.option(
    "--target", default=None,
    help="What the threshold is chosen for: recall=0.95, positive_rate=0.12, f1, "
    "cost=miss:10,call:1, guarantee=0.95.  [default: what the router's card says]",
)  # fmt: skip
@click.option(
    "--split", default="calibration", show_default=True,
    type=click.Choice(["train", "calibration", "test"]),
    help="Which problems of the datasets; any, if the router was not trained on them.",
)  # fmt: skip
@click.option("--out", default=None, type=FOLDER, help="Write the router with its new threshold.")
@click.option("--in-place", is_flag=True, help="Replace the threshold in ROUTER itself.")
@click.option("--seed", default=0, show_default=True)
def calibrate(
    router: Path,
    datasets: tuple[Path, ...],
    target: str | None,
    split: str,
    out: Path | None,
    in_place: bool,
    seed: int,
) -> None:
    """Choose the threshold of ROUTER anew on labelled DATASETs, and say whether the old one holds.

    Nothing is written without --out or --in-place.
    """
    from crossroads.cli.console import console
    from crossroads.provenance import provenance
    from crossroads.routing.checkpoint import load_router
    from crossroads.training.calibrate import check_out, recalibrate, save_recalibrated
    from crossroads.training.target import Target

    wanted = None if target is None else Target.parse(target)
    loaded = load_router(router)
    folder = check_out(router, out, in_place)
    scores, rows, identity = _scored_rows(router, loaded, datasets, split)
    found = recalibrate(loaded, scores, rows, wanted, seed)
    console().print(_table(found, loaded.card.threshold))
    console().print(*_sentences(found), sep="\n", soft_wrap=True, markup=False)
    if folder is None:
        console().print("nothing was written; --out FOLDER keeps the new threshold")
        return
    origin = provenance(seed=seed, split=split, **identity)
    save_recalibrated(loaded, found, folder, origin)
    console().print(f"router with the new threshold in {folder}", soft_wrap=True, markup=False)


def _scored_rows(
    router: Path, loaded: LoadedRouter, folders: Sequence[Path], split: str
) -> tuple[np.ndarray, Labelled, Mapping[str, Any]]:
    """Return the router's scores of a split of the datasets, its labels, and what was read."""
    from crossroads.cli.console import RichProgress
    from crossroads.dataset import LabelledDataset
    from crossroads.training.calibrate import check_small
    from crossroads.training.fit import score_rows
    from crossroads.training.rows import Corpus
    from crossroads.types import Split

    opened = [LabelledDataset.open(folder) for folder in folders]
    for dataset in opened:
        check_small(loaded.card.small, dataset.small, router, dataset.folder)
    with RichProgress() as progress:
        corpus = Corpus.open(opened, loaded.router.inputs, progress=progress)
    rows = corpus.split(Split(split))
    return score_rows(loaded.router, rows), rows, corpus.identity


def _table(found: Recalibration, threshold: float) -> Table:
    """Return the old threshold as promised and as it is, and the new one."""
    from rich.box import SIMPLE
    from rich.table import Table

    new, point = found.new, found.old.point
    table = Table(
        title=f"{point.tokens} tokens in {new.problems} problems, {point.positives} of them "
        f"{new.objective}; [95 % intervals]",
        title_justify="left",
        box=SIMPLE,
        pad_edge=False,
    )
    table.add_column("threshold")
    for column in ("", "recall %", "positive_rate %"):
        table.add_column(column, justify="right", no_wrap=True)
    lines = (
        ("old, on its own calibration data", threshold, found.card),
        ("old, on this data", threshold, found.to_json()["old"]),
        (f"new, for {new.target.words}", new.threshold, new.record()),
    )
    for name, at, values in lines:
        cells = (_cell(values, number) for number in ("recall", "positive_rate"))
        table.add_row(name, f"{at:.4f}", *cells)
    return table


def _cell(values: Mapping[str, Any], name: str) -> str:
    """Return a number with its interval in percent; a card may lack either."""
    point, interval = (values.get("point") or {}).get(name), values.get(name)
    if point is None:
        return "\u2013"
    text = f"{100 * point:.1f}"
    if isinstance(interval, Mapping):
        text += f" [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"
    return text


def _sentences(found: Recalibration) -> list[str]:
    if found.distance is None:
        scores = "The card has no quantiles of its scores to compare with."
    else:
        scores = (
            f"The scores are {found.distance:.2f} away from those of the old calibration "
            "(Kolmogorov-Smirnov distance: 0 for the same distribution, 1 for disjoint ones)."
        )
    return [found.verdict, scores]
