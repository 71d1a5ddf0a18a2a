"""`crossroads import-r2r-router`: R2R's trained router to a router folder."""

from __future__ import annotations

from pathlib import Path

import click

from crossroads.cli.options import FOLDER


@click.command("import-r2r-router")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=FOLDER)
@click.option(
    "--small",
    required=True,
    help="The small model that it was trained for: name, .gguf, folder or hub repo.",
)
@click.option("--large", default="unknown", show_default=True, help="The large model's name.")
@click.option("--threshold", type=float, default=None, help="[default: the one in the checkpoint]")
def import_r2r_router(
    checkpoint: Path, out: Path, small: str, large: str, threshold: float | None
) -> None:
    """Read CHECKPOINT, the .pt file of R2R's training, and write the router folder OUT.

    The file is read as tensors and plain values; nothing in it is executed. Its token embeddings
    must be the small model's own.
    """
    from crossroads.artifacts import ensure_writable
    from crossroads.cli.console import RichProgress, console
    from crossroads.models import pairs
    from crossroads.routing.checkpoint import SmallModelId, load_router
    from crossroads.routing.convert import convert_r2r_checkpoint, read_checkpoint

    kind = read_checkpoint(checkpoint).model_type  # a wrong file is told before a model is loaded
    ensure_writable(out)
    with RichProgress() as progress:
        loaded = pairs.load_model(small, progress=progress)
        try:
            convert_r2r_checkpoint(
                checkpoint,
                SmallModelId.of(loaded.model.info),
                out,
                threshold=threshold,
                embed=loaded.model.embed,
                large_name=large,
            )
        finally:
            loaded.close()
    router = load_router(out)
    console().print(
        f"{kind}, {router.router.parameters / 1e6:.1f} M parameters, for {router.card.small.name}, "
        f"threshold {router.card.threshold:.4f}; router in {out}",
        soft_wrap=True,
    )
