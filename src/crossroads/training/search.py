"""Hyper-parameter search: settings that send the fewest tokens at a recall, on calibration.

Trials are proposed by TPE (Bergstra et al. 2011) and pruned by the median rule, both of the package
optuna, whose journal in the folder any of its tools can read. Test is never touched.

Determinism: what a trial tries depends on the seed, on the number of trials finished before it and
on what came of them, and on nothing else; every epoch's number is on disk. So a search that was
killed, however often, goes through the same trials as one that was not (one machine, one thread
count, one version of optuna), with one exception: a time limit decides by the clock where it ends.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from crossroads.artifacts import (
    ResumableLog,
    canonical_hash,
    ensure_writable,
    exclusive,
    pin_config,
    write_json,
)
from crossroads.dataset import LabelledDataset
from crossroads.errors import ConfigError, CrossroadsError, EngineError
from crossroads.provenance import provenance
from crossroads.training.checks import check_corpus, empty_network
from crossroads.training.config import FitConfig, settings
from crossroads.training.fit import fit
from crossroads.training.grid import Within
from crossroads.training.rows import Corpus
from crossroads.training.search_space import SearchConfig, Space
from crossroads.types import Progress

STARTUP_TRIALS = 10
"""Trials at random before TPE begins; the first one is the recipe itself."""
PRUNE_AFTER_TRIALS, PRUNE_AFTER_EPOCHS = 5, 5
BEST, RESULT, JOURNAL = "best.json", "search.json", "journal.log"


class _OutOfTimeError(Exception):
    """The time limit was reached in the middle of a trial."""


def search(
    datasets: Sequence[LabelledDataset], folder: Path, config: SearchConfig, progress: Progress
) -> dict[str, Any]:
    """Search until `trials` trials are finished; write `search.json` and `best.json` to `folder`.

    Effects: one journal line per event; a killed search goes on with the trial it was in.

    Raises:
        ConfigError: other settings than the folder's search; another process is at work there; the
            time was too short for one trial.
        DataError: data that cannot be trained on. EngineError: optuna is not installed.
    """
    optuna = _import_optuna()
    ensure_writable(folder)
    space = Space.of(config)
    empty_network(space.base)
    corpus = Corpus.open(datasets, space.names(), folder / "features", progress)
    check_corpus(corpus, space.names(), space.base.objective)
    space = space.within(corpus)
    with exclusive(folder), _quiet(optuna):
        pin_config(folder / "search-config.json", _identity(corpus, space, config), "a search")
        run = _Search(optuna, corpus, space, folder, config, progress)
        run.to_the_end()
        best, result = run.best(), run.result()
    write_json(folder / BEST, settings(best))
    write_json(folder / RESULT, result)
    return result


def _identity(corpus: Corpus, space: Space, config: SearchConfig) -> dict[str, Any]:
    return {
        "corpus": dict(corpus.identity),
        "base": settings(config.base()),
        "space": space.words(),
        "seeds": config.seeds,
        "seed": config.seed,
    }


class _Search:
    """One search: its study, and what it fits."""

    def __init__(
        self,
        optuna: Any,
        corpus: Corpus,
        space: Space,
        folder: Path,
        config: SearchConfig,
        progress: Progress,
    ) -> None:
        self.optuna, self.corpus, self.space = optuna, corpus, space
        self.folder, self.config, self.progress = folder, config, progress
        self.deadline = (
            math.inf if config.minutes is None else time.monotonic() + 60 * config.minutes
        )
        self.study = self._open()
        # A kill leaves its trial running for ever; its place is taken by one that tries the same.
        for trial in self.study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            self.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)

    def _open(self) -> Any:
        path = self.folder / JOURNAL
        ResumableLog(path).mend()  # before more is written after it
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)  # a kill's; we are alone here
        journal = self.optuna.storages.journal
        storage = self.optuna.storages.JournalStorage(journal.JournalFileBackend(str(path)))
        pruner = self.optuna.pruners.MedianPruner(
            n_startup_trials=PRUNE_AFTER_TRIALS, n_warmup_steps=PRUNE_AFTER_EPOCHS
        )
        return self.optuna.create_study(
            study_name="crossroads", storage=storage, pruner=pruner, load_if_exists=True
        )

    def finished(self, *states: str) -> list[Any]:
        """Return the finished trials in their order: complete and pruned ones."""
        wanted = [self.optuna.trial.TrialState[s] for s in states or ("COMPLETE", "PRUNED")]
        found: list[Any] = self.study.get_trials(deepcopy=False, states=wanted)
        return found

    def to_the_end(self) -> None:
        total = self.config.trials
        self.progress.start(f"search over {self.config.recipe}", total, "trials")
        self.progress.advance(min(len(self.finished()), total))
        try:
            while len(self.finished()) < total and time.monotonic() < self.deadline:
                self._one(len(self.finished()))
                self.progress.advance()
            shutil.rmtree(self.folder / "state", ignore_errors=True)
        except _OutOfTimeError:
            pass  # its state stays on disk, and the next run goes on with it
        self.progress.finish()

    def _one(self, number: int) -> None:
        """Run the trial of that number to its end, however it ends."""
        trial = self._ask(number)
        config = self.space.config_of(trial.params)
        state = self.folder / "state" / canonical_hash(settings(config))[:16]
        try:
            rates, best_epoch = self._fits(trial, number, config, state)
        except self.optuna.TrialPruned:
            self.study.tell(trial, state=self.optuna.trial.TrialState.PRUNED)
        except CrossroadsError as error:  # such as scores that are no numbers at a wild rate
            trial.set_user_attr("error", str(error))
            self.study.tell(trial, state=self.optuna.trial.TrialState.PRUNED)
        else:
            trial.set_user_attr("best_epoch", best_epoch)
            trial.set_user_attr("rates", rates)
            self.study.tell(trial, float(np.mean(rates)))
        shutil.rmtree(state, ignore_errors=True)

    def _ask(self, number: int) -> Any:
        waiting = self.optuna.trial.TrialState.WAITING
        if number == 0 and not self.study.get_trials(deepcopy=False, states=(waiting,)):
            self.study.enqueue_trial(self.space.defaults())
        seed = np.random.SeedSequence([self.config.seed, number]).generate_state(1)[0]
        # The sampler's own random state is not in the journal: it is made anew for every trial.
        self.study.sampler = self.optuna.samplers.TPESampler(
            n_startup_trials=STARTUP_TRIALS, seed=int(seed), constant_liar=False
        )
        return self.study.ask(
            {k: p.distribution(self.optuna) for k, p in self.space.parameters.items()}
        )

    def _fits(
        self, trial: Any, number: int, config: FitConfig, state: Path
    ) -> tuple[list[float], int]:
        """Return positive_rate of each seed's best epoch, and the first seed's best epoch."""
        quiet = Within(self.progress, f"trial {number + 1}{self._best_words()}")
        rates, best_epoch = [], 0
        for nth in range(self.config.seeds):
            one = dataclasses.replace(config, seed=config.seed + nth)
            tracker = _Reporter(self, trial if nth == 0 else None, state / f"epochs-{nth}.jsonl")
            result = fit(self.corpus, one, quiet, checkpoint=state / f"seed-{nth}", tracker=tracker)
            rates.append(result.history[result.best_epoch - 1].positive_rate)
            best_epoch = best_epoch or result.best_epoch
        return rates, best_epoch

    def _best_words(self) -> str:
        done = self.finished("COMPLETE")
        return f", best {100 * min(t.value for t in done):.1f} %" if done else ""

    def check_time(self) -> None:
        """Stop a trial between two epochs when the time is up."""
        if time.monotonic() > self.deadline:
            raise _OutOfTimeError

    def _ranked(self) -> list[tuple[int, Any]]:
        numbered = [(n, t) for n, t in enumerate(self.finished()) if t.state.name == "COMPLETE"]
        return sorted(numbered, key=lambda pair: (pair[1].value, pair[0]))

    def best(self) -> FitConfig:
        """Return the best trial's config.

        Raises:
            ConfigError: no trial was completed; says why.
        """
        ranked = self._ranked()
        if not ranked:
            errors = [t.user_attrs["error"] for t in self.finished() if "error" in t.user_attrs]
            why = errors[-1] if errors else "give more time, the same command goes on"
            raise ConfigError(f"no trial of the search came to its end: {why}")
        return self.space.config_of(ranked[0][1].params)

    def result(self) -> dict[str, Any]:
        """Return what `search.json` holds."""
        base, states = self.config.base(), [trial.state.name.lower() for trial in self.finished()]
        return {
            "recipe": self.config.recipe,
            "objective": base.objective,
            "target_recall": base.target_recall,
            "seeds": self.config.seeds,
            "asked": self.config.trials,
            "states": {state: states.count(state) for state in sorted(set(states))},
            "space": self.space.words(),
            "best_trials": [
                {
                    "number": number,
                    "positive_rate": trial.value,
                    "rates": trial.user_attrs["rates"],
                    "best_epoch": trial.user_attrs["best_epoch"],
                    "settings": trial.params,
                }
                for number, trial in self._ranked()
            ],
            "errors": [t.user_attrs["error"] for t in self.finished() if "error" in t.user_attrs],
            "optuna": self.optuna.__version__,
            "provenance": provenance(config=asdict(self.config)),
        }


class _Reporter:
    """Tells the study of every epoch, once; after a kill it tells the old epochs again.

    The study's pruner needs them all, and a resumed fit comes back with the missing ones only.
    """

    def __init__(self, search: _Search, trial: Any, path: Path) -> None:
        self._search, self._trial = search, trial
        self._log = ResumableLog(path)
        self._epochs: set[int] = set()
        for record in self._log:
            self._tell(record["epoch"], record["positive_rate"])

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Write the epoch down, report it, and stop a trial that is not worth its time."""
        if epoch not in self._epochs:
            rate = values["positive_rate"]
            self._log.append({"epoch": epoch, "positive_rate": rate})
            self._tell(epoch, rate)
        self._search.check_time()

    def _tell(self, epoch: int, rate: float) -> None:
        self._epochs.add(epoch)
        if self._trial is None:
            return
        self._trial.report(rate, epoch - 1)
        if self._trial.should_prune():
            raise self._search.optuna.TrialPruned

    def close(self) -> None:
        """Do nothing: every epoch is on disk."""


def _import_optuna() -> Any:
    try:
        import optuna  # noqa: PLC0415  optional, and it takes a second
    except ImportError as error:
        raise EngineError(
            'the search needs the package optuna; `pip install "crossroads-lm[search]"`'
        ) from error
    return optuna


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Keep optuna's log lines out of ours."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
