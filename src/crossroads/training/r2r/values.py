"""Values of R2R's config that need more than a type: changes, data paths, steps, notes."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from crossroads.errors import ConfigError
from crossroads.names import nearest
from crossroads.routing.routers.r2r import COMMON_ARGUMENTS, find_type
from crossroads.training.config import check_device
from crossroads.training.r2r.schema import known_key

LABELS = ("divergent", "mismatch")
LOSS_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "BCEWithLogitsLoss": ("recall_factor",),
    "FocalLoss": ("alpha", "gamma"),
    "DPOLoss": ("beta",),
}
"""What each loss reads of `training.loss`; R2R fails without it."""
_SET_DEVICE = "--set training.params.device=cpu"


def changed(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the values with `a.b.c=value` changes in them.

    Raises:
        ConfigError: no `=`, an unknown path, or one through something that is no object.
    """
    result = copy.deepcopy(dict(values))
    for text in overrides:
        path, equals, value = text.partition("=")
        path = path.strip()
        if not equals or not path:
            raise ConfigError(f"--set {text!r} is not KEY=VALUE")
        known_key(path)
        *parents, last = path.split(".")
        here: Any = result
        for part in parents:
            here = here.setdefault(part, {})
            if not isinstance(here, dict):
                raise ConfigError(f"--set {path}: {part} is not an object in the config")
        here[last] = _parsed(value)
    return result


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def check_device_of(values: Mapping[str, Any]) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        ConfigError: says so, and what to set.
    """
    device = values["training"]["params"]["device"]
    try:
        check_device(device)
    except ConfigError as error:
        raise ConfigError(f"training.params.device: {error}; {_SET_DEVICE}") from error


def check_path(text: str, where: str) -> Mapping[str, str]:
    """Return a data path's parts: `local` with its folder, or what `hf_datasets` was given.

    Raises:
        ConfigError: neither.
    """
    kind, colon, rest = text.partition(":")
    if colon and kind == "local" and rest:
        return {"local": rest}
    if colon and kind == "hf_datasets":
        parts = dict(_pair(pair, text, where) for pair in rest.split(",") if pair)
        missing = [key for key in ("path", "split") if not parts.get(key)]
        if missing:
            raise ConfigError(f"{where}: {text!r} has no {missing[0]}=")
        return parts
    raise ConfigError(
        f"{where}: {text!r} is neither local:FOLDER nor hf_datasets:path=NAME,split=SPLIT"
    )


def _pair(pair: str, text: str, where: str) -> tuple[str, str]:
    key, equals, value = pair.partition("=")
    if not equals:
        raise ConfigError(f"{where}: {pair!r} in {text!r} is not key=value")
    return key.strip(), value.strip()


def check_process(step: Mapping[str, Any], where: str) -> None:
    """Refuse a `process` step that cannot be done.

    Raises:
        ConfigError: says why.
    """
    if step["type"] == "similarity_to_divergent":
        raise ConfigError(
            f"{where}: R2R's script ends in an error after similarity_to_divergent; write the "
            "column `divergent` into the data"
        )
    if step["type"] != "mismatch_divergent_to_type":
        raise ConfigError(f"{where}: unknown type {step['type']!r}; known: {_PROCESSES}")


_PROCESSES = "mismatch_divergent_to_type"
_FILTERS: Mapping[str, tuple[str, ...]] = {
    "is_mismatch": (),
    "has_divergent": (),
    "downsample_match_data": ("align",),
    "filter_data_id_critical": ("max_critical_ratio", "min_samples_per_data_id"),
}


def check_filter(step: Mapping[str, Any], where: str) -> None:
    """Refuse a `filter` step that cannot be done.

    Raises:
        ConfigError: an unknown type or setting, or a setting of the wrong kind.
    """
    kind = step["type"]
    if kind not in _FILTERS:
        raise ConfigError(f"{where}: unknown type {kind!r}; {nearest(str(kind), _FILTERS)}")
    for key in step:
        if key not in {"type", *_FILTERS[kind]}:
            raise ConfigError(f"{where}.{key}: unknown; {nearest(key, _FILTERS[kind])}")
    for key in _FILTERS[kind]:
        value = step.get(key)
        if key == "align" and value not in LABELS:
            raise ConfigError(f"{where}.align must be mismatch or divergent, got {value!r}")
        if key != "align" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ConfigError(f"{where}.{key} must be a number, got {value!r}")


def value_notes(values: Mapping[str, Any]) -> list[str]:
    """Return what should be said of values that are allowed and may surprise."""
    notes = []
    name, kind = find_type(values["model"]["model_type"])
    for key in values["model"]["init_args"]:
        if key not in {*COMMON_ARGUMENTS, *kind.takes, "dtype"}:
            notes.append(f"model.init_args.{key}: R2R's {name} does not take it and would fail")
    loss = values["training"]["loss"]
    for key in ("recall_factor", "alpha", "gamma", "beta"):
        if key in loss and key not in LOSS_SETTINGS.get(loss["type"], (key,)):
            notes.append(f"training.loss.{key}: {loss['type']} does not read it")
    if loss["type"] == "FocalLoss" and loss.get("alpha") == 1:
        notes.append("training.loss.alpha: with 1 negatives weigh nothing in R2R's FocalLoss")
    kind_of = values["optimizing"]["type"]
    for key, read_by in (("min_recall", "threshold"), ("metric", "objective")):
        if key in values["optimizing"] and kind_of != read_by:
            notes.append(f"optimizing.{key}: R2R reads it with type {read_by} only")
    test = values["data"]["test"]
    if test.get("split_test_from_train") and "path" in test:
        notes.append("data.test.path: not read, since split_test_from_train is true")
    for role in ("train", "test"):
        if values["data"][role].get("process"):
            notes.append(
                f"data.{role}.process: mismatch_divergent_to_type adds a column for several "
                "classes, which a binary router does not read"
            )
    return notes
