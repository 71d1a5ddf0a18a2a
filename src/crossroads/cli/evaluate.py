"""`crossroads evaluate`: tasks x systems, with a table, plots, intervals and every trace."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossroads.cli.options import FOLDER, PairOptions, on_loss_option, pair_options
from crossroads.errors import ConfigError

if TYPE_CHECKING:
    from crossroads.evaluation.folder import RunFolder
    from crossroads.evaluation.systems import System
    from crossroads.models.pairs import Pair
    from crossroads.tasks.evaluation import EvaluationTask


@click.command()
@click.argument("tasks", nargs=-1, required=True)
@click.option("--out", type=FOLDER, required=True, help="Run folder; a stopped run there goes on.")
@pair_options(context=2048)
@click.option(
    "--router",
    default=None,
    help="Router folder, or pretrained [default: the package's router for the pair, if any].",
)
@click.option(
    "--system",
    "systems",
    multiple=True,
    help="small, large, router, entropy, margin, max-probability, random, lossless:DRAFT, oracle; "
    "router@THRESHOLD, NAME~LARGE_FRACTION, NAME~SYSTEM. May be given again [default: small, "
    "large, router, the heuristics at its large_fraction, lossless].",
)
@click.option(
    "--sweep",
    default=None,
    help="Large_fractions, as in 0.05,0.1,0.2: also router, entropy and random at each.",
)
@click.option("--count", type=click.IntRange(1), help="Only the first so many problems of a task.")
@click.option("--last", type=click.IntRange(1), help="Only the last so many problems of a task.")
@click.option("--max-tokens", type=click.IntRange(1), help="Longest answer [default: the task's].")
@click.option("--rows", default=8, show_default=True, type=click.IntRange(1), help="Rows at once.")
@click.option(
    "--samples", default=1, show_default=True, type=click.IntRange(1), help="Answers per problem."
)
@click.option("--temperature", default=0.0, show_default=True, help="0 = greedy.")
@click.option("--top-p", default=1.0, show_default=True)
@click.option("--top-k", default=0, show_default=True, help="0 = off.")
@click.option("--min-p", default=0.0, show_default=True, help="0 = off.")
@click.option("--seed", default=0, show_default=True, help="Of problems, options and samples.")
@on_loss_option
@click.option(
    "--pilot",
    default=12,
    show_default=True,
    type=click.IntRange(1),
    help="Problems on which a threshold is matched to a large_fraction.",
)
def evaluate(
    tasks: tuple[str, ...],
    out: Path,
    models: PairOptions,
    router: str | None,
    systems: tuple[str, ...],
    sweep: str | None,
    count: int | None,
    last: int | None,
    seed: int,
    pilot: int,
    **settings: Any,
) -> None:
    """Answer TASKS with the models alone, the router and its baselines; table, page, traces.

    A task is gsm8k, math500, aime24, aime25, gpqa-diamond or humaneval; gsm8k:FILE for data that
    is here; reasoning_gym:NAME; jsonl:FILE; or a task file, TASK.toml.
    """
    from crossroads.cli.console import RichProgress, console
    from crossroads.evaluation.evaluate import check
    from crossroads.evaluation.evaluate import evaluate as run
    from crossroads.evaluation.folder import RunFolder, lost_tokens
    from crossroads.evaluation.report import check_packages
    from crossroads.evaluation.run import Bench

    note = check_packages()
    fractions = _fractions(sweep)
    run_settings = _settings(settings, seed)
    loaded = _tasks(tasks, _part(count, last), seed)
    check(loaded, ())  # before the models load
    folder = RunFolder(out)
    with (
        RichProgress() as progress,
        models.load(max_rows=run_settings.rows, progress=progress) as pair,
    ):
        if note is not None:
            progress.note(note)
        chosen = _systems(pair, systems, fractions, router)
        bench = Bench(pair, folder, run_settings, progress)
        steps = itertools.count(1)
        total = len(loaded) * len(chosen)
        run(
            bench,
            loaded,
            chosen,
            pilot=pilot,
            say=lambda name: progress.note(f"[{next(steps)}/{total}] {name}"),
        )
    show(folder)
    if lost := lost_tokens(folder):
        console().print(
            f"{lost} tokens are the small model's because no server of the large one answered; "
            "their cause in the traces is unavailable",
            soft_wrap=True,
        )


def show(folder: RunFolder, most_traces: int | None = None) -> None:
    """Print a run's tables and write its page, plots and numbers."""
    from crossroads.cli.console import console
    from crossroads.evaluation.report import terminal_tables, write_report
    from crossroads.evaluation.summary import summarise

    results = summarise(folder)
    training = folder.training()
    page = write_report(folder, results, training=training, most_traces=most_traces)
    screen = console()
    for table in terminal_tables(results):
        screen.print(table)
    screen.print(
        f"page with {'every trace' if most_traces is None else 'traces'}: {page}", soft_wrap=True
    )


def _fractions(text: str | None) -> list[float]:
    parts = [] if text is None else text.split(",")
    try:
        fractions = [float(part) for part in parts]
    except ValueError:
        fractions = [0.0]
    if any(not 0 < fraction < 1 for fraction in fractions):
        raise ConfigError(
            f"--sweep takes large_fractions between 0 and 1, as in 0.05,0.1,0.2; got {text!r}"
        )
    return fractions


def _settings(values: dict[str, Any], seed: int) -> Any:
    from crossroads.evaluation.run import RunSettings
    from crossroads.sampling import SamplingParams
    from crossroads.types import OnLoss

    values["on_loss"] = OnLoss(values["on_loss"])
    drawn = {name: values.pop(name) for name in ("temperature", "top_p", "top_k", "min_p")}
    return RunSettings(sampling=SamplingParams(**drawn, seed=seed), **values)


def _part(count: int | None, last: int | None) -> slice:
    if count is not None and last is not None:
        raise ConfigError("--count takes the first problems and --last the last; give one of them")
    return slice(-last, None) if last is not None else slice(count)


def _tasks(texts: tuple[str, ...], part: slice, seed: int) -> list[EvaluationTask]:
    from crossroads.tasks.evaluation import load_task

    return [load_task(text, part, seed) for text in texts]


def _systems(
    pair: Pair, texts: tuple[str, ...], fractions: list[float], router: str | None
) -> list[System]:
    from crossroads.evaluation.systems import default_systems, parse_systems
    from crossroads.routing.choose import choose_router

    small, large = pair.small.info, pair.large.info
    chosen = choose_router(router, small, large)
    trained = chosen if chosen.card is not None else None
    if router is not None and trained is None:
        raise ConfigError(
            f"--router takes a trained router, and {router} is a heuristic; "
            f"give --system {router} for it"
        )
    names = [*texts] if texts else default_systems(fractions, trained=trained is not None)
    if not texts and not large.looks_back:
        names.remove("lossless")
        click.echo(f"lossless is left out: the server of {large.name} cannot do it", err=True)
    if texts and fractions:
        names += [f"{name}~{f:g}" for f in fractions for name in ("router", "entropy", "random")]
    return parse_systems(list(dict.fromkeys(names)), small.vocab_size, trained)
