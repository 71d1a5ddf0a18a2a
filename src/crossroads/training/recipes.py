"""Named ways to train a router; docs/results says what each is worth."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossroads.artifacts import read_json
from crossroads.errors import ConfigError, CrossroadsError
from crossroads.names import nearest
from crossroads.training.config import FitConfig, read_settings, settings
from crossroads.training.losses import LossConfig

RECIPES: Mapping[str, FitConfig] = {
    "default": FitConfig(
        inputs=("entropy", "margin", "proposed_logprob", "logsumexp", "top_logprobs", "hidden"),
        network={"width": 128, "dropout": 0.5},
        epochs=10,
        auxiliary=1.0,
    ),
    "distribution": FitConfig(),
    # R2R's default_training_config.json: raw inputs, one learning rate, its own selection.
    "r2r": FitConfig(
        inputs=("hidden", "token_embedding", "top_logits"),
        architecture="r2r",
        epochs=50,
        batch_size=1024,
        learning_rate=5e-5,
        weight_decay=5e-4,
        schedule="constant",
        loss=LossConfig("BCEWithLogitsLoss", {"recall_factor": 1.0}),
        average=0.0,
        clip=None,
        normalise=False,
        selection="loss",
        patience=10,
        probabilities=False,
    ),
}
_DOES = {
    "default": "our own: distribution and hidden state, with the auxiliary aim of ADR 11",
    "distribution": "the distribution alone",
    "r2r": "R2R's default: hidden state, token, logits; 56 M numbers at its size",
}


def recipe(name: str, **changes: Any) -> FitConfig:
    """Return a recipe's config with some fields changed.

    Raises:
        ConfigError: unknown recipe or field, or a value out of range.
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}; {nearest(name, RECIPES)}")
    fields = [field.name for field in dataclasses.fields(FitConfig)]
    for key in changes:
        if key not in fields:
            raise ConfigError(f"unknown training setting {key!r}; {nearest(key, fields)}")
    values = settings(RECIPES[name])
    try:
        return read_settings({**values, **_merged(values, changes)})
    except TypeError as error:
        raise ConfigError(f"a training setting has a value of the wrong kind: {error}") from error


def read_recipe(path: Path, **changes: Any) -> FitConfig:
    """Return the config in a JSON file, as `crossroads search` writes it, with changes.

    Raises:
        ConfigError: the file does not hold a config.
    """
    values = read_json(path, "recipe")
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not a recipe: a JSON object of training settings is needed")
    try:
        return recipe("default", **{**values, **changes})
    except CrossroadsError as error:
        raise ConfigError(f"{path}: {error}") from error


def recipe_help() -> str:
    """Return one line per recipe."""
    return "; ".join(f"{name}: {does}" for name, does in _DOES.items())


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes; a change of `network` or `loss` keeps what it does not name."""
    merged = dict(changes)
    if isinstance(changes.get("network"), Mapping):
        merged["network"] = {**values["network"], **changes["network"]}
    if isinstance(changes.get("loss"), str):
        merged["loss"] = {"name": changes["loss"], "settings": {}}
    return merged
