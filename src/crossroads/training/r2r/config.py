"""R2R's training config, its JSON as it is: read, checked, changed with `--set`, in our terms.

Beside R2R's own keys there is an object `crossroads` for what its format has no words for: `seed`
(R2R sets none), `dtype` of the arithmetic, `small` (the small model, if not the
`pretrained_model_name`), `allow_misaligned`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossroads.artifacts import read_json
from crossroads.errors import ConfigError, DataError, RouterError
from crossroads.names import nearest
from crossroads.routing.routers.r2r import MODEL_TYPES, ModelType, find_type, network_settings
from crossroads.training.config import FitConfig
from crossroads.training.losses import PER_BATCH, LossConfig
from crossroads.training.r2r.protocol import DEFAULT_RECALL, METRICS, TYPES
from crossroads.training.r2r.schema import check_values
from crossroads.training.r2r.values import (
    LABELS,
    LOSS_SETTINGS,
    changed,
    check_device_of,
    check_filter,
    check_path,
    check_process,
    value_notes,
)

PROTOCOLS = ("default", "r2r")
OUR_RECALL = 0.95  # where the config's aim is no recall
_DEFAULT_SMALL = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"  # R2R's


@dataclass(frozen=True, slots=True)
class DataConfig:
    """`data.train` or `data.test`. paths: `local:DIR` or `hf_datasets:path=...,split=...`."""

    paths: tuple[str, ...]
    input_prefix: str
    process: tuple[Mapping[str, Any], ...]
    filters: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class TokenSplit:
    """`split_test_from_train`: the test tokens are drawn from the train data, token by token."""

    test_size: float
    seed: int


@dataclass(frozen=True, slots=True)
class R2RConfig:
    """A checked config. values: the JSON with the changes in it. notes: what a user should know."""

    path: Path
    values: Mapping[str, Any]
    notes: tuple[str, ...]

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str] = ()) -> R2RConfig:
        """Return the config in `path` with `a.b.c=value` changes (JSON values, else text).

        Raises:
            ConfigError: not a config of R2R, or one that cannot be run here; names the key.
        """
        try:
            values = read_json(path, "R2R config")
        except DataError as error:
            raise ConfigError(str(error)) from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path} is not an R2R config: a JSON object is needed")
        values = changed(values, overrides)
        try:
            notes = check_values(values)
            values.pop("result", None)  # of an earlier run, and no part of the config
            check_device_of(values)
            config = cls(path, values, (*notes, *value_notes(values)))
            config._check()
        except (ConfigError, RouterError) as error:
            raise ConfigError(f"{path}: {error}") from error
        return config

    def get(self, path: str, default: Any = None) -> Any:
        """Return the value of a dotted path; `default` where it is not given or null."""
        value: Any = self.values
        for part in path.split("."):
            if not isinstance(value, Mapping):
                return default
            value = value.get(part)
        return default if value is None else value

    # What it says, in our terms

    @property
    def model_type(self) -> str:
        """R2R's name of the network."""
        return find_type(self.values["model"]["model_type"])[0]

    @property
    def kind(self) -> ModelType:
        """What the network reads."""
        return MODEL_TYPES[self.model_type]

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The network's arguments."""
        arguments: Mapping[str, Any] = self.values["model"]["init_args"]
        return arguments

    @property
    def hidden_size(self) -> int | None:
        """The width of hidden states that the network expects; None if it reads none."""
        if "hidden_states_size" not in self.kind.takes:
            return None
        size = self.arguments.get("hidden_states_size", self.kind.hidden_size)
        return None if size is None else int(size)

    @property
    def logits_size(self) -> int | None:
        """How many logits the network expects; None if it reads none."""
        return int(self.arguments.get("logits_size", 100)) if "logits" in self.kind.inputs else None

    @property
    def small(self) -> str | None:
        """The small model's name, where its token embeddings are needed or it is given."""
        given = self.get("crossroads.small")
        if given is None and "token" in self.kind.inputs:
            return str(self.arguments.get("pretrained_model_name", _DEFAULT_SMALL))
        return given if given is None else str(given)

    @property
    def objective(self) -> str:
        """The label column: what counts as positive."""
        return str(self.get("data.train.label_column", "divergent"))

    @property
    def min_recall(self) -> float:
        """The recall of our protocol's threshold, and at which epochs are compared."""
        default = DEFAULT_RECALL if self.optimizing == "threshold" else OUR_RECALL
        return float(self.get("optimizing.min_recall", default))

    @property
    def optimizing(self) -> str:
        """`threshold`, `objective` or `skip`."""
        return str(self.values["optimizing"]["type"])

    @property
    def token_split(self) -> TokenSplit | None:
        """How test tokens are drawn from the train data; None where there is test data."""
        if not self.get("data.test.split_test_from_train", False):
            return None
        return TokenSplit(
            float(self.get("data.test.test_size", 0.2)), int(self.get("data.test.random_seed", 42))
        )

    @property
    def seed(self) -> int:
        """Seed of everything; R2R sets none."""
        return int(self.get("crossroads.seed", 0))

    def data(self, role: str) -> DataConfig:
        """Return `data.train` or `data.test`."""
        part = self.values["data"][role]
        paths = part.get("path", ())
        return DataConfig(
            (paths,) if isinstance(paths, str) else tuple(paths),
            str(part.get("input_prefix", "small_")),
            tuple(part.get("process", ())),
            tuple(part.get("filter", ())),
        )

    def to_fit_config(self, protocol: str = "default") -> FitConfig:
        """Return how the router is trained.

        Both protocols have R2R's network, loss and optimizer. `r2r` keeps the epoch of the least
        validation loss, measured as its script does; `default` that of the least positive_rate.
        """
        params, optimizer = self.values["training"]["params"], self.values["training"]["optimizer"]
        replay = protocol == "r2r"
        loss = self.values["training"]["loss"]
        settings = {key: loss[key] for key in LOSS_SETTINGS[loss["type"]]}
        if replay:
            settings[PER_BATCH] = params["batch_size"]
        return FitConfig(
            inputs=self.kind.features,
            architecture="r2r",
            network=network_settings(self.model_type, self.arguments),
            objective=self.objective,
            target_recall=self.min_recall,
            epochs=params["num_epochs"],
            batch_size=params["batch_size"],
            learning_rate=float(optimizer["lr"]),
            weight_decay=float(optimizer["weight_decay"]),
            schedule="constant",
            loss=LossConfig(loss["type"], settings),
            average=0.0,
            clip=None,
            normalise=False,
            selection="loss" if replay else "positive_rate",
            # R2R with patience 0 stops as with 1: at the first epoch that is not better.
            patience=max(1, params["patience"]),
            probabilities=False,
            dtype=str(self.get("crossroads.dtype", "float32")),
            device=params["device"],
            seed=self.seed,
        )

    # What cannot be run

    def _check(self) -> None:
        self._check_model()
        self._check_data()
        self._check_loss()
        self._check_optimizing()
        self.to_fit_config()

    def _check_model(self) -> None:
        wanted, given = self.kind.inputs, self.get("model.input_type", ["logits"])
        given = [given] if isinstance(given, str) else given
        if set(given) != set(wanted):
            raise ConfigError(
                f"model.input_type is {given}, and a {self.model_type} reads {list(wanted)}"
            )
        if self.get("model.output_type", "binary") != "binary":
            raise ConfigError(
                f"model.output_type is {self.get('model.output_type')!r}; only binary can be "
                "trained (R2R's own multiclass training ends in an error)"
            )
        if "hidden_states_size" in self.kind.takes and self.hidden_size is None:
            raise ConfigError(f"a {self.model_type} needs model.init_args.hidden_states_size")
        network_settings(self.model_type, self.arguments)
        if "token" in wanted and not self.arguments.get("freeze_lm_head", False):
            raise ConfigError(
                "model.init_args.freeze_lm_head is false: R2R then trains the whole table of token "
                "embeddings, which is not done here; --set model.init_args.freeze_lm_head=true"
            )

    def _check_data(self) -> None:
        for role in ("train",) if self.token_split is not None else ("train", "test"):
            if not self.data(role).paths:
                raise ConfigError(f"the config has no data.{role}.path")
            for path in self.data(role).paths:
                check_path(path, f"data.{role}.path")
        for role in ("train", "test"):
            for number, step in enumerate(self.data(role).process):
                check_process(step, f"data.{role}.process[{number}]")
            for number, step in enumerate(self.data(role).filters):
                check_filter(step, f"data.{role}.filter[{number}]")
        if self.objective not in LABELS:
            raise ConfigError(
                f"data.train.label_column is {self.objective!r}; known: {', '.join(LABELS)}"
            )
        if self.token_split is not None and not self.token_split.test_size:
            raise ConfigError("data.test.test_size must be in (0, 1)")

    def _check_loss(self) -> None:
        loss = self.values["training"]["loss"]
        if loss["type"] == "CrossEntropyLoss":
            raise ConfigError(
                "training.loss.type CrossEntropyLoss is R2R's for several classes, whose training "
                "ends in an error there; use BCEWithLogitsLoss"
            )
        if loss["type"] not in LOSS_SETTINGS:
            raise ConfigError(
                f"training.loss.type is {loss['type']!r}; {nearest(loss['type'], LOSS_SETTINGS)}"
            )
        for key in LOSS_SETTINGS[loss["type"]]:
            if key not in loss:
                raise ConfigError(f"training.loss.{key} is missing; {loss['type']} needs it")
        counted = loss.get("label_column", "divergent")
        if counted != self.objective:
            raise ConfigError(
                f"training.loss.label_column is {counted!r} and the labels are {self.objective!r}: "
                f"the weights would be of other labels; --set "
                f"training.loss.label_column={self.objective}"
            )

    def _check_optimizing(self) -> None:
        if self.optimizing not in TYPES:
            raise ConfigError(
                f"optimizing.type is {self.optimizing!r}; {nearest(self.optimizing, TYPES)}"
            )
        if self.optimizing == "objective" and self.get("optimizing.metric") not in METRICS:
            raise ConfigError(
                f"optimizing.metric is {self.get('optimizing.metric')!r}; known: "
                f"{', '.join(METRICS)} (R2R fails on accuracy)"
            )
