"""`crossroads pull`: fetch the weights of a pair or a model, verify them, and keep them."""

from __future__ import annotations

from pathlib import Path

import click

from crossroads.cli.console import RichProgress, amount, console
from crossroads.models.catalogue import DEFAULT_PAIR, find_pair_or_models
from crossroads.models.store import fetch_model


@click.command()
@click.argument("name", metavar="PAIR_OR_MODEL", default=DEFAULT_PAIR)
@click.option(
    "--from",
    "given",
    metavar="PATH",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="A copy of the weights, or a folder that holds one; looked at before any download. "
    "Can be given more than once.",
)
@click.option("--verify", is_flag=True, help="Hash weights that are already there once more.")
def pull(name: str, given: tuple[Path, ...], verify: bool) -> None:
    """Fetch the weights of PAIR_OR_MODEL into the cache (the default pair if none is named).

    PAIR_OR_MODEL is a name that `crossroads pairs` lists, or ORG/REPO on the model hub. Weights
    are checked against their known size and SHA-256. A download that was cut off goes on where it
    stopped. CROSSROADS_CACHE says where the cache is.
    """
    models = find_pair_or_models(name)
    out = console()
    with RichProgress() as progress:
        for model in models:
            path = fetch_model(
                model, given=given, verify=verify, progress=progress, tell=progress.note
            )
            size = sum(f.stat().st_size for f in [path, *path.rglob("*")] if f.is_file())
            out.print(f"{model.name}: {amount(size, 'B')}, verified, at {path}", soft_wrap=True)
