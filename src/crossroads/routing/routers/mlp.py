"""The first neural router: standardised features through a small residual network.

Shapes: N positions, D all input features side by side, C the compressed input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crossroads.errors import RouterError


@dataclass(frozen=True, slots=True)
class MLPConfig:
    """Architecture: wide inputs are projected to `projection`, then `depth` layers of `width`.

    inputs: feature names. widths: their widths, in the same order. dropout: on each wide input's
    projection and on each hidden layer. members: networks side by side whose logits are averaged.
    """

    inputs: tuple[str, ...]
    widths: tuple[int, ...]
    projection: int = 32
    width: int = 64
    depth: int = 2
    dropout: float = 0.1
    members: int = 1

    def __post_init__(self) -> None:
        """Refuse sizes that make no network.

        Raises:
            RouterError: names the field.
        """
        if not self.inputs or len(self.inputs) != len(self.widths):
            raise RouterError(f"router needs one width per input, got {self.inputs} {self.widths}")
        for name in ("projection", "width", "depth", "members"):
            if getattr(self, name) < 1:
                raise RouterError(f"router {name} must be >= 1, got {getattr(self, name)}")


class MLPNetwork(nn.Module):
    """Multilayer perceptrons on standardised inputs; sigmoid of their mean logit is the score.

    The statistics (`mean`, `scale`, per input) are buffers: they travel with the weights.
    """

    def __init__(self, config: MLPConfig) -> None:
        """Make an untrained network; `set_statistics` and training follow."""
        super().__init__()
        self.config = config
        for name, width in zip(config.inputs, config.widths, strict=True):
            self.register_buffer(f"mean_{name}", torch.zeros(width))
            self.register_buffer(f"scale_{name}", torch.ones(width))
        self.mean_C: Tensor
        self.scale_C: Tensor
        self.register_buffer("mean_C", torch.zeros(sum(config.widths)), persistent=False)
        self.register_buffer("scale_C", torch.ones(sum(config.widths)), persistent=False)
        self.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
            lambda module, _: module._join()
        )
        self.members = nn.ModuleList(MLPMember(config) for _ in range(config.members))

    def set_statistics(self, mean: Mapping[str, Tensor], scale: Mapping[str, Tensor]) -> None:
        """Take each input's mean [W] and standard deviation [W] over the training split."""
        for name in self.config.inputs:
            getattr(self, f"mean_{name}").copy_(mean[name])
            getattr(self, f"scale_{name}").copy_(scale[name])
        self._join()

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return logits [N]."""
        return self.outputs(features)[:, 0]

    def outputs(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return [N, 2]: the logit of the score, and that of the auxiliary target."""
        # All inputs at once: on one row an operation costs more than its arithmetic.
        value_NC = torch.cat([features[name] for name in self.config.inputs], dim=1)
        value_NC = ((value_NC - self.mean_C) / self.scale_C).clamp(-10.0, 10.0)
        parts = torch.split(value_NC, list(self.config.widths), dim=1)
        standard = dict(zip(self.config.inputs, parts, strict=True))
        if len(self.members) == 1:
            only: Tensor = self.members[0](standard)
            return only
        return torch.stack([member(standard) for member in self.members]).mean(dim=0)

    def _join(self) -> None:
        """Lay the inputs' statistics side by side, as `outputs` uses them."""
        for joined, statistic in ((self.mean_C, "mean"), (self.scale_C, "scale")):
            parts = [self.get_buffer(f"{statistic}_{name}") for name in self.config.inputs]
            joined.copy_(torch.cat(parts))


class MLPMember(nn.Module):
    """One perceptron.

    Inputs wider than `projection` (hidden states, embeddings, distributions) each pass through
    their own linear map down to `projection`, so that no input outweighs another by its width.
    """

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.inputs, self.widths = config.inputs, config.widths
        compressed = 0
        self.projections = nn.ModuleDict()
        for name, width in zip(config.inputs, config.widths, strict=True):
            if width > config.projection:
                self.projections[name] = nn.Linear(width, config.projection)
            compressed += min(width, config.projection)
        self.enter = nn.Linear(compressed, config.width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, config.width))
            for _ in range(config.depth - 1)
        )
        self.leave = nn.Linear(config.width, 2)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, standard: Mapping[str, Tensor]) -> Tensor:
        """Return outputs [N, 2] of the standardised inputs."""
        parts = [
            self._drop(self.projections[name](standard[name]))
            if name in self.projections
            else standard[name]
            for name in self.inputs
        ]
        state_NC = nn.functional.gelu(self.enter(torch.cat(parts, dim=1)))
        for block in self.blocks:
            state_NC = state_NC + self._drop(nn.functional.gelu(block(state_NC)))
        logits_N2: Tensor = self.leave(self._drop(state_NC))
        return logits_N2

    def projection(self) -> tuple[Tensor, Tensor]:
        """Return all projections as one linear map of the inputs side by side: [P, C] and [P].

        Inputs that are not projected pass through it unchanged.
        """
        dtype = self.enter.weight.dtype
        weights: list[Tensor] = []
        biases: list[Tensor] = []
        for name, width in zip(self.inputs, self.widths, strict=True):
            if name in self.projections:
                weights.append(self.projections.get_parameter(f"{name}.weight"))
                biases.append(self.projections.get_parameter(f"{name}.bias"))
            else:
                weights.append(torch.eye(width, dtype=dtype))
                biases.append(torch.zeros(width, dtype=dtype))
        joined: Tensor = torch.block_diag(*weights)  # type: ignore[no-untyped-call]
        return joined, torch.cat(biases)

    def _drop(self, value_NC: Tensor) -> Tensor:
        return self.dropout(value_NC) if self.training else value_NC
