"""What the page shows of the server: the pair, its router, and how both do."""

from __future__ import annotations

from typing import Any

from crossroads.serving.service import Service
from crossroads.types import ModelInfo


def routing_state(service: Service) -> dict[str, Any]:
    """Return `GET /v1/routing` as plain JSON values."""
    models = service.models
    card = service.served.card
    calibration = None if card is None else card.calibration
    return {
        "pair": service.served.pair,
        "small": _named(models.small.info),
        "large": _named(models.large.info),
        "router": service.served.router,
        "threshold": models.threshold,
        "calibration": None if calibration is None else _promise(calibration),
        "score_quantiles": None if calibration is None else calibration.get("score_quantiles"),
        "thinks": service.thinks,
        "defaults": {"temperature": service.options.temperature, "max_tokens": None},
        "live": _live(service),
    }


def _named(info: ModelInfo) -> dict[str, Any]:
    return {"name": info.name, "parameters": info.parameters}


def _promise(calibration: Any) -> dict[str, Any] | None:
    point = calibration.get("point")
    if point is None:
        return None
    return {
        "positive_rate": point["positive_rate"],
        "recall": point["recall"],
        "target": calibration.get("target_recall"),
    }


def _live(service: Service) -> dict[str, Any]:
    now = service.metrics.snapshot()
    drift = now["drift"]
    return {
        "tokens_per_second": now["tokens_per_second"],
        "running": now["running"],
        "waiting": now["waiting"],
        "large_fraction": None if drift is None else drift["live_large_fraction"],
        "drift": None
        if drift is None
        else {
            "tokens": drift["tokens"],
            "verdict": drift["verdict"],
            "sentence": drift["sentence"],
            "live_positive_rate": drift["live_positive_rate"],
            "promised_positive_rate": drift["promised_positive_rate"],
            "histogram": [bin_["live"] or 0.0 for bin_ in drift["bins"]],
            "psi": drift["psi"],
        },
    }
