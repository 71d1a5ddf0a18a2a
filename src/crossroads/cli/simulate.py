"""`crossroads simulate`: labelled data whose best possible router is known."""

from __future__ import annotations

from pathlib import Path

import click

from crossroads.cli.options import FOLDER


@click.command()
@click.argument("out", type=FOLDER)
@click.option("--problems", default=60, show_default=True, help="How many problems.")
@click.option("--tokens", default=150, show_default=True, help="Positions per problem.")
@click.option("--hidden", default=32, show_default=True, help="Size of the hidden states.")
@click.option(
    "--fault", "faults", multiple=True, metavar="NAME[=STRENGTH]",
    help="Inject a fault: shifted_features, label_noise, leaked_problems, duplicated_rows, "
    "unscaled_features, changed_base_rate.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--format", "kind", type=click.Choice(["ours", "r2r-parquet", "r2r-datasets"]), default="ours",
    show_default=True, help="Our dataset, or R2R's columns of it in OUT/r2r as well.",
)  # fmt: skip
def simulate(
    out: Path,
    problems: int,
    tokens: int,
    hidden: int,
    faults: tuple[str, ...],
    seed: int,
    kind: str,
) -> None:
    """Write a simulated dataset to OUT; print what the best possible router reaches on it."""
    from rich.box import SIMPLE
    from rich.table import Table

    from crossroads.cli.console import RichProgress, console
    from crossroads.exchange.r2r_export import export_r2r
    from crossroads.simulation.simulate import simulate as run
    from crossroads.simulation.truth import optimal_positive_rates
    from crossroads.simulation.world import SimulationConfig
    from crossroads.types import Split

    config = SimulationConfig(
        problems=problems, tokens_per_problem=tokens, hidden_size=hidden, faults=faults, seed=seed
    )
    with RichProgress() as progress:
        done = run(config, out, progress)
        if kind != "ours":
            export = "parquet" if kind == "r2r-parquet" else "datasets"
            export_r2r(done.dataset, out / "r2r", kind=export, progress=progress)  # type: ignore[arg-type]
    rates = done.dataset.card["base_rates"]["all"]
    table = Table(
        title=f"{rates['positions']} positions: {100 * rates['identical']:.2f} % identical, "
        f"{100 * rates['neutral']:.2f} % neutral, {100 * rates['divergent']:.2f} % divergent\n"
        "positive_rate % of the best possible router",
        title_justify="left",
        box=SIMPLE,
    )
    recalls = (0.8, 0.9, 0.95, 0.99)
    table.add_column("split")
    for recall in recalls:
        table.add_column(f"{100 * recall:.0f} % recall", justify="right")
    for split in Split:
        values = (done.truth.positive_rate(split, recall) for recall in recalls)
        table.add_row(str(split), *(f"{100 * value:.1f}" for value in values))
    population = optimal_positive_rates(config, recalls)
    table.add_row("population", *(f"{100 * value:.1f}" for value in population))
    console().print(table)
    console().print(f"faults: {', '.join(faults) or 'none'}; dataset in {out}", soft_wrap=True)
