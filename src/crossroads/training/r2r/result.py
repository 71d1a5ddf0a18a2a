"""R2R's result JSON: the config, and under `result` what came of it. Written and read back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from crossroads.artifacts import read_json, write_json
from crossroads.errors import DataError
from crossroads.training.r2r.protocol import Metrics

METRIC_KEYS = ("accuracy", "precision", "recall", "f1", "positive_rate")


@dataclass(frozen=True, slots=True)
class R2RResult:
    """A finished training in R2R's words; None, or an empty mapping, for what the JSON lacks.

    config: the training config. final: metrics at the chosen threshold, by R2R's names. before:
    those at 0.5. crossroads: what only our runs say. missing: paths that R2R writes and this JSON
    does not have.
    """

    config: Mapping[str, Any]
    model_path: str | None
    threshold: float | None
    best_epoch: int | None
    best_val_loss: float | None
    final: Mapping[str, float]
    before: Mapping[str, float] = field(default_factory=dict)
    crossroads: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any],
        model_path: Path,
        threshold: float,
        best_epoch: int,
        best_val_loss: float,
        final: Metrics,
        before: Metrics | None,
        crossroads: Mapping[str, Any],
    ) -> R2RResult:
        """Return the result of a run of ours."""
        return cls(
            {key: value for key, value in config.items() if key != "result"},
            str(model_path),
            threshold,
            best_epoch,
            best_val_loss,
            asdict(final),
            {} if before is None else asdict(before),
            crossroads,
        )

    @classmethod
    def read(cls, path: Path) -> R2RResult:
        """Return the result in `path`, R2R's or ours; what it lacks is named in `missing`.

        Raises:
            DataError: not JSON, or nothing of R2R's result in it.
        """
        content = read_json(path, "R2R result")
        result = content.get("result") if isinstance(content, Mapping) else None
        found = result.get("results") if isinstance(result, Mapping) else None
        if not isinstance(content, Mapping) or not isinstance(found, Mapping):
            raise DataError(
                f"{path} is no result of R2R's training: it has no result.results; give the JSON "
                "that it wrote beside the router"
            )
        assert isinstance(result, Mapping)  # it has `results`
        reader = _Reader(path)
        final = reader.metrics(found, "final_metrics")
        skipped = (content.get("optimizing") or {}).get("type") == "skip"
        before = {} if skipped else reader.metrics(found, "pre_opt_metrics")
        epoch = reader.number(found, "best_epoch", "result.results")
        model_path = result.get("model_path")
        if model_path is None:
            reader.missing.append("result.model_path")
        return cls(
            config={key: value for key, value in content.items() if key != "result"},
            model_path=None if model_path is None else str(model_path),
            threshold=reader.number(found, "threshold", "result.results"),
            best_epoch=None if epoch is None else int(epoch),
            best_val_loss=reader.number(found, "best_val_loss", "result.results"),
            final=final,
            before=before,
            crossroads=result.get("crossroads") or {},
            missing=tuple(reader.missing),
        )

    def write(self, path: Path) -> None:
        """Write R2R's JSON; a metric without a value is null there."""
        results: dict[str, Any] = {
            "threshold": self.threshold,
            "best_epoch": self.best_epoch,
            "best_val_loss": self.best_val_loss,
            "final_metrics": _plain(self.final),
        }
        if self.before:
            results["pre_opt_metrics"] = _plain(self.before)
        result: dict[str, Any] = {"model_path": self.model_path, "results": results}
        if self.crossroads:
            result["crossroads"] = dict(self.crossroads)
        write_json(path, {**self.config, "result": result})


def _plain(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in metrics.items()}


class _Reader:
    """Reads numbers, and remembers what was not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.missing: list[str] = []

    def number(self, values: Mapping[str, Any], key: str, where: str) -> float | None:
        value = values.get(key)
        if value is None:
            self.missing.append(f"{where}.{key}")
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DataError(f"{self.path}: {where}.{key} must be a number, got {value!r}")
        return float(value)

    def metrics(self, found: Mapping[str, Any], name: str) -> dict[str, float]:
        """Return the metrics that are there and finite."""
        where = f"result.results.{name}"
        values = found.get(name)
        if not isinstance(values, Mapping):
            self.missing.append(where)
            return {}
        numbers = {key: self.number(values, key, where) for key in METRIC_KEYS}
        return {k: v for k, v in numbers.items() if v is not None and math.isfinite(v)}
