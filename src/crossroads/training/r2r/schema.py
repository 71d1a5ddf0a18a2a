"""The keys of R2R's training config: which there are, what they hold, and which it never reads."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from crossroads.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Key:
    """One key. kind: of KINDS. required: R2R fails without it. null: it may be null.

    note: what is said when it is given, for keys that R2R reads nowhere and for those that do
    something else than they seem to.
    """

    kind: str
    required: bool = False
    null: bool = False
    note: str = ""


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _all(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and bool(value) and all(map(check, value))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


KINDS: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    "text": ("a text", _is_text),
    "texts": ("a text or a list of texts", lambda v: _is_text(v) or _all(_is_text)(v)),
    "whole": ("a whole number >= 1", lambda v: _is_whole(v) and v >= 1),  # type: ignore[operator]
    "seed": ("a whole number >= 0", lambda v: _is_whole(v) and v >= 0),  # type: ignore[operator]
    "wholes": (
        "a list of whole numbers >= 1",
        _all(lambda v: _is_whole(v) and v >= 1),  # type: ignore[operator]
    ),
    "positive": ("a number > 0", lambda v: _is_number(v) and v > 0),  # type: ignore[operator]
    "not negative": ("a number >= 0", lambda v: _is_number(v) and v >= 0),  # type: ignore[operator]
    "share": ("a number in [0, 1)", lambda v: _is_number(v) and 0 <= v < 1),  # type: ignore[operator]
    "recall": ("a number in (0, 1]", lambda v: _is_number(v) and 0 < v <= 1),  # type: ignore[operator]
    "weight": ("a number in [0, 1]", lambda v: _is_number(v) and 0 <= v <= 1),  # type: ignore[operator]
    "boolean": ("true or false", lambda v: isinstance(v, bool)),
    "object": ("an object", lambda v: isinstance(v, dict)),
    "steps": (
        "a list of objects with a `type`",
        lambda v: isinstance(v, list) and all(isinstance(s, dict) and "type" in s for s in v),
    ),
    "anything": ("anything", lambda _: True),
}

_UNREAD = "R2R's training reads it nowhere"
_NOT_USED = "it is not used here"


def _data(role: str) -> dict[str, Key]:
    label = Key("text")
    if role == "test":
        label = Key("text", note=f"{_UNREAD}; data.train.label_column holds for both")
    return {
        f"data.{role}": Key("object", required=True),
        f"data.{role}.path": Key("texts"),
        f"data.{role}.type": Key(
            "text", note=f"{_UNREAD}; the label is data.train.label_column, divergent by default"
        ),
        f"data.{role}.input_prefix": Key("text"),
        f"data.{role}.label_column": label,
        f"data.{role}.process": Key("steps"),
        f"data.{role}.filter": Key("steps"),
    }


SCHEMA: Mapping[str, Key] = {
    "model": Key("object", required=True),
    "model.model_type": Key("text", required=True),
    "model.init_args": Key("object", required=True),
    "model.init_args.hidden_states_size": Key("whole"),
    "model.init_args.logits_size": Key("whole"),
    "model.init_args.hidden_dims": Key("wholes"),
    "model.init_args.expansion_factor": Key("whole"),
    "model.init_args.dropout_rate": Key("share"),
    "model.init_args.use_position_embedding": Key("boolean"),
    "model.init_args.max_position_embeddings": Key("whole"),
    "model.init_args.freeze_lm_head": Key("boolean"),
    "model.init_args.normalize_input": Key("boolean"),
    "model.init_args.pretrained_model_name": Key("text"),
    "model.init_args.output_dim": Key("whole"),
    "model.init_args.neural_window_size": Key("whole"),
    "model.init_args.topk": Key(
        "whole", null=True, note="R2R's network stores it and reads it not"
    ),
    "model.init_args.dtype": Key(
        "text", note="R2R's networks no longer take it (they fail on it) and are float32"
    ),
    "model.model_specific_args": Key("object", note=_UNREAD),
    "model.input_type": Key("texts"),
    "model.output_type": Key("text"),
    "data": Key("object", required=True),
    **_data("train"),
    **_data("test"),
    "data.test.split_test_from_train": Key("boolean"),
    "data.test.test_size": Key("share"),
    "data.test.random_seed": Key("seed"),
    "training": Key("object", required=True),
    "training.optimizer": Key("object", required=True),
    "training.optimizer.lr": Key("positive", required=True),
    "training.optimizer.weight_decay": Key("not negative", required=True),
    "training.params": Key("object", required=True),
    "training.params.num_epochs": Key("whole", required=True),
    "training.params.batch_size": Key("whole", required=True),
    "training.params.patience": Key("seed", required=True),
    "training.params.device": Key("text", required=True),
    "training.params.valid_freq": Key(
        "whole",
        note="in R2R it sets how often a glance at the test data is printed, and above 1 leaves "
        "dropout off for the rest of each epoch after the first glance; neither is done here",
    ),
    "training.params.checkpoint_dir": Key("text", note=_UNREAD),
    "training.loss": Key("object", required=True),
    "training.loss.type": Key("text", required=True),
    "training.loss.recall_factor": Key("positive", null=True),
    "training.loss.alpha": Key("weight"),
    "training.loss.gamma": Key("not negative"),
    "training.loss.beta": Key("positive"),
    "training.loss.label_column": Key("text"),
    "training.validation": Key(
        "object", note=f"{_UNREAD}; it reads training.params.valid_freq, and only to print"
    ),
    "training.validation.valid_freq": Key("whole"),
    "training.dtype": Key("text", note=f"{_UNREAD}, and trains in float32; see crossroads.dtype"),
    "optimizing": Key("object", required=True),
    "optimizing.type": Key("text", required=True),
    "optimizing.min_recall": Key("recall"),
    "optimizing.metric": Key("text"),
    "output": Key("object", required=True),
    "output.output_dir": Key("text", required=True),
    "output.checkpoint_dir": Key(
        "text", null=True, note=f"{_NOT_USED}: what a run needs to go on lies in its own folder"
    ),
    "output.model_name": Key("text", null=True),
    "result": Key("anything", note="it is of an earlier run, and read nowhere"),
    "crossroads": Key("object"),
    "crossroads.seed": Key("seed"),
    "crossroads.dtype": Key("text"),
    "crossroads.small": Key("text"),
    "crossroads.allow_misaligned": Key("boolean"),
}
"""Every key by its path; `crossroads` is ours, and R2R passes over it."""
_OPEN = frozenset({"model.model_specific_args", "result"})
"""Objects of anything."""


def check_values(values: Mapping[str, Any]) -> list[str]:
    """Return the notes on the keys that are given, after all of them were checked.

    Raises:
        ConfigError: an unknown key, one of another kind, or one that is missing.
    """
    given = dict(_walk(values, ""))
    for path, value in given.items():
        key = known_key(path)
        if value is None and (key.null or key.kind == "anything"):
            continue
        name, fits = KINDS[key.kind]
        if not fits(value):
            raise ConfigError(f"{path} must be {name}, got {value!r}")
    for path, key in SCHEMA.items():
        if key.required and path not in given and path.rpartition(".")[0] in {"", *given}:
            raise ConfigError(f"the config has no {path}; R2R needs it")
    return [f"{path}: {known_key(path).note}" for path in given if known_key(path).note]


def known_key(path: str) -> Key:
    """Return the key of a path.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    if path not in SCHEMA:
        raise ConfigError(f"unknown config key {path}; did you mean {nearest_path(path)}?")
    return SCHEMA[path]


def nearest_path(path: str) -> str:
    """Return the known path that is most like `path`; one that ends as it does comes first."""
    last = path.rpartition(".")[2]
    same = [known for known in SCHEMA if known.rpartition(".")[2] == last]
    return difflib.get_close_matches(path, same or list(SCHEMA), n=1, cutoff=0.0)[0]


def _walk(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        path = f"{prefix}{name}"
        yield path, value
        if isinstance(value, Mapping) and path in SCHEMA and path not in _OPEN:
            yield from _walk(value, f"{path}.")
