"""R2R's networks (Fu et al., arXiv 2505.21600), and its names for them.

One network stands for all of them; they differ in what they read. Each input passes on as it is;
the logits first through a linear map to the width of the hidden state. All of it side by side is
mapped to the first of `hidden_dims`, mapped once more, and passes through one residual block per
entry of `hidden_dims`, x + W2 GELU(W1 LayerNorm(x)). Only what comes after the first map begins
with Kaiming-normal weights; the maps before it keep the framework's initial values.

Shapes: N positions, W an input's width, D all inputs side by side, C a block's width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crossroads.errors import RouterError
from crossroads.names import nearest

INPUTS: Mapping[str, str] = {
    "hidden_states": "hidden",
    "token": "token_embedding",
    "logits": "top_logits",
}
"""R2R's names of its inputs, and ours."""
_LOGITS = "top_logits"


@dataclass(frozen=True, slots=True)
class R2RNetworkConfig:
    """Architecture; the defaults are those of R2R's shipped training configs.

    inputs: feature names. widths: their widths, in the same order. hidden_dims: one residual block
    each. normalize_input: LayerNorm of each input, softmax of the logits. logits_size: how many of
    the largest logits are read. window: parts of the logits whose softmax is taken apart.
    """

    inputs: tuple[str, ...]
    widths: tuple[int, ...]
    hidden_dims: tuple[int, ...] = (1024,) * 6
    expansion_factor: int = 4
    dropout_rate: float = 0.1
    normalize_input: bool = False
    logits_size: int = 100
    window: int = 1

    def __post_init__(self) -> None:
        """Refuse sizes that make no network.

        Raises:
            RouterError: names the field.
        """
        if not self.inputs or len(self.inputs) != len(self.widths):
            raise RouterError(f"router needs one width per input, got {self.inputs} {self.widths}")
        if not self.hidden_dims or min(self.hidden_dims) < 1:
            raise RouterError(f"router hidden_dims must be >= 1, got {self.hidden_dims}")
        if self.expansion_factor < 1:
            raise RouterError(f"router expansion_factor must be >= 1, got {self.expansion_factor}")
        if not 0 <= self.dropout_rate < 1:
            raise RouterError(f"router dropout_rate must be in [0, 1), got {self.dropout_rate}")
        if _LOGITS in self.inputs and not 1 <= self.logits_size <= self.width(_LOGITS):
            raise RouterError(
                f"router logits_size must be in [1, {self.width(_LOGITS)}], got {self.logits_size}"
            )
        if self.window < 1 or self.logits_size % self.window:
            raise RouterError(f"router window must divide logits_size, got {self.window}")

    def width(self, name: str) -> int:
        """Return the width of an input."""
        return self.widths[self.inputs.index(name)]


class R2RNetwork(nn.Module):
    """Any of R2R's networks; sigmoid of the logit is the score.

    R2R never uses statistics of the data. The buffers for them are there so that its network can
    be trained on standardised inputs too; they begin at mean 0 and scale 1, which changes nothing.
    """

    def __init__(self, config: R2RNetworkConfig) -> None:
        """Make an untrained network."""
        super().__init__()
        self.config = config
        for name, width in zip(config.inputs, config.widths, strict=True):
            self.register_buffer(f"mean_{name}", torch.zeros(width))
            self.register_buffer(f"scale_{name}", torch.ones(width))
        self.norms = nn.ModuleDict()
        if config.normalize_input:
            for name in config.inputs:
                if name != _LOGITS:
                    self.norms[name] = nn.LayerNorm(config.width(name))
        first, others = config.hidden_dims[0], [n for n in config.inputs if n != _LOGITS]
        merged = sum(config.width(name) for name in others)
        if _LOGITS in config.inputs:
            # With nothing beside them the logits go straight to the first block's width.
            width = config.width(others[0]) if others else first
            self.logits_projection = nn.Linear(config.logits_size, width)
            merged += width
        if others:
            self.combined_projection = nn.Linear(merged, first)
        self.backbone = _Backbone(config)

    def set_statistics(self, mean: Mapping[str, Tensor], scale: Mapping[str, Tensor]) -> None:
        """Take each input's mean [W] and standard deviation [W] over the training split."""
        for name in self.config.inputs:
            getattr(self, f"mean_{name}").copy_(mean[name])
            getattr(self, f"scale_{name}").copy_(scale[name])

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return logits [N]."""
        parts = [self._part(name, features[name]) for name in self.config.inputs]
        if hasattr(self, "combined_projection"):
            first_NC = self.combined_projection(torch.cat(parts, dim=1))
        else:
            first_NC = parts[0]
        logits_N: Tensor = self.backbone(first_NC)[:, 0]
        return logits_N

    def _part(self, name: str, value_NW: Tensor) -> Tensor:
        value_NW = (value_NW - getattr(self, f"mean_{name}")) / getattr(self, f"scale_{name}")
        if name == _LOGITS:
            value_NW = value_NW[:, : self.config.logits_size]
            if self.config.normalize_input:
                parts = value_NW.chunk(self.config.window, dim=1)
                value_NW = torch.cat([part.softmax(dim=1) for part in parts], dim=1)
            projected_NW: Tensor = self.logits_projection(value_NW)
            return projected_NW
        if name in self.norms:
            normal_NW: Tensor = self.norms[name](value_NW)
            return normal_NW
        return value_NW


class _Backbone(nn.Module):
    """A linear map, residual blocks, a LayerNorm and the last linear map to one logit."""

    def __init__(self, config: R2RNetworkConfig) -> None:
        super().__init__()
        dims = config.hidden_dims
        self.input_projection = nn.Linear(dims[0], dims[0])
        # Each block ends in the next one's width, the last in its own.
        self.blocks = nn.ModuleList(
            _Block(into, out, config.expansion_factor, config.dropout_rate)
            for into, out in zip(dims, (*dims[1:], dims[-1]), strict=True)
        )
        self.output_layer = nn.Sequential(nn.LayerNorm(dims[-1]), nn.Linear(dims[-1], 1))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, state_NC: Tensor) -> Tensor:
        state_NC = self.input_projection(state_NC)
        for block in self.blocks:
            state_NC = block(state_NC)
        logits_N1: Tensor = self.output_layer(state_NC)
        return logits_N1


class _Block(nn.Module):
    def __init__(self, into: int, out: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(into)
        self.mlp = nn.Sequential(
            nn.Linear(into, into * expansion),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(into * expansion, out),
            nn.Dropout(dropout),
        )
        self.dim_change = nn.Linear(into, out) if into != out else nn.Identity()

    def forward(self, state_NC: Tensor) -> Tensor:
        changed_NC: Tensor = self.dim_change(state_NC) + self.mlp(self.layer_norm(state_NC))
        return changed_NC


# R2R's names


@dataclass(frozen=True, slots=True)
class ModelType:
    """A network of R2R by its name there: what it reads, by R2R's names, in its order.

    takes: arguments beyond those that every network takes. hidden_size: where none is given, None
    where it must be.
    """

    inputs: tuple[str, ...]
    takes: tuple[str, ...] = ()
    hidden_size: int | None = 1536

    @property
    def features(self) -> tuple[str, ...]:
        """Our names of what it reads."""
        return tuple(INPUTS[name] for name in self.inputs)


_TOKEN_ARGUMENTS = ("hidden_states_size", "pretrained_model_name", "freeze_lm_head", "topk")
MODEL_TYPES: Mapping[str, ModelType] = {
    "HiddenStatesTokenLMHeadLogitsClassifier": ModelType(
        ("hidden_states", "token", "logits"), (*_TOKEN_ARGUMENTS, "logits_size")
    ),
    "HiddenStatesTokenLMHeadClassifier": ModelType(("hidden_states", "token"), _TOKEN_ARGUMENTS),
    "HiddenStatesLogitsClassifier": ModelType(
        ("hidden_states", "logits"), ("hidden_states_size", "logits_size", "freeze_lm_head")
    ),
    "HiddenStatesClassifier": ModelType(
        ("hidden_states",), ("hidden_states_size", "output_dim"), None
    ),
    "LogitsClassifier": ModelType(("logits",), ("logits_size", "output_dim"), None),
    "MultiHiddenStatesClassifier": ModelType(
        ("hidden_states",), ("hidden_states_size", "output_dim", "neural_window_size"), 1024
    ),
    "MultiLogitsClassifier": ModelType(
        ("logits",), ("logits_size", "output_dim", "neural_window_size"), None
    ),
}
_NO_FORWARD = "R2R's class has no forward pass, so R2R cannot train it either"
REFUSED_TYPES: Mapping[str, str] = {
    "HiddenStatesClassifierWithLMHead": (
        "it trains a copy of the small model's whole output matrix, which no dataset holds; "
        "LogitsClassifier reads what the unchanged matrix gives"
    ),
    "HiddenStatesTokenClassifierWithLMHead": "R2R's class raises NotImplementedError",
    "MultiClassLogitsClassifier": _NO_FORWARD,
    "MultiClassHiddenStatesClassifier": _NO_FORWARD,
    "MultiClassHiddenStatesClassifierWithLMHead": _NO_FORWARD,
}
COMMON_ARGUMENTS = (
    "hidden_dims", "expansion_factor", "dropout_rate", "use_position_embedding",
    "max_position_embeddings", "normalize_input",
)  # fmt: skip
_CLASS_DEFAULTS: Mapping[str, Any] = {
    "hidden_dims": (256, 512, 256),
    "expansion_factor": 4,
    "dropout_rate": 0.3,
    "normalize_input": False,
    "logits_size": 100,
}
"""What R2R's classes take where nothing is said; its shipped configs say otherwise."""


def find_type(name: str) -> tuple[str, ModelType]:
    """Return R2R's own spelling of a model type's name, and the type; case does not matter.

    Raises:
        RouterError: unknown, or one that cannot be trained.
    """
    known = {own.lower(): own for own in (*MODEL_TYPES, *REFUSED_TYPES)}
    own = known.get(name.lower())
    if own is None:
        raise RouterError(f"unknown R2R model type {name!r}; {nearest(name, MODEL_TYPES)}")
    if own in REFUSED_TYPES:
        raise RouterError(f"R2R's model type {own} cannot be used: {REFUSED_TYPES[own]}")
    return own, MODEL_TYPES[own]


def network_settings(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of R2RNetworkConfig, other than inputs and widths, that R2R would use.

    Raises:
        RouterError: a type or an argument that cannot be used.
    """
    own, kind = find_type(name)
    if arguments.get("use_position_embedding"):
        raise RouterError(
            "use_position_embedding cannot be used: in R2R it makes a matrix of a batch's vector "
            "of logits, and the loss refuses it; set it to false"
        )
    outputs = arguments.get("output_dim", 1)
    if outputs != 1:
        raise RouterError(f"output_dim must be 1 for a binary router, got {outputs}")
    values = {key: arguments.get(key, default) for key, default in _CLASS_DEFAULTS.items()}
    values["hidden_dims"] = tuple(values["hidden_dims"])
    if "neural_window_size" in kind.takes:
        values["window"] = arguments.get("neural_window_size", 3)
        if not values["normalize_input"] or own == "MultiHiddenStatesClassifier":
            if values["normalize_input"] and values["window"] != 1:
                raise RouterError(
                    f"{own} with normalize_input fails in R2R unless neural_window_size is 1"
                )
            values["window"] = 1  # the window matters to the normalisation alone
    return values
