"""What one training run depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from crossroads.errors import ConfigError
from crossroads.routing.features import FEATURES, check_names
from crossroads.routing.routers.neural import ARCHITECTURES
from crossroads.training.losses import LossConfig

OBJECTIVES = ("divergent", "mismatch")
SELECTIONS = ("positive_rate", "loss")
SCHEDULES = ("onecycle", "constant")
DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class FitConfig:
    """How a router is trained. `objective` is the positive class of the loss and of recall.

    network: settings of the architecture other than its inputs. soft_labels: train on the judge's
    probability where it gave one. auxiliary: weight of a second aim, the large model's
    probability of another token than the small model's, known at every position; the network
    needs a second output for it, as `mlp` has. average: decay of the running mean of the weights,
    0 for none. clip: largest gradient norm. normalise: give the network the train split's mean and
    deviation per input. selection: which epoch is kept. patience: epochs without a better one
    before training stops. probabilities: fit the scores to probabilities on calibration (Platt
    1999), which changes no ranking. dtype: of the arithmetic; weights and averages stay float32.
    """

    inputs: tuple[str, ...] = ("entropy", "margin", "proposed_logprob", "top_logprobs")
    architecture: str = "mlp"
    network: Mapping[str, Any] = field(default_factory=dict)
    objective: str = "divergent"
    target_recall: float = 0.95
    epochs: int = 30
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    schedule: str = "onecycle"
    loss: LossConfig = field(default_factory=LossConfig)
    soft_labels: bool = False
    auxiliary: float = 0.0
    average: float = 0.99
    clip: float | None = 1.0
    normalise: bool = True
    selection: str = "positive_rate"
    patience: int | None = None
    probabilities: bool = True
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            ConfigError: names the field and the range.
        """
        for name, known in (
            ("objective", OBJECTIVES),
            ("selection", SELECTIONS),
            ("schedule", SCHEDULES),
            ("dtype", tuple(DTYPES)),
            ("architecture", tuple(ARCHITECTURES)),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"unknown {name} {getattr(self, name)!r}; known: {', '.join(known)}"
                )
        if not 0 < self.target_recall <= 1:
            raise ConfigError(f"the recall target must be in (0, 1], got {self.target_recall}")
        if self.epochs < 1 or self.batch_size < 1:
            raise ConfigError("epochs and batch size must be >= 1")
        if self.learning_rate <= 0:
            raise ConfigError(f"the learning rate must be > 0, got {self.learning_rate}")
        if not 0 <= self.average < 1:
            raise ConfigError(f"the decay of the average must be in [0, 1), got {self.average}")
        if self.auxiliary < 0:
            raise ConfigError(f"the auxiliary weight must be >= 0, got {self.auxiliary}")
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"patience must be at least 1 epoch, got {self.patience}")
        check_names(self.inputs)
        check_device(self.device)

    def network_values(self, hidden_size: int) -> dict[str, Any]:
        """Return what `build_network` makes the network of, for a hidden size."""
        widths = [FEATURES[name].width(hidden_size) for name in self.inputs]
        return {"inputs": list(self.inputs), "widths": widths, **self.network}


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        ConfigError: says so.
    """
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ConfigError(f"unknown device {device!r}; give cpu, cuda or cuda:N") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r} was asked for and this machine has no CUDA device")


def settings(config: FitConfig) -> dict[str, Any]:
    """Return the config as plain values."""
    return asdict(config)


def read_settings(values: Mapping[str, Any]) -> FitConfig:
    """Return the config that `settings` wrote."""
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    plain["loss"] = LossConfig(**values["loss"])
    return FitConfig(**plain)


def names_of(configs: Sequence[FitConfig]) -> tuple[str, ...]:
    """Return the inputs that several configs read, each once."""
    return tuple(dict.fromkeys(name for config in configs for name in config.inputs))
