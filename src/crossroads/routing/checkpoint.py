"""The router folder: `router.json` (what it is, for which model, at which threshold) and
`router.safetensors` (weights and normalisation statistics). Nothing in it is executed.
"""  # noqa: D205

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from crossroads.artifacts import (
    canonical_hash,
    load_tensors,
    read_json,
    save_tensors,
    sha256_file,
    write_json,
)
from crossroads.errors import DataError, RouterError
from crossroads.routing.features import FEATURES
from crossroads.routing.routers.base import Router
from crossroads.routing.routers.heuristics import HEURISTICS, random
from crossroads.routing.routers.neural import NeuralRouter, build_network, config_values
from crossroads.types import ModelInfo

FORMAT = 2
_CARD, _WEIGHTS = "router.json", "router.safetensors"


@dataclass(frozen=True, slots=True)
class SmallModelId:
    """The model whose outputs a router was trained on; another one makes its scores meaningless.

    The engine belongs to it: two engines' hidden states of one model agree only roughly. Those of
    transformers and vLLM, which run the same weights in the same precision, agree to its rounding.
    """

    name: str
    engine: str
    fingerprint: str
    hidden_size: int
    vocab_size: int

    @classmethod
    def of(cls, info: ModelInfo) -> SmallModelId:
        """Return the identity of a loaded model."""
        return cls(info.name, info.engine, info.fingerprint, info.hidden_size, info.vocab_size)


@dataclass(frozen=True, slots=True)
class RouterCard:
    """What stands in router.json beside the architecture.

    calibration: the target, the exact threshold's recall and positive_rate with intervals, and
    the number of positives, as `training` wrote them.
    """

    small: SmallModelId
    large_name: str
    large_fingerprint: str
    pair: str
    threshold: float
    calibration: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoadedRouter:
    """A router and its card."""

    router: NeuralRouter
    card: RouterCard


def save_router(folder: Path, router: NeuralRouter, card: RouterCard) -> None:
    """Write the router folder; the weights first, so that the card never names missing ones."""
    weights = folder / _WEIGHTS
    save_tensors(weights, router.network.state_dict(), {"format": str(FORMAT)})
    content: dict[str, Any] = {
        "format": FORMAT,
        "type": router.name,
        "config": config_values(router.network),
        "inputs": {
            name: {"transform": FEATURES[name].transform, "dtype": str(FEATURES[name].dtype)}
            for name in router.inputs
        },
        "weights_sha256": sha256_file(weights),
        "probability": {"scale": router.scale, "bias": router.bias},
        **asdict(card),
    }
    content["content_sha256"] = canonical_hash(content)
    write_json(folder / _CARD, content)


def load_router(folder: Path, small: ModelInfo | None = None) -> LoadedRouter:
    """Return the router in `folder`; with `small`, only if it was trained for that model.

    Raises:
        RouterError: no router there, a damaged or altered file, another format, another model.
    """
    content = _read_card(folder)
    card = RouterCard(
        small=SmallModelId(**content["small"]),
        **{
            key: content[key]
            for key in (
                "large_name",
                "large_fingerprint",
                "pair",
                "threshold",
                "calibration",
                "provenance",
            )
        },
    )
    if small is not None:
        check_model(card.small, small, folder)
    network = build_network(content["type"], content["config"])
    _check_inputs(folder, content["inputs"])
    try:
        tensors = load_tensors(folder / _WEIGHTS, "router weights")
        network.load_state_dict(tensors)
    except (DataError, RuntimeError) as error:
        raise RouterError(f"the router weights in {folder} do not fit its card: {error}") from error
    return LoadedRouter(NeuralRouter(content["type"], network, **content["probability"]), card)


def _read_card(folder: Path) -> dict[str, Any]:
    if not (folder / _CARD).exists():
        raise RouterError(
            f"no router at {folder} (no {_CARD}); give a folder that `crossroads train` wrote, "
            f"or one of {', '.join(HEURISTICS)}"
        )
    try:
        content: dict[str, Any] = read_json(folder / _CARD, "router card")
    except DataError as error:
        raise RouterError(str(error)) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        got = content.get("format") if isinstance(content, dict) else None
        raise RouterError(f"{folder / _CARD} has format {got!r}, this version reads {FORMAT}")
    claimed = content.pop("content_sha256", None)
    if claimed != canonical_hash(content):
        raise RouterError(f"{folder / _CARD} was altered after training; train or copy it again")
    weights = folder / _WEIGHTS
    if not weights.exists() or sha256_file(weights) != content["weights_sha256"]:
        raise RouterError(f"{weights} is missing or was altered; train or copy the folder again")
    return content


def _check_inputs(folder: Path, inputs: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse a router whose inputs mean something else in this version."""
    for name, written in inputs.items():
        known = FEATURES.get(name)
        if known is None:
            raise RouterError(f"the router in {folder} reads {name!r}, unknown to this version")
        if {"transform": known.transform, "dtype": str(known.dtype)} != dict(written):
            raise RouterError(
                f"the router in {folder} reads {name!r} as {written['transform']!r} "
                f"({written['dtype']}), this version computes {known.transform!r} ({known.dtype})"
            )


def check_model(expected: SmallModelId, small: ModelInfo, folder: Path) -> None:
    """Refuse a model that the router was not trained on.

    Raises:
        RouterError: names the first difference: engine, hidden size, vocabulary or weights.
    """
    got = SmallModelId.of(small)
    differences = (
        ("hidden size", expected.hidden_size, got.hidden_size),
        ("vocabulary", expected.vocab_size, got.vocab_size),
        ("engine", _numbers_of(expected.engine), _numbers_of(got.engine)),
        ("weights", expected.fingerprint[:12], got.fingerprint[:12]),
    )
    for what, wanted, found in differences:
        if wanted != found:
            raise RouterError(
                f"the router in {folder} was trained for {expected.name} ({what} {wanted}), but "
                f"the small model is {got.name} ({what} {found}); load the router of this pair, "
                "or train one"
            )


def _numbers_of(engine: str) -> str:
    """Return the engine whose numbers an engine has: one that computes the same weights alike."""
    return "transformers" if engine == "vllm" else engine


def router_by_name(name: str, vocab_size: int, seed: int = 0) -> Router:
    """Return a heuristic router; `seed` matters to `random` alone.

    Raises:
        RouterError: unknown name; lists the known ones.
    """
    if name not in HEURISTICS:
        raise RouterError(f"unknown router {name!r}; known: {', '.join(HEURISTICS)}")
    return random(vocab_size, seed) if name == "random" else HEURISTICS[name](vocab_size)
