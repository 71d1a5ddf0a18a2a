"""The line behind `crossroads quickstart`: every stage once, each resumable in its own folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from crossroads.artifacts import ensure_writable, pin_config, write_json
from crossroads.cli.console import RichProgress, console, duration
from crossroads.cli.options import PairOptions
from crossroads.dataset import LabelledDataset
from crossroads.errors import ConfigError
from crossroads.evaluation.report import summarise_run, terminal_table, write_html
from crossroads.evaluation.results import SystemKind, SystemRun
from crossroads.evaluation.run import RunConfig, System, run_system, threshold_for_fraction
from crossroads.labelling.build import BuildConfig
from crossroads.labelling.judges import judge_by_name
from crossroads.labelling.respond import RespondConfig
from crossroads.labelling.run import LabelConfig, label
from crossroads.models.base import Tokenizer
from crossroads.models.pairs import Pair
from crossroads.provenance import provenance
from crossroads.routing.routers.base import Router
from crossroads.routing.routers.heuristics import entropy, random
from crossroads.tasks import load_problems
from crossroads.training.recipes import recipe
from crossroads.training.report_tables import recalls_table, report_table
from crossroads.training.threshold import NEVER
from crossroads.training.train import Trained, train
from crossroads.types import Problem, Role

TASKS = ("reasoning_gym:chain_sum",)
_EVALUATION_SEED = 1_000_003
"""Added to the seed, so that labelled and evaluated problems come from different streams."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything. Few problems mean wide intervals: they are printed."""

    label_count: int = 28
    evaluate_count: int = 10
    max_tokens: int = 320
    rows: int = 16
    target_recall: float = 0.95
    seed: int = 0
    sweep: bool = False

    def __post_init__(self) -> None:
        """Refuse a plan that cannot end in a table.

        Raises:
            ConfigError: names the option.
        """
        if self.label_count < 5:
            raise ConfigError(f"--label must be at least 5 (three splits), got {self.label_count}")
        if self.evaluate_count < 1 or self.max_tokens < 1:
            raise ConfigError("--evaluate and --max-tokens must be at least 1")
        if not 0 < self.target_recall <= 1:
            raise ConfigError(f"--target-recall must be in (0, 1], got {self.target_recall}")


@dataclass(slots=True)
class Stages:
    """Tells how far the whole run is.

    `costs` are typical seconds of each stage; the estimate scales what is left of them by how long
    the finished stages took on this machine.
    """

    costs: Mapping[str, float]
    say: Callable[[str], None]
    started: float = field(default_factory=time.monotonic)
    done: float = 0.0
    number: int = 0

    def begin(self, name: str) -> None:
        """Announce a stage with what is left of the run."""
        if self.number:
            self.done += list(self.costs.values())[self.number - 1]
        self.number += 1
        left = sum(self.costs.values()) - self.done
        pace = (time.monotonic() - self.started) / self.done if self.done > 60 else 1.0
        self.say(
            f"[{self.number}/{len(self.costs)}] {name} "
            f"(about {duration(left * pace)} left for the whole run)"
        )


def run_line(models: PairOptions, out: Path, plan: Plan) -> None:
    """Run every stage into `out`, print the tables, and write `out/report.html`."""
    ensure_writable(out)
    pin_config(out / "config.json", asdict(plan), "a quickstart")
    to_label, to_answer = problems(plan)
    with RichProgress() as progress:
        stages = Stages(_costs(plan), progress.note)
        stages.begin("load")
        with models.load(max_rows=plan.rows, progress=progress) as pair:
            stages.begin("label")
            judge = judge_by_name("likelihood")
            config = LabelConfig(
                RespondConfig(plan.max_tokens, seed=plan.seed),
                build=BuildConfig(seed=plan.seed),
                max_rows=plan.rows,
            )
            label(pair, to_label, [judge], out / "labels", progress, config)
            stages.begin("train")
            dataset = LabelledDataset.open(out / "labels")
            fit = recipe("default", target_recall=plan.target_recall, seed=plan.seed)
            trained = train([dataset], fit, out / "router", progress)
            running = RunConfig(max_tokens=plan.max_tokens, max_rows=plan.rows)
            bench = _Bench(pair, to_answer, out / "systems", running, stages, progress)
            runs = _evaluate(bench, trained, plan)
    _report(pair, trained, runs, out, plan)


def problems(plan: Plan) -> tuple[list[Problem], list[Problem]]:
    """Return problems to label and other problems to answer; no question is in both."""
    label_each = -(-plan.label_count // len(TASKS))
    answer_each = -(-plan.evaluate_count // len(TASKS))
    to_label = [p for task in TASKS for p in load_problems(task, label_each, plan.seed)]
    seen = {p.messages for p in to_label}
    to_answer = [
        p
        for task in TASKS
        for p in load_problems(task, answer_each, plan.seed + _EVALUATION_SEED)
        if p.messages not in seen
    ]
    return to_label[: plan.label_count], to_answer[: plan.evaluate_count]


def _costs(plan: Plan) -> dict[str, float]:
    """Return typical seconds per stage on two cores; later stages are scaled by earlier ones."""
    mixed = 8.0 * plan.evaluate_count
    costs = {
        "load": 8,
        "label": 10.0 * plan.label_count,
        "train": 5,
        "small alone": 3.5 * plan.evaluate_count,
        "large alone": 6.0 * plan.evaluate_count,
        "router": mixed,
        "entropy": mixed,
        "random": mixed,
    }
    if plan.sweep:
        costs |= {"router at half": mixed, "entropy at half": mixed}
    return costs


@dataclass(frozen=True, slots=True)
class _Bench:
    """What every system is run with."""

    pair: Pair
    problems: Sequence[Problem]
    folder: Path
    config: RunConfig
    stages: Stages
    progress: RichProgress

    def run(self, system: System) -> SystemRun:
        self.stages.begin(system.name)
        folder = self.folder / system.name.replace(",", "").replace(" ", "-")
        return run_system(self.pair, system, self.problems, folder, self.progress, self.config)


def _evaluate(bench: _Bench, trained: Trained, plan: Plan) -> list[SystemRun]:
    """Answer the problems with each system, heuristics at the router's live large_fraction."""
    vocabulary = bench.pair.small.info.vocab_size
    heuristic = entropy(vocabulary)
    small = bench.run(System("small alone", SystemKind.SMALL, role=Role.SMALL))
    large = bench.run(System("large alone", SystemKind.LARGE, role=Role.LARGE))
    routed = bench.run(_calibrated(trained, plan))
    fraction = routed.usage.large_fraction

    def baseline(name: str, router: Router, threshold: float) -> SystemRun:
        return bench.run(
            System(name, SystemKind.BASELINE, router=router, threshold=min(threshold, NEVER))
        )

    scores = [r.score for g in routed.graded for r in g.trace.records if r.score is not None]
    entropies = [
        float(heuristic.score({"entropy": torch.tensor([[r.entropy]])})[0])
        for g in routed.graded
        for r in g.trace.records
        if r.entropy is not None
    ]
    runs = [
        small,
        large,
        routed,
        baseline("entropy", heuristic, threshold_for_fraction(entropies, fraction)),
        baseline("random", random(vocabulary, plan.seed), 1 - fraction),
    ]
    if plan.sweep:
        half = fraction / 2
        at_half = threshold_for_fraction(scores, half)
        name = "router at half"
        runs.append(
            bench.run(System(name, SystemKind.ROUTER, router=trained.router, threshold=at_half))
        )
        at_half = threshold_for_fraction(entropies, half)
        runs.append(baseline("entropy at half", heuristic, at_half))
    return runs


def _calibrated(trained: Trained, plan: Plan) -> System:
    """Return the trained router at its threshold, with what the test split says of it."""
    (row,) = (
        row
        for row in trained.report["rows"]
        if row["router"] == trained.router.name and row["target_recall"] == plan.target_recall
    )
    point = row["test"]["point"]
    return System(
        "router",
        SystemKind.ROUTER,
        router=trained.router,
        threshold=trained.threshold,
        recall=point["recall"],
        positive_rate=point["positive_rate"],
    )


def _report(pair: Pair, trained: Trained, runs: Sequence[SystemRun], out: Path, plan: Plan) -> None:
    """Print the two tables and write the page and the numbers."""
    summaries = [
        summarise_run(
            run,
            pair.small.info.active_parameters,
            pair.large.info.active_parameters,
            trained.router.parameters if run.kind is SystemKind.ROUTER else 0,
        )
        for run in runs
    ]
    origin = provenance(plan=asdict(plan), pair=pair.name)
    # Curves and histograms have a page of their own in the router's folder.
    shown = ("objective", "target", "rows", "splits", "quality", "provenance", "base_rates")
    training = {name: trained.report[name] for name in shown}
    write_json(
        out / "summary.json",
        {
            "systems": [summary.to_json() for summary in summaries],
            "training": training,
            "provenance": origin,
        },
    )
    write_html(out / "report.html", summaries, runs, _text_of(pair.tokenizer), training, origin)
    screen = console()
    rows = trained.report["rows"]
    screen.print(report_table(rows, trained.report["objective"], plan.target_recall))
    screen.print(recalls_table(rows))
    screen.print(terminal_table(summaries, plan.rows))
    screen.print(f"page with every trace: {out / 'report.html'}", soft_wrap=True)


def _text_of(tokenizer: Tokenizer) -> Callable[[int], str]:
    """Return a function from a token id to what a reader sees; special tokens by name."""
    pieces = tokenizer.pieces()

    def text(token_id: int) -> str:
        piece = pieces[token_id] if token_id < len(pieces) else None
        return "" if piece is None else piece.decode("utf-8", errors="replace")

    return text
