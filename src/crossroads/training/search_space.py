"""Which settings a search may try, by recipe."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from crossroads.errors import ConfigError
from crossroads.routing.routers.neural import config_values
from crossroads.training.ablate import parse_inputs
from crossroads.training.checks import empty_network
from crossroads.training.config import FitConfig, read_settings, settings
from crossroads.training.losses import LossConfig
from crossroads.training.recipes import recipe
from crossroads.training.rows import Corpus
from crossroads.types import Label, Split


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """What is searched. changes: fields of FitConfig that are fixed, and so left out of the space.

    seeds: fits per trial, whose mean counts; the first alone is pruned. minutes: no new epoch
    begins after that long; the same command goes on.
    """

    recipe: str = "default"
    trials: int = 50
    seeds: int = 1
    seed: int = 0
    minutes: float | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a search of nothing.

        Raises:
            ConfigError: names the field.
        """
        for name in ("trials", "seeds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"a search needs {name} >= 1, got {getattr(self, name)}")
        if self.minutes is not None and not self.minutes > 0:
            raise ConfigError(f"the time limit must be > 0 minutes, got {self.minutes}")
        if "seed" in self.changes:
            raise ConfigError("set the seed by its own option, not by --set")

    def base(self) -> FitConfig:
        """Return the recipe's config with the changes."""
        return recipe(self.recipe, **self.changes, seed=self.seed)


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers between two ends, both included; `log` spreads them evenly in the logarithm."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __str__(self) -> str:
        """Return the range for people."""
        return f"{self.low:g} to {self.high:g}{', log' if self.log else ''}"

    def holds(self, value: Any) -> bool:
        """Whether a value is inside."""
        return isinstance(value, int | float) and self.low <= value <= self.high

    def distribution(self, optuna: Any) -> Any:
        """Return the range as optuna has it."""
        if self.whole:
            whole = optuna.distributions.IntDistribution
            return whole(int(self.low), int(self.high), log=self.log)
        return optuna.distributions.FloatDistribution(self.low, self.high, log=self.log)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few values."""

    options: tuple[Any, ...]

    def __str__(self) -> str:
        """Return the options for people."""
        return ", ".join(map(str, self.options))

    def holds(self, value: Any) -> bool:
        """Whether a value is an option."""
        return value in self.options

    def distribution(self, optuna: Any) -> Any:
        """Return the choice as optuna has it."""
        return optuna.distributions.CategoricalDistribution(self.options)


NAMED: Mapping[str, Mapping[str, Any]] = {
    "loss": {
        "bce": LossConfig(),
        "positives x 3": LossConfig("bce", {"positive_weight": 3.0}),
        "balanced": LossConfig("BCEWithLogitsLoss", {"recall_factor": 1.0}),
        "focal": LossConfig("FocalLoss", {"alpha": 0.5}),
        "ranking": LossConfig("ranking"),
        "high recall": LossConfig("high_recall"),
    },
    "network.hidden_dims": {
        "64 x 2": (64,) * 2,
        "256 x 3": (256,) * 3,
        "1024 x 6": (1024,) * 6,
    },
}
"""Settings that are no plain values, and the names of theirs in a space."""
RECIPE = "recipe"
"""The name of the recipe's own value, in a choice of names."""

_COMMON: Mapping[str, Range | Choice] = {
    "loss": Choice((RECIPE, *NAMED["loss"])),
    "soft_labels": Choice((False, True)),
    "schedule": Choice(("onecycle", "constant")),
    "average": Choice((0.0, 0.9, 0.99, 0.999)),
}
SPACES: Mapping[str, Mapping[str, Range | Choice]] = {
    "default": {
        "inputs": Choice(
            (
                RECIPE,
                "distribution",
                "scalars+history",
                "distribution+scalars",
                "distribution+scalars+history",
                "distribution+scalars+hidden",
                "distribution+scalars+history+hidden",
                "everything",
            )
        ),
        "learning_rate": Range(1e-4, 1e-2, log=True),
        "weight_decay": Range(1e-3, 1.0, log=True),
        "batch_size": Choice((64, 128, 256, 512, 1024)),
        "auxiliary": Choice((0.0, 0.3, 1.0, 3.0)),
        "network.projection": Choice((8, 16, 32, 64)),
        "network.width": Choice((32, 64, 128, 256)),
        "network.depth": Range(1, 4, whole=True),
        "network.dropout": Range(0.0, 0.7),
        "network.members": Choice((1, 2, 4)),
        **_COMMON,
    },
    "r2r": {
        "learning_rate": Range(1e-6, 3e-3, log=True),
        "weight_decay": Range(1e-5, 1.0, log=True),
        "batch_size": Choice((128, 256, 512, 1024, 2048)),
        "network.hidden_dims": Choice((RECIPE, *NAMED["network.hidden_dims"])),
        "network.dropout_rate": Range(0.0, 0.7),
        "network.normalize_input": Choice((False, True)),
        "normalise": Choice((False, True)),
        "selection": Choice(("loss", "positive_rate")),
        **_COMMON,
    },
}
"""What varies, by the recipe's name: a field of FitConfig (dots reach into it) and its values.

Epochs do not vary: trials of other lengths cannot be told apart early. Another recipe has the
space of `default`.
"""


@dataclass(frozen=True, slots=True)
class Space:
    """A recipe's space around a config; what was fixed by hand is not in it."""

    recipe: str
    base: FitConfig
    parameters: Mapping[str, Range | Choice]

    @classmethod
    def of(cls, config: SearchConfig) -> Space:
        """Return the space of a search."""
        fixed = [k for k in config.changes if k not in ("network", "loss")]
        fixed += [f"network.{name}" for name in config.changes.get("network", ())]
        fixed += ["loss"] if "loss" in config.changes else []
        every = SPACES.get(config.recipe, SPACES["default"])
        varied = {k: v for k, v in every.items() if k not in fixed}
        return cls(config.recipe, config.base(), varied)

    def within(self, corpus: Corpus) -> Space:
        """Return the space without what the data cannot give: soft labels, an auxiliary aim."""
        train = corpus.split(Split.TRAIN)
        judged_N = train.label_N != Label.IDENTICAL
        known = {
            "soft_labels": bool(np.isfinite(train.probability_N[judged_N]).any()),
            "auxiliary": bool(np.isfinite(train.large_probability_N).any()),
        }
        kept = {k: v for k, v in self.parameters.items() if known.get(k, True)}
        return dataclasses.replace(self, parameters=kept)

    def names(self) -> tuple[str, ...]:
        """Return every input that some trial may read."""
        inputs = self.parameters.get("inputs")
        labels = inputs.options if isinstance(inputs, Choice) else ()
        sets = [self.base.inputs, *(parse_inputs(label, self.recipe) for label in labels)]
        return tuple(dict.fromkeys(name for names in sets for name in names))

    def config_of(self, params: Mapping[str, Any]) -> FitConfig:
        """Return the config of a trial."""
        values = copy.deepcopy(settings(self.base))
        for key, value in params.items():
            if value == RECIPE and isinstance(value, str):
                continue
            *path, last = key.split(".")
            here = values
            for part in path:
                here = here[part]
            here[last] = self._meant(key, value)
        return read_settings(values)

    def _meant(self, key: str, value: Any) -> Any:
        """Return the setting that a value in the space stands for."""
        if key == "inputs":
            return parse_inputs(value, self.recipe)
        found = NAMED[key][value] if key in NAMED else value
        return asdict(found) if isinstance(found, LossConfig) else found

    def defaults(self) -> dict[str, Any]:
        """Return the recipe's own place in the space; what lies outside of it is left to chance."""
        values = settings(self.base)
        values["network"] = config_values(empty_network(self.base))
        found: dict[str, Any] = {}
        for key, parameter in self.parameters.items():
            here: Any = values
            for part in key.split("."):
                here = here.get(part) if isinstance(here, Mapping) else None
            named = isinstance(parameter, Choice) and RECIPE in parameter.options
            if named or parameter.holds(here):
                found[key] = RECIPE if named else here
        return found

    def words(self) -> dict[str, str]:
        """Return the space for people: setting and values."""
        return {key: str(parameter) for key, parameter in self.parameters.items()}
