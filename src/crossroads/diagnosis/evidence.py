"""Everything that is at hand for one diagnosis; whatever is not, is None."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from crossroads.diagnosis.gauge import Gauge
from crossroads.diagnosis.live import Live
from crossroads.diagnosis.network import Retrainer
from crossroads.diagnosis.reference import Reference
from crossroads.diagnosis.repeats import Repeats, find_repeats
from crossroads.diagnosis.result import Result
from crossroads.diagnosis.run import Run
from crossroads.diagnosis.tokens import Data, Tokens
from crossroads.diagnosis.verdict import Estimate
from crossroads.diagnosis.wide import Wide, wide_sample
from crossroads.errors import ConfigError, RouterError
from crossroads.statistics import Interval

DEFAULT_RECALL = 0.95


@dataclass(frozen=True, slots=True)
class Options:
    """How a diagnosis works. quick: nothing is trained. seeds: trainings for the seeds' spread."""

    quick: bool = False
    seeds: int = 3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Subject:
    """The number that is to be explained: a positive_rate at a recall, and over what."""

    name: str
    rate: Estimate
    recall: float
    rows: str


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of every position of the data, and of what."""

    name: str
    score_N: np.ndarray
    trained: bool


class Evidence:
    """What there is to judge by. Costly parts are made when a cause first asks for them."""

    def __init__(
        self,
        *,
        reference: Reference | None = None,
        run: Run | None = None,
        result: Result | None = None,
        data: Data | None = None,
        live: Live | None = None,
        options: Options = Options(),
    ) -> None:
        """Take what is at hand.

        Raises:
            ConfigError: nothing is. RouterError: the run's router is of another small model than
                the data.
        """
        if run is None and result is None and data is None:
            raise ConfigError(
                "nothing to diagnose: give a router folder, a labelled dataset (--data) or an R2R "
                "result (--result)"
            )
        self.reference, self.run, self.result = reference, run, result
        self.data, self.live, self.options = data, live, options
        if run is not None and data is not None and run.loaded.card.small != data.small:
            raise RouterError(
                f"the router in {run.folder} was trained on outputs of {run.loaded.card.small}, "
                f"the data holds those of {data.small}; give the data of that model"
            )

    @property
    def recall(self) -> float:
        """The recall at which everything is compared."""
        if self.reference is not None:
            return self.reference.recall
        if self.result is not None and self.result.final.recall:
            return self.result.final.recall
        target = self.run.settings.get("target_recall") if self.run is not None else None
        return float(target) if target else DEFAULT_RECALL

    @property
    def objective(self) -> str:
        """The positive class: of the run, of the result's config, else divergent."""
        if self.run is not None and self.run.objective:
            return self.run.objective
        return "divergent" if self.result is None else self.result.objective

    @property
    def tokens(self) -> Tokens | None:
        """The labelled positions."""
        return None if self.data is None else self.data.tokens

    @cached_property
    def trainer(self) -> Retrainer | None:
        """What trains variants; None without data, or when nothing may be trained."""
        if self.data is None or self.options.quick:
            return None
        settings = {} if self.run is None else self.run.settings
        return Retrainer(self.data, self.objective, self.recall, settings, self.options.seed)

    @cached_property
    def wide(self) -> Wide | None:
        """Hidden states and distributions of a sample."""
        return None if self.data is None else wide_sample(self.data)

    @cached_property
    def repeats(self) -> Repeats | None:
        """What is in the data twice."""
        return None if self.data is None else find_repeats(self.data.tokens)

    @cached_property
    def scored(self) -> Scored | None:
        """The scores that points are measured in; None without data.

        Those of the run's router; without a run those of a network trained here; entropy if nothing
        may be trained.
        """
        if self.data is None:
            return None
        if self.run is not None:
            router = self.run.loaded.router
            return Scored(f"the run's {router.name}", self.data.score(router), trained=True)
        score_N = None if self.trainer is None else self.trainer.scores()
        if score_N is not None:
            return Scored("a network trained here", score_N, trained=True)
        return Scored("entropy", self.data.tokens.entropy_N, trained=False)

    @cached_property
    def gauge(self) -> Gauge | None:
        """The ranking that points are measured in; None without data or without positives.

        A network ranks the positions that it was not trained on, entropy all of them.
        """
        if self.scored is None or self.data is None:
            return None
        tokens = self.data.tokens
        return self.ranks(tokens.held_out_N if self.scored.trained else tokens.judged_N)

    def ranks(self, rows_N: np.ndarray) -> Gauge | None:
        """Return the same scores over other rows; None if none of these is positive."""
        if self.scored is None or self.data is None:
            return None
        tokens = self.data.tokens
        positive_n = tokens.positive(self.objective)[rows_N]
        if not positive_n.any():
            return None
        return Gauge(
            self.scored.name,
            rows_N,
            self.scored.score_N[rows_N],
            positive_n,
            tokens.problem_N[rows_N],
            self.recall,
            self.scored.trained,
        )

    @cached_property
    def entropy(self) -> Gauge | None:
        """Entropy's ranking of the gauge's rows."""
        if self.gauge is None or self.tokens is None:
            return None
        return self.gauge.with_scores("entropy", self.tokens.entropy_N, trained=False)

    @cached_property
    def subject(self) -> Subject | None:
        """The number to explain: the result's, else the run's, else the gauge's."""
        if self.result is not None:
            recall = self.result.final.recall
            rate = Estimate(self.result.positive_rate)
            return Subject("the result", rate, recall or self.recall, self.result.source)
        if self.gauge is not None:
            rows = "calibration and test" if self.gauge.trained else "all judged"
            return Subject(self.gauge.name, self.gauge.rate, self.recall, f"{rows} positions")
        return self._reported()

    def _reported(self) -> Subject | None:
        row = None if self.run is None else self.run.reported(self.recall)
        if row is None:
            return None
        # At the test split's own threshold of that recall, so that two rates compare.
        own = row["same_recall"]
        rate = Estimate(own["value"], Interval(**own["interval"]))
        return Subject("the run's report", rate, self.recall, "its test split")

    @property
    def gap(self) -> Estimate | None:
        """The subject's positive_rate less the reference's; None without both."""
        if self.subject is None or self.reference is None:
            return None
        rate, other = self.subject.rate, self.reference.positive_rate
        interval = rate.interval
        moved = None if interval is None else Interval(interval.low - other, interval.high - other)
        return Estimate(rate.value - other, moved, rate.error)
