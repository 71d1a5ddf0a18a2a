"""The few numbers that a training script leaves behind: R2R's result JSON, or typed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossroads.errors import ConfigError, DataError
from crossroads.names import nearest
from crossroads.training.r2r.protocol import DEFAULT_RECALL
from crossroads.training.r2r.result import R2RResult

_METRICS = ("positive_rate", "recall", "precision", "accuracy", "f1")


@dataclass(frozen=True, slots=True)
class Metrics:
    """What was reported of one threshold; None where it was not."""

    positive_rate: float | None = None
    recall: float | None = None
    precision: float | None = None
    accuracy: float | None = None
    f1: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """One finished training of R2R's script.

    final: at the chosen threshold. before: at the threshold before it was chosen (0.5 in R2R's
    script). best_val_loss: weighted, as that script computes it. config: the run's own, empty where
    the numbers were typed.
    """

    source: str
    final: Metrics
    threshold: float | None = None
    before: Metrics | None = None
    best_epoch: int | None = None
    best_val_loss: float | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def positive_rate(self) -> float:
        """The number that everything is about."""
        assert self.final.positive_rate is not None  # readers refuse a result without it
        return self.final.positive_rate

    def setting(self, *path: str) -> Any:
        """Return a nested setting of the run's config, None where there is none."""
        value: Any = self.config
        for key in path:
            if not isinstance(value, Mapping):
                return None
            value = value.get(key)
        return value

    @property
    def target(self) -> float | None:
        """The recall that the threshold was chosen for; None where no config tells."""
        if not self.config:
            return None
        given = self.setting("optimizing", "min_recall")
        return float(given) if isinstance(given, int | float) else DEFAULT_RECALL

    @property
    def objective(self) -> str:
        """The label that counts as positive."""
        return str(self.setting("data", "train", "label_column") or "divergent")

    @property
    def test_filters(self) -> tuple[str, ...]:
        """Steps that thin out the rows that are measured."""
        steps = self.setting("data", "test", "filter")
        found = [step.get("type") for step in steps or [] if isinstance(step, Mapping)]
        return tuple(str(name) for name in found if name)

    @property
    def splits_tokens(self) -> bool:
        """Whether the measured tokens were drawn from the train data, token by token."""
        return self.setting("data", "test", "split_test_from_train") is True


def read_result(path: Path) -> Result:
    """Return the result in a JSON file that R2R's script, or our replay of it, wrote.

    Raises:
        DataError: not an R2R result, or one without a positive_rate.
    """
    found = R2RResult.read(path)
    if found.final.get("positive_rate") is None:
        raise DataError(
            f"{path} has no result.results.final_metrics.positive_rate; give the JSON that R2R's "
            "training wrote at its end"
        )
    return Result(
        source=str(path),
        final=_metrics(found.final, path),
        threshold=_share(found.threshold, "threshold", path),
        before=_metrics(found.before, path) if found.before else None,
        best_epoch=found.best_epoch,
        best_val_loss=found.best_val_loss,
        config=found.config,
    )


def typed_result(values: Mapping[str, Any]) -> Result:
    """Return a result from numbers that somebody noted: positive_rate=...,recall=...,threshold=...

    Raises:
        ConfigError: an unknown key, or no positive_rate.
    """
    known = ("threshold", *_METRICS)
    for key in values:
        if key not in known:
            raise ConfigError(f"unknown result key {key!r}; {nearest(key, known)}")
    if "positive_rate" not in values:
        raise ConfigError(
            "a result needs a positive_rate: --result positive_rate=0.318,recall=0.95"
        )
    source = Path("--result")
    try:
        final = _metrics(values, source)
        threshold = _share(values.get("threshold"), "threshold", source)
    except DataError as error:
        raise ConfigError(str(error)) from error
    return Result("as given with --result", final, threshold)


def _metrics(values: Mapping[str, Any], path: Path) -> Metrics:
    return Metrics(**{name: _share(values.get(name), name, path) for name in _METRICS})


def _share(value: Any, name: str, path: Path) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DataError(f"{path}: {name} is a share in [0, 1], got {value!r}")
    return float(value)
