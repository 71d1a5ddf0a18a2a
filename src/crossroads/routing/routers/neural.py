"""Trained networks as routers, and the registry of their architectures."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from crossroads.errors import RouterError
from crossroads.names import nearest
from crossroads.routing.routers.mlp import MLPConfig, MLPNetwork
from crossroads.routing.routers.mlp_scorer import MLPScorer
from crossroads.routing.routers.r2r import R2RNetwork, R2RNetworkConfig


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to make a network of one kind from the plain values of its config."""

    config: Callable[..., Any]
    network: Callable[[Any], nn.Module]


ARCHITECTURES: Mapping[str, Architecture] = {
    "mlp": Architecture(MLPConfig, MLPNetwork),
    "r2r": Architecture(R2RNetworkConfig, R2RNetwork),
}


EXACT_PARAMETERS = 2_000_000
"""Up to this size a router computes in float64."""


class NeuralRouter:
    """A network in evaluation mode behind the Router interface.

    Scores are sigmoid(scale * logit + bias), computed in float64 and rounded to float32: sums in
    another order (a batch of another size) then give the same score, so a row's decisions never
    depend on its neighbours. A network of more than EXACT_PARAMETERS numbers computes in float32,
    since doubles would cost more than the small model; its scores may differ in the last digits.
    """

    def __init__(
        self, name: str, network: nn.Module, scale: float = 1.0, bias: float = 0.0
    ) -> None:
        """Copy `network`; later training of it changes nothing here."""
        self.name = name
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.scale, self.bias = scale, bias
        exact = self.parameters <= EXACT_PARAMETERS
        self._bias = torch.tensor(bias, dtype=torch.float64 if exact else torch.float32)
        scorer = copy.deepcopy(self.network).double() if exact else self.network
        self._scorer = MLPScorer(scorer) if isinstance(scorer, MLPNetwork) else scorer

    @property
    def config(self) -> Any:
        """The architecture's config."""
        return self.network.config

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the features it reads."""
        names: tuple[str, ...] = self.config.inputs
        return names

    @property
    def parameters(self) -> int:
        """Trained numbers."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def score(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return scores [N], float32."""
        with torch.inference_mode():
            logits_N = self._scorer(features)  # float32; the scorer's own precision takes over
            scores_N: Tensor = torch.sigmoid(
                torch.add(self._bias, logits_N, alpha=self.scale)
            ).float()
        return scores_N

    def rescaled(self, scale: float, bias: float) -> NeuralRouter:
        """Return this router with its scores mapped: sigmoid(scale * logit(score) + bias).

        Raises:
            RouterError: a scale that is not positive would turn the ranking around.
        """
        if scale <= 0:
            raise RouterError(f"the scale of a router's scores must be > 0, got {scale}")
        return NeuralRouter(self.name, self.network, scale * self.scale, scale * self.bias + bias)


def build_network(name: str, config: Mapping[str, Any]) -> nn.Module:
    """Return an untrained network of the architecture `name`.

    Raises:
        RouterError: unknown architecture or config keys.
    """
    if name not in ARCHITECTURES:
        raise RouterError(f"unknown router type {name!r}; known: {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[name]
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    _check_values(name, architecture.config, values)
    try:
        return architecture.network(architecture.config(**values))
    except TypeError as error:
        raise RouterError(f"the config of router type {name!r} does not fit: {error}") from error


_KINDS: Mapping[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,)}


def _check_values(name: str, config: Any, values: Mapping[str, Any]) -> None:
    """Refuse settings that the config does not have, and numbers that are none."""
    known = {field.name: str(field.type) for field in fields(config)}
    for key, value in values.items():
        if key not in known:
            raise RouterError(f"router type {name!r} has no setting {key!r}; {nearest(key, known)}")
        kinds = _KINDS.get(known[key])
        if kinds and (not isinstance(value, kinds) or isinstance(value, bool) != (bool in kinds)):
            raise RouterError(f"router {key} must be a number ({known[key]}), got {value!r}")


def config_values(network: nn.Module) -> dict[str, Any]:
    """Return the network's config as plain values, as `build_network` takes them."""
    return asdict(network.config)  # type: ignore[call-overload, no-any-return]
