"""Networks that a diagnosis trains on the data at hand, to see what changes the number.

The only place of the diagnosis that knows how training is called. Shapes: N positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from crossroads.diagnosis.tokens import Data
from crossroads.errors import CrossroadsError
from crossroads.training.config import FitConfig, names_of, read_settings
from crossroads.training.fit import fit
from crossroads.training.recipes import recipe
from crossroads.training.rows import Corpus
from crossroads.types import Split

WIDE = ("hidden", "top_logprobs")
"""Inputs of unlike sizes, for the question what scaling is worth."""
_MOST_PARAMETERS = 2_000_000
_MOST_WORK = 2e12
"""Parameters times rows times epochs; beyond it the run's own recipe is not repeated."""
_MOST_POSITIONS = 300_000
"""Positions of which features are made and networks trained; whole problems beyond are left out."""


class Retrainer:
    """Trains variants of one recipe on the train split, and scores every position with them.

    The recipe is the run's own where it is small enough to be repeated here (`as_run`), otherwise
    our default one. A variant is trained once.
    """

    def __init__(
        self, data: Data, objective: str, recall: float, settings: Mapping[str, Any], seed: int
    ) -> None:
        """Take the data and the settings of the run, empty where there is none."""
        self.data = data
        self.problem: str | None = None
        """Why training is impossible, once it was tried."""
        probe = recipe("default", objective=objective, target_recall=recall, seed=seed)
        own = _readable(settings)
        self.as_run = own is not None and self._affordable(own)
        self.config = replace(own, device="cpu") if own is not None and self.as_run else probe
        self._part = Data(data.datasets, most_positions=_MOST_POSITIONS)
        self._scores: dict[str, np.ndarray] = {}

    def _affordable(self, config: FitConfig) -> bool:
        rows = int(self.data.tokens.in_split(Split.TRAIN).sum())
        parameters = _parameters(config, self.data.small.hidden_size)
        return parameters <= _MOST_PARAMETERS and parameters * rows * config.epochs <= _MOST_WORK

    @property
    def left_out(self) -> int:
        """Responses that are not trained on although the data have them."""
        return self._part.left_out

    @property
    def recipe(self) -> str:
        """What is trained, for running text."""
        if self.as_run:
            return "the run's own recipe"
        return "our default recipe"

    @cached_property
    def _corpus(self) -> Corpus:
        names = names_of([self.config, replace(self.config, inputs=WIDE)])
        return Corpus.open(self._part.datasets, names, progress=self.data.progress)

    def scores(self, **changes: Any) -> np.ndarray | None:
        """Return the scores of every position [N] by the recipe with changes; None if impossible.

        Changes are fields of FitConfig; `problem` says why nothing came.
        """
        config = replace(self.config, **changes)
        key = repr(config)
        if key not in self._scores and self.problem is None:
            try:
                router = fit(self._corpus, config, self.data.progress).router
                self._scores[key] = self.data.score(router)
            except CrossroadsError as error:
                self.problem = str(error)
        return self._scores.get(key)


def _readable(settings: Mapping[str, Any]) -> FitConfig | None:
    """Return a run's config; None without one, or if another version wrote it."""
    known = {field.name for field in fields(FitConfig)}  # a replay of R2R's adds its protocol
    try:
        return read_settings({key: settings[key] for key in settings if key in known})
    except (CrossroadsError, KeyError, TypeError):
        return None


def _parameters(config: FitConfig, hidden_size: int) -> int:
    from crossroads.routing.routers.neural import build_network  # noqa: PLC0415  builds on demand

    network = build_network(config.architecture, config.network_values(hidden_size))
    return sum(parameter.numel() for parameter in network.parameters())
