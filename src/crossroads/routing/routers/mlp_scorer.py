"""A trained `MLPNetwork` as it scores one row, in between two steps of a model.

The model leaves nothing in the processor's caches, so there every operation and every module's
call costs more than its arithmetic. The same sums in half the time: all projections are one
matrix, and nothing asks whether it is training.

Shapes: N positions, C all input features side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear

from crossroads.routing.routers.mlp import MLPMember, MLPNetwork


class MLPScorer:
    """Callable: features to the logits of a trained network, in its precision."""

    def __init__(self, network: MLPNetwork) -> None:
        """Share the weights of `network`, which is not to be trained further."""
        self._inputs = network.config.inputs
        self._mean_C, self._scale_C = network.mean_C, network.scale_C
        self._members = [_logits(member) for member in network.members]

    def __call__(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return logits [N]."""
        value_NC = torch.cat([features[name] for name in self._inputs], dim=1)
        value_NC = ((value_NC - self._mean_C) / self._scale_C).clamp_(-10.0, 10.0)
        outputs = [logits(value_NC) for logits in self._members]
        output_N2 = outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(dim=0)
        return output_N2[:, 0]


def _logits(member: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the function from standardised inputs [N, C] to one perceptron's outputs [N, 2]."""
    assert isinstance(member, MLPMember)
    project, enter, leave = member.projection(), _weights(member.enter), _weights(member.leave)
    blocks = [_block(*block.children()) for block in member.blocks]

    def logits(value_NC: Tensor) -> Tensor:
        state = gelu(linear(linear(value_NC, *project), *enter))
        for block in blocks:
            state = state + block(state)
        return linear(state, *leave)

    return logits


def _block(norm: nn.Module, layer: nn.Module) -> Callable[[Tensor], Tensor]:
    assert isinstance(norm, nn.LayerNorm)
    shape, eps = norm.normalized_shape, norm.eps
    scale, shift = _weights(norm)
    weight, bias = _weights(layer)
    return lambda state: gelu(linear(layer_norm(state, shape, scale, shift, eps), weight, bias))


def _weights(layer: nn.Module) -> tuple[Tensor, Tensor]:
    return layer.get_parameter("weight"), layer.get_parameter("bias")
