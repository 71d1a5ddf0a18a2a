"""R2R's training command here: its config in, a router folder and its result JSON out.

By either protocol the network, the loss and the optimizer are R2R's, and both protocols' numbers
are reported for the network that was trained. Shapes: N scored tokens.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from crossroads.artifacts import canonical_hash, ensure_writable, pin_config, read_json, write_json
from crossroads.errors import ConfigError, DataError, EngineError
from crossroads.provenance import provenance
from crossroads.routing.checkpoint import RouterCard, load_router, save_router
from crossroads.routing.routers.neural import NeuralRouter
from crossroads.training.checks import check_corpus
from crossroads.training.config import FitConfig, settings
from crossroads.training.fit import FitResult, fit, score_rows
from crossroads.training.r2r.config import PROTOCOLS, R2RConfig
from crossroads.training.r2r.data import R2RData, open_data
from crossroads.training.r2r.protocol import (
    START,
    Line,
    Optimised,
    Scored,
    metrics,
    optimise,
    side_by_side,
)
from crossroads.training.r2r.result import R2RResult
from crossroads.training.report import RECALLS, scored, training_report
from crossroads.training.report_page import write_page
from crossroads.training.report_tables import report_table
from crossroads.training.rows import Rows
from crossroads.training.target import Target
from crossroads.training.tracking import NoTracker, open_trackers
from crossroads.training.train import BASELINE_INPUTS, REPORT, baselines
from crossroads.training.workers import Workers
from crossroads.types import Progress, Split

RESULT, PAGE = "result.json", "report.html"


@dataclass(frozen=True, slots=True)
class R2RTrained:
    """A finished run."""

    folder: Path
    result_path: Path
    router: NeuralRouter
    threshold: float
    result: R2RResult
    report: Mapping[str, Any]

    @property
    def lines(self) -> Sequence[Mapping[str, Any]]:
        """Both protocols' numbers of the router, as plain values."""
        lines: Sequence[Mapping[str, Any]] = self.report["side_by_side"]
        return lines

    @property
    def notes(self) -> Sequence[str]:
        """What should be known of the numbers."""
        notes: Sequence[str] = self.report["notes"]
        return notes

    def tables(self) -> tuple[Table, ...]:
        """Return what the terminal shows: both protocols, then the baselines on test."""
        return (
            side_by_side_table(self.lines, self.notes, self.report["objective"]),
            report_table(
                self.report["rows"], self.report["objective"], self.report["target_recall"]
            ),
        )


def train_r2r(
    config: R2RConfig, folder: Path | None, protocol: str, progress: Progress
) -> R2RTrained:
    """Train by R2R's config into `folder`; a finished folder is read, not trained again.

    Without a folder: `output.output_dir/NAME` with R2R's `NAME.json` beside it, where NAME is
    `output.model_name`, or comes from the config's content.

    Effects: R2R's data is imported into `folder/data` and stays there; a run that was killed goes
    on from its last state.

    Raises:
        ConfigError: an unknown protocol, a folder of another run, a model that is not there.
        DataError: data that cannot be trained on.
    """
    if protocol not in PROTOCOLS:
        raise ConfigError(f"unknown protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")
    out, result_path = _places(config, folder, protocol)
    fit_config = config.to_fit_config(protocol)
    identity = {
        "config": {**settings(fit_config), "protocol": protocol},
        "r2r": dict(config.values),
    }
    workers = Workers.of_environment(fit_config.device)
    with workers.first_before_others():
        ensure_writable(out)
        _check_same(out, identity)
        done = (out / REPORT).exists()
    if not done:
        run = _Training(config, fit_config, protocol, out, result_path, workers)
        run.to_the_end(identity, progress)
        workers.wait()
    loaded = load_router(out)
    return R2RTrained(
        out,
        result_path,
        loaded.router,
        loaded.card.threshold,
        R2RResult.read(result_path),
        read_json(out / REPORT, "training report"),
    )


def _places(config: R2RConfig, folder: Path | None, protocol: str) -> tuple[Path, Path]:
    """Return the router folder and the path of the result JSON."""
    if folder is not None:
        return folder, folder / RESULT
    directory = Path(config.values["output"]["output_dir"])
    # R2R's own name has the time in it; this one stays, so that a killed run is found again.
    name = config.get("output.model_name")
    if name is None:
        name = f"classifier_{canonical_hash([config.values, protocol])[:8]}"
    stem = Path(str(name)).stem
    return directory / stem, directory / f"{stem}.json"


def _check_same(folder: Path, identity: Mapping[str, Any]) -> None:
    """Refuse a folder of another run before its data is opened."""
    path = folder / "config.json"
    if path.exists():
        before = read_json(path, "a router")
        pin_config(path, {**before, **identity}, "a router")


class _Training:
    """One run, from its data to its files."""

    def __init__(
        self,
        config: R2RConfig,
        fit_config: FitConfig,
        protocol: str,
        folder: Path,
        result_path: Path,
        workers: Workers,
    ) -> None:
        self.config, self.fit_config, self.protocol = config, fit_config, protocol
        self.folder, self.result_path = folder, result_path
        self.state = folder / "state"
        self.workers = workers

    def to_the_end(self, identity: Mapping[str, Any], progress: Progress) -> None:
        names = tuple(dict.fromkeys((*self.fit_config.inputs, *BASELINE_INPUTS)))
        with self.workers.first_before_others():
            data = open_data(
                self.config, names, self.protocol, self.folder / "data", self.state / "features",
                progress,
            )  # fmt: skip
            pin_config(self.folder / "config.json", {**data.identity, **identity}, "a router")
        corpus = data.corpus(self.protocol)
        check_corpus(corpus, self.fit_config.inputs, self.fit_config.objective)
        for name, rows in (("calibration", data.calibration), ("test", data.test)):
            _check_part(rows, self.fit_config.objective, name)
        first = self.workers.first
        with contextlib.closing(open_trackers((), self.folder) if first else NoTracker()) as to:
            fitted = fit(corpus, self.fit_config, progress, checkpoint=self.state, tracker=to)
        if first:
            self._write(data, fitted)
            shutil.rmtree(self.state)

    def _write(self, data: R2RData, fitted: FitResult) -> None:
        optimizing = self.config.values["optimizing"]
        calibration = self._scored(fitted.router, data.calibration)
        test = self._scored(fitted.router, data.test)
        held = calibration.and_also(test)
        replayed = optimise(optimizing, held.scores_N, held.positive_N)
        lines = side_by_side(
            optimizing, held, calibration, test, self.config.min_recall, self.config.seed
        )
        notes = [*data.notes, *self._notes(replayed, data)]
        line = self._line(replayed, lines)
        self._save_router(data, fitted, line)
        self._result(replayed, test, line.threshold, fitted, lines, notes).write(self.result_path)
        content = {
            **self._report(data, fitted.router),
            "target_recall": self.config.min_recall,
            "protocol": self.protocol,
            "best_epoch": fitted.best_epoch,
            "history": [asdict(epoch) for epoch in fitted.history],
            "base_rates": data.card["base_rates"],
            "side_by_side": [line.values() for line in lines],
            "notes": notes,
            "provenance": provenance(seed=self.config.seed),
        }
        with contextlib.suppress(EngineError):  # the numbers are worth having without figures, too
            write_page(self.folder / PAGE, content)
        write_json(self.folder / REPORT, content)

    def _report(self, data: R2RData, router: NeuralRouter) -> dict[str, Any]:
        """Return the report that every training of ours has, by our protocol."""
        corpus = data.corpus("default")
        return training_report(
            scored([router, *baselines(corpus, self.config.seed)], corpus),
            {split: corpus.split(split) for split in Split},
            self.fit_config.objective,
            sorted({*RECALLS, self.config.min_recall}),
            self.config.seed,
            Target("recall", self.config.min_recall),
        ).to_json()

    def _scored(self, router: NeuralRouter, rows: Rows) -> Scored:
        positive_N = rows.positive(self.fit_config.objective)
        return Scored(score_rows(router, rows), positive_N, rows.problem_N)

    def _line(self, replayed: Optimised, lines: Sequence[Line]) -> Line:
        """Return the line of the protocol's threshold; an exact one where R2R's grid has none."""
        grid, exact, ours = lines
        if self.protocol == "default":
            return ours
        return grid if replayed.choice.met else exact

    def _notes(self, replayed: Optimised, data: R2RData) -> list[str]:
        notes = []
        if data.leaky is not None:
            notes.append(f"the held-out rows are not new to the router: {data.leaky}")
        if self.protocol == "r2r":
            notes.append(
                "the epoch was chosen on all held-out rows, so no line here is of untouched data"
            )
        if self.config.optimizing != "threshold":
            notes.append(
                f"optimizing.type is {self.config.optimizing}; the lines other than r2r's are for "
                f"{100 * self.config.min_recall:g} % recall"
            )
        if not replayed.choice.met:
            notes.append(
                "no threshold of R2R's grid has the recall; R2R would save the router with "
                f"{replayed.choice.threshold:g} all the same, this protocol's router has an exact "
                "threshold"
            )
        return notes

    def _save_router(
        self,
        data: R2RData,
        fitted: FitResult,
        line: Line,
    ) -> None:
        card = RouterCard(
            small=data.small,
            large_name=data.card["large"]["name"],
            large_fingerprint=data.card["large"]["fingerprint"],
            pair=data.card["pair"],
            threshold=line.threshold,
            calibration={
                "target_recall": self.config.min_recall,
                "objective": self.fit_config.objective,
                **line.values(),
                "protocol": self.protocol,
            },
            provenance=provenance(
                seed=self.config.seed,
                config=settings(self.fit_config),
                r2r_config=dict(self.config.values),
                judge=data.card["judges"],
            ),
        )
        save_router(self.folder, fitted.router, card)

    def _result(
        self,
        replayed: Optimised,
        test: Scored,
        threshold: float,
        fitted: FitResult,
        lines: Sequence[Line],
        notes: Sequence[str],
    ) -> R2RResult:
        """Return R2R's JSON: its own numbers by its protocol, those of the test rows by ours."""
        if self.protocol == "r2r":
            chosen, final, before = replayed.choice.threshold, replayed.final, replayed.before
        else:
            chosen = threshold
            final = metrics(test.scores_N, test.positive_N, threshold)
            before = metrics(test.scores_N, test.positive_N, START)
        return R2RResult.of(
            self.config.values,
            self.folder,
            chosen,
            fitted.best_epoch,
            fitted.history[fitted.best_epoch - 1].calibration_loss,
            final,
            before,
            {
                "protocol": self.protocol,
                "side_by_side": [line.values() for line in lines],
                "notes": list(notes),
                "seed": self.config.seed,
            },
        )


def _check_part(rows: Rows, objective: str, name: str) -> None:
    """Refuse a part of the held-out rows that nothing can be measured on.

    Raises:
        DataError: it lacks positives or negatives.
    """
    positive_N = rows.positive(objective)
    if not positive_N.any() or positive_N.all():
        raise DataError(
            f"the {name} part of the held-out data has {int(positive_N.sum())} {objective} "
            f"tokens of {len(rows)}; both kinds are needed, so give more data"
        )


def side_by_side_table(
    lines: Sequence[Mapping[str, Any]], notes: Sequence[str], objective: str
) -> Table:
    """Return both protocols' numbers of one router as a table, in percent, notes below it."""
    rows = [
        f"{line['protocol']}: chosen on {line['chosen_on']}, measured on {line['measured_on']} "
        f"({line['positives']} {objective} of {line['tokens']} tokens)"
        for line in lines
    ]
    table = Table(
        title=f"one router by R2R's protocol and by ours ({objective} tokens; [95 % intervals])",
        title_justify="left",
        caption="\n".join([*rows, *(f"note: {note}" for note in notes)]),
        caption_justify="left",
        box=SIMPLE,
    )
    table.add_column("protocol")
    for column in ("threshold", "recall %", "positive_rate %"):
        table.add_column(column, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(
            line["protocol"],
            f"{line['threshold']:.4f}",
            _percent(line["recall"], line["recall_interval"]),
            _percent(line["positive_rate"], line["positive_rate_interval"]),
        )
    return table


def _percent(value: float, interval: Mapping[str, float]) -> str:
    return f"{100 * value:.1f} [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"
