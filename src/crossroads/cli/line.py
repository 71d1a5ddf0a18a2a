"""The line behind `crossroads quickstart`: every stage once, each resumable in its own folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from crossroads.artifacts import ensure_writable, pin_config
from crossroads.cli.console import RichProgress, console, duration
from crossroads.cli.evaluate import show
from crossroads.cli.options import PairOptions
from crossroads.dataset import LabelledDataset
from crossroads.errors import ConfigError
from crossroads.evaluation.evaluate import evaluate
from crossroads.evaluation.folder import RunFolder
from crossroads.evaluation.matching import PILOT_ROUNDS
from crossroads.evaluation.report import check_packages
from crossroads.evaluation.run import Bench, RunSettings
from crossroads.evaluation.systems import parse_systems
from crossroads.labelling.build import BuildConfig
from crossroads.labelling.judges import judge_by_name
from crossroads.labelling.respond import RespondConfig
from crossroads.labelling.run import LabelConfig, label
from crossroads.models.pairs import Pair
from crossroads.routing.checkpoint import load_router
from crossroads.routing.choose import ChosenRouter
from crossroads.tasks import load_problems
from crossroads.tasks.evaluation import EvaluationTask, Item
from crossroads.training.recipes import recipe
from crossroads.training.report_tables import recalls_table, report_table
from crossroads.training.train import Trained, train
from crossroads.types import Problem, Progress

TASKS = ("reasoning_gym:chain_sum",)
_EVALUATION_SEED = 1_000_003
"""Added to the seed, so that labelled and evaluated problems come from different streams."""
_SWEEP = 0.1
"""The other large_fraction at which router and entropy are run, if asked."""
_PILOT = 2
"""Problems on which a threshold is matched; more would take longer than the answers."""


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
    note = check_packages()
    ensure_writable(out)
    pin_config(out / "config.json", asdict(plan), "a quickstart")
    to_label, _ = problems(plan)
    folder = RunFolder(out)
    with RichProgress() as progress:
        if note is not None:
            progress.note(note)
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
            _evaluate(pair, trained, folder, plan, stages, progress)
    _report(trained, folder, plan)


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
    mixed, pilots = 8.0 * plan.evaluate_count, 8.0 * PILOT_ROUNDS * _PILOT
    costs = {
        "load": 8,
        "label": 10.0 * plan.label_count,
        "train": 5,
        "small": 3.5 * plan.evaluate_count,
        "large": 6.0 * plan.evaluate_count,
        "router": mixed,
        "entropy": mixed + pilots,
        "random": mixed,
    }
    if plan.sweep:
        costs |= {"router at another": mixed + pilots, "entropy at another": mixed + pilots}
    return costs


def _evaluate(
    pair: Pair, trained: Trained, folder: RunFolder, plan: Plan, stages: Stages, progress: Progress
) -> None:
    """Answer the problems with each system, heuristics at the router's live large_fraction."""
    items = tuple(Item(problem, {}) for problem in problems(plan)[1])
    task = EvaluationTask(
        "quickstart", "math", items, plan.max_tokens, (), {"about": f"generated: {TASKS[0]}"}
    )
    names = ["small", "large", "router", "entropy~router", "random~router"]
    if plan.sweep:
        names += [f"router~{_SWEEP}", f"entropy~{_SWEEP}"]
    chosen = ChosenRouter(
        trained.router, trained.threshold, load_router(folder.path / "router").card
    )
    systems = parse_systems(names, pair.small.info.vocab_size, chosen)
    bench = Bench(pair, folder, RunSettings(rows=plan.rows), progress)
    evaluate(
        bench,
        [task],
        systems,
        pilot=_PILOT,
        say=lambda name: stages.begin(name.partition(": ")[2]),
        facts={"plan": asdict(plan)},
    )


def _report(trained: Trained, folder: RunFolder, plan: Plan) -> None:
    """Print the tables and write the page and the numbers."""
    # Curves and histograms have a page of their own in the router's folder.
    shown = ("objective", "target", "rows", "splits", "quality", "provenance", "base_rates")
    folder.write_training({name: trained.report[name] for name in shown})
    screen = console()
    rows = trained.report["rows"]
    screen.print(report_table(rows, trained.report["objective"], plan.target_recall))
    screen.print(recalls_table(rows))
    show(folder)
