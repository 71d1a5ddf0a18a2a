"""`crossroads import-r2r`: R2R's columns to a labelled dataset."""

from __future__ import annotations

from pathlib import Path

import click

from crossroads.cli.options import FOLDER


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=FOLDER)
@click.option(
    "--small",
    default=None,
    help="The small model of the data: name, .gguf, folder or hub repo. Without it, the dataset "
    "has no token embeddings, and its routers fit no model.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the splits.")
@click.option(
    "--allow-misaligned", is_flag=True, help="Leave positions that fail the audit unjudged."
)
def import_r2r(
    source: Path, out: Path, small: str | None, seed: int, allow_misaligned: bool
) -> None:
    """Audit R2R's data at SOURCE (parquet, or a folder of save_to_disk) and import it to OUT."""
    from crossroads.cli.console import RichProgress, console
    from crossroads.cli.label import print_base_rates
    from crossroads.exchange.r2r_import import import_r2r as import_data
    from crossroads.models.pairs import load_model

    with RichProgress() as progress:
        loaded = load_model(small, progress=progress) if small is not None else None
        try:
            import_data(
                source,
                out,
                small=loaded.model if loaded is not None else "unknown",
                seed=seed,
                allow_misaligned=allow_misaligned,
                progress=progress,
            )
        finally:
            if loaded is not None:
                loaded.close()
    print_base_rates(console(), out)
