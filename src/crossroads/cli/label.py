"""`crossroads label`: problems to a labelled dataset, all stages or some."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossroads.cli.options import FILE, FOLDER, PairOptions, pair_options
from crossroads.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from crossroads.cli.console import RichProgress
    from crossroads.labelling.ray_workers import RayWorkers
    from crossroads.labelling.run import LabelConfig
    from crossroads.labelling.sharded import LabelOrder
    from crossroads.types import Problem

STAGES = ("respond", "compare", "continue", "judge", "build")


@click.command()
@click.argument("out", type=FOLDER)
@click.option(
    "--problems",
    type=FILE,
    multiple=True,
    help="JSONL file: id, prompt or messages, answer, domain. May be given again.",
)
@click.option(
    "--task",
    multiple=True,
    help="Problems of a task: reasoning_gym:NAME, gsm8k:train, datasets:path=...,prompt=COLUMN, "
    "jsonl:PATH. May be given again.",
)
@click.option("--count", default=100, show_default=True, help="How many of each task's problems.")
@click.option("--seed", default=0, show_default=True, help="Seed of problems, samples and splits.")
@pair_options(context=2048)
@click.option(
    "--judge",
    "judges",
    multiple=True,
    default=("likelihood",),
    show_default=True,
    help="NAME or NAME:KEY=VALUE,...; likelihood, convergence, embedding, local, llm, outcome. "
    "May be given again.",
)
@click.option(
    "--combine",
    type=click.Choice(["any", "all", "vote"]),
    default="vote",
    show_default=True,
    help="How several judges make one label.",
)
@click.option(
    "--stage",
    "stages",
    type=click.Choice(STAGES),
    multiple=True,
    help="Run this stage alone; may be given again [default: all].",
)
@click.option("--max-tokens", default=512, show_default=True, help="Longest response.")
@click.option("--samples", default=1, show_default=True, help="Responses per problem.")
@click.option("--temperature", default=0.0, show_default=True, help="Of responses; 0 = greedy.")
@click.option("--top-p", default=1.0, show_default=True)
@click.option(
    "--sentences", default=2, show_default=True, help="A continuation ends with this sentence."
)
@click.option("--continuation-tokens", default=128, show_default=True, help="Longest continuation.")
@click.option("--continuations", default=1, show_default=True, help="Continuations per mismatch.")
@click.option("--continuation-temperature", default=0.0, show_default=True, help="0 = greedy.")
@click.option(
    "--always-continue", is_flag=True, help="Continue mismatches even if no judge needs it."
)
@click.option("--rows", default=16, show_default=True, type=click.IntRange(1), help="Rows at once.")
@click.option(
    "--against",
    multiple=True,
    help="Evaluation set that must not be among the problems: a benchmark's name or a task. May "
    "be given again [default: every known benchmark].",
)
@click.option("--drop-contaminated", is_flag=True, help="Leave evaluation questions out.")
@click.option("--allow-contaminated", is_flag=True, help="Do not look for evaluation questions.")
@click.option("--retry-failed", is_flag=True, help="Ask judges again where they failed.")
@click.option("--rebuild", is_flag=True, help="Replace the labels by those of other judges.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Share the problems among this many workers of Ray, each with its own pair "
    "[default: this process alone].",
)
@click.option(
    "--worker-gpus",
    type=click.FloatRange(0),
    help="GPUs of each worker; 0.5: two workers on one [default: 0].",
)
@click.option(
    "--ray",
    "ray_address",
    metavar="ADDRESS",
    help="Ray cluster that has the workers, `auto` for the one of this machine [default: Ray is "
    "started here, and ended with the run].",
)
def label(
    out: Path,
    problems: tuple[Path, ...],
    task: tuple[str, ...],
    count: int,
    seed: int,
    models: PairOptions,
    judges: tuple[str, ...],
    stages: tuple[str, ...],
    rows: int,
    against: tuple[str, ...],
    drop_contaminated: bool,
    allow_contaminated: bool,
    workers: int | None,
    worker_gpus: float | None,
    ray_address: str | None,
    **settings: Any,
) -> None:
    """Label problems into the dataset folder OUT; run again after a stop to go on.

    The large model answers, both models read the answers, the large model continues where they
    differ, judges decide, and the labels are built.
    """
    from crossroads.artifacts import ensure_writable
    from crossroads.cli.console import RichProgress, console, stderr
    from crossroads.labelling.judges.base import JudgeContext
    from crossroads.labelling.judges.chosen import ChosenJudges
    from crossroads.labelling.sharded import LabelOrder
    from crossroads.models.weights import cache_root

    ray = _workers(workers, worker_gpus, ray_address)
    cache = cache_root() / "judgements"
    ChosenJudges(judges, JudgeContext(None, rows + 1, cache))  # a mistake is told at once
    policy = None if allow_contaminated else _Policy(against, drop_contaminated, seed)
    screened = _screen(_problems(problems, task, count, seed), policy, stderr())
    order = LabelOrder(
        folder=out,
        problems=tuple(screened.problems),
        pair=models,
        judges=judges,
        stages=stages or STAGES,
        config=_config(settings, screened, seed, rows),
        cache=cache,
    )
    ensure_writable(out)
    with RichProgress() as progress:
        _carry_out(order, models, ray, progress)
    if "build" in order.stages:
        _report(out, console())


def _workers(count: int | None, gpus: float | None, address: str | None) -> RayWorkers | None:
    """Return the workers that the options mean; None: this process alone."""
    if count is not None:
        from crossroads.labelling.ray_workers import RayWorkers

        return RayWorkers(count, gpus=gpus or 0.0, address=address)
    if gpus is not None or address is not None:
        option = "--ray" if gpus is None else "--worker-gpus"
        raise ConfigError(f"{option} is about workers and there are none; give --workers N")
    return None


def _carry_out(
    order: LabelOrder, models: PairOptions, ray: RayWorkers | None, progress: RichProgress
) -> None:
    """Label here or by workers; either goes on with what the other has done."""
    from crossroads.artifacts import exclusive
    from crossroads.labelling.sharded import label_in_shards, work
    from crossroads.labelling.shards import gather

    if ray is None:
        with exclusive(order.folder):
            gather(order.folder, order.problems)
        work(order, progress)
        return
    with ray:
        # Every worker with a thread for each core would be slower than one.
        pair = replace(models, threads=models.threads or ray.cpus)
        label_in_shards(replace(order, pair=pair), ray.count, ray.run, progress)


def _problems(paths: Sequence[Path], tasks: Sequence[str], count: int, seed: int) -> list[Problem]:
    """Return the problems of every source."""
    from crossroads.tasks import load_problems
    from crossroads.tasks.collect import merge
    from crossroads.tasks.jsonl import read_problems

    if not paths and not tasks:
        raise ConfigError("there is nothing to label; give --problems FILE or --task NAME")
    sources = {str(path): read_problems(path) for path in paths}
    sources |= {task: load_problems(task, count, seed) for task in tasks}
    return merge(sources)


@dataclass(frozen=True)
class _Policy:
    """What to look for among the problems, and what to do with it."""

    against: tuple[str, ...]
    drop: bool
    seed: int


@dataclass(frozen=True)
class _Screened:
    """Problems to label, which of them are duplicates, and what the dataset says of the search."""

    problems: list[Problem]
    groups: dict[str, str]
    notes: dict[str, Any]


def _screen(problems: list[Problem], policy: _Policy | None, out: Console) -> _Screened:
    """Look for duplicates and evaluation questions, and tell what was found.

    Raises:
        DataError: there are evaluation questions, and the policy is not to drop them.
    """
    from crossroads.tasks.collect import find_duplicates, require_clean, screen

    notes: dict[str, Any] = {"contamination": "not checked"}
    if policy is not None:
        texts, unchecked = _benchmarks(policy)
        if unchecked:
            names, why = ", ".join(unchecked), next(iter(unchecked.values()))
            out.print(f"not checked against {names} ({why})", markup=False, soft_wrap=True)
        found = screen(problems, texts)
        problems = list(found.clean) if policy.drop else require_clean(found)
        dropped = sorted({finding.problem_id for finding in found.contaminated})
        if dropped:
            out.print(f"{len(dropped)} problems hold evaluation questions and are left out")
        notes["contamination"] = {
            "checked": {name: len(questions) for name, questions in texts.items()},
            "unchecked": unchecked,
            "dropped": dropped,
        }
    report = find_duplicates(problems)
    groups = {problem: group for problem, group in report.group_of.items() if problem != group}
    for kind, found_groups in (("equal", report.exact), ("nearly equal", report.near)):
        if found_groups:
            extra = sum(len(group) - 1 for group in found_groups)
            example = ", ".join(found_groups[0][:3])
            out.print(
                f"{extra} problems are {kind} to others (such as {example}); they share a split",
                markup=False,
                soft_wrap=True,
            )
    notes["duplicates"] = {"exact": report.exact, "near": report.near}
    return _Screened(problems, groups, notes)


def _benchmarks(policy: _Policy) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the questions to look for, and why others could not be had.

    A task that the user names must load; a benchmark may be out of reach.
    """
    from crossroads.tasks import load_problems
    from crossroads.tasks.benchmarks import BENCHMARKS
    from crossroads.tasks.collect import gather_benchmarks
    from crossroads.tasks.overlap import problem_text

    tasks = [name for name in policy.against if ":" in name]
    named = [name for name in policy.against if ":" not in name]
    gathered = gather_benchmarks(named if policy.against else list(BENCHMARKS))
    texts = {name: list(questions) for name, questions in gathered.texts.items()}
    for task in tasks:
        texts[task] = [problem_text(p) for p in load_problems(task, 10**9, policy.seed)]
    return texts, dict(gathered.unchecked)


def _config(settings: dict[str, Any], screened: _Screened, seed: int, rows: int) -> LabelConfig:
    from crossroads.labelling.build import BuildConfig
    from crossroads.labelling.continue_ import ContinueConfig
    from crossroads.labelling.respond import RespondConfig
    from crossroads.labelling.run import LabelConfig
    from crossroads.labelling.sentences import SentenceRule

    return LabelConfig(
        respond=RespondConfig(
            max_tokens=settings["max_tokens"],
            samples=settings["samples"],
            temperature=settings["temperature"],
            top_p=settings["top_p"],
            seed=seed,
        ),
        continue_=ContinueConfig(
            rule=SentenceRule(settings["sentences"], settings["continuation_tokens"]),
            samples=settings["continuations"],
            temperature=settings["continuation_temperature"],
            seed=seed,
        ),
        build=BuildConfig(
            seed=seed,
            combine=settings["combine"],
            groups=screened.groups,
            screening=screened.notes,
            rebuild=settings["rebuild"],
        ),
        max_rows=rows,
        continuations=settings["always_continue"],
        retry_failed=settings["retry_failed"],
    )


def _report(out: Path, screen: Console) -> None:
    """Print the base rates, and what was left out and why."""
    from crossroads.dataset import LabelledDataset

    card = LabelledDataset.open(out).card
    print_base_rates(screen, out)
    if unfinished := card["unfinished"]:
        screen.print(f"{len(unfinished)} responses hit the token limit and are not labelled")
    reasons = Counter((f["stage"], f["reason"]) for f in card["failures"])
    if reasons:
        screen.print(f"{reasons.total()} pieces of work failed:")
    for (stage, reason), times in reasons.most_common(10):
        screen.print(f"  {times} x {stage}: {reason}", markup=False, soft_wrap=True)


def print_base_rates(screen: Console, dataset: Path) -> None:
    """Print the label shares per split and domain, beside R2R's."""
    from rich.box import SIMPLE
    from rich.table import Table

    from crossroads.dataset import LabelledDataset
    from crossroads.rates import R2R_BASE_RATES

    card = LabelledDataset.open(dataset).card
    # A line of its own: a table's title wraps at the table's width, in the middle of the path.
    screen.print(f"labels in {dataset} (judge: {_judges(card)})", markup=False, soft_wrap=True)
    table = Table(box=SIMPLE)
    kinds = ("identical", "neutral", "divergent")
    table.add_column("part", no_wrap=True)
    unjudged = card["base_rates"]["all"]["unjudged"] > 0
    columns = ["positions", *(f"{kind} %" for kind in kinds), *(["unjudged"] if unjudged else [])]
    for column in columns:
        table.add_column(column, justify="right")
    for part, rates in card["base_rates"].items():
        shares = [f"{100 * rates[kind]:.2f}" for kind in kinds]
        open_ones = [str(rates["unjudged"])] if unjudged else []
        table.add_row(part, str(rates["positions"]), *shares, *open_ones)
    table.add_row("R2R (paper)", "", *(f"{100 * R2R_BASE_RATES[kind]:.0f}" for kind in kinds))
    screen.print(table)


def _judges(card: Mapping[str, Any]) -> str:
    names = ", ".join(judge["name"] for judge in card["judges"])
    return f"{card['combine']} of {names}" if card["combine"] else names
