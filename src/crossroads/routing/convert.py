"""From R2R's pickled router to our folder, once; nothing in the pickle is executed.

R2R writes two files: `NAME.pt` without the token embeddings and `NAME_all.pt` with them. Ours never
holds them: they are the small model's own, looked up there.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossroads.artifacts import sha256_file
from crossroads.errors import RouterError
from crossroads.names import nearest
from crossroads.provenance import provenance
from crossroads.routing.checkpoint import RouterCard, SmallModelId, save_router
from crossroads.routing.features import FEATURES
from crossroads.routing.policy import check_threshold
from crossroads.routing.routers.neural import NeuralRouter
from crossroads.routing.routers.r2r import (
    COMMON_ARGUMENTS,
    ModelType,
    R2RNetwork,
    R2RNetworkConfig,
    find_type,
    network_settings,
)

_EMBEDDINGS = "token_embeddings.weight"
_FALLBACK_VOCABULARY = 50257
_CHECKED_ROWS = 256
_WITHOUT_EFFECT = ("dtype",)  # old files have it; the state says the same
_RANDOM = (
    "R2R takes random token embeddings where it cannot load the small model, and a router trained "
    "with those fits no model"
)
ARCHITECTURE = "r2r"


@dataclass(frozen=True, slots=True)
class R2RCheckpoint:
    """What R2R's file holds. threshold: None where it was never chosen."""

    path: Path
    model_type: str
    arguments: Mapping[str, Any]
    threshold: float | None
    tensors: Mapping[str, Tensor]

    @property
    def kind(self) -> ModelType:
        """What the model type reads."""
        return find_type(self.model_type)[1]

    @property
    def hidden_size(self) -> int | None:
        """The hidden size that it was made for; None for one that reads logits alone."""
        if "hidden_states_size" not in self.kind.takes:
            return None
        size = self.arguments.get("hidden_states_size", self.kind.hidden_size)
        return None if size is None else int(size)


def read_checkpoint(path: Path) -> R2RCheckpoint:
    """Return what R2R's `save_model` wrote to `path`, read as tensors and plain values alone.

    Raises:
        RouterError: no such file, more in it than that, or not R2R's layout.
    """
    if not path.is_file():
        raise RouterError(f"no R2R checkpoint at {path}; give the .pt file that its training wrote")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RouterError(
            f"{path} is not a checkpoint of plain tensors, or is damaged ({first}); it was not "
            "executed; give the file that R2R's training wrote at its end"
        ) from error
    if not isinstance(content, dict):
        raise RouterError(f"{path} holds a {type(content).__name__}, not R2R's checkpoint")
    for key, kind in (("model_type", str), ("init_args", dict), ("state_dict", dict)):
        if not isinstance(content.get(key), kind):
            raise RouterError(f"{path} has no {key!r} as R2R's checkpoints have; it cannot be read")
    common = content.get("common_args") or {}
    if not isinstance(common, dict):
        raise RouterError(f"{path} has no 'common_args' as R2R's checkpoints have")
    checkpoint = R2RCheckpoint(
        path,
        find_type(content["model_type"])[0],
        content["init_args"],
        common.get("threshold"),
        content["state_dict"],
    )
    _check_content(checkpoint, common.get("input_type"))
    return checkpoint


def _check_content(checkpoint: R2RCheckpoint, reads: object) -> None:
    """Refuse what the network cannot be, or cannot be known, of what the file says."""
    path, threshold = checkpoint.path, checkpoint.threshold
    if threshold is not None and not (
        isinstance(threshold, float | int) and math.isfinite(threshold)
    ):
        raise RouterError(f"{path} has the threshold {threshold!r}, which is not a number")
    for name, value in checkpoint.tensors.items():
        if not isinstance(value, Tensor) or not bool(torch.isfinite(value).all()):
            raise RouterError(f"{path} has weights {name!r} that are not finite numbers")
    known = (*COMMON_ARGUMENTS, *checkpoint.kind.takes, *_WITHOUT_EFFECT)
    for name in checkpoint.arguments:
        if name not in known:
            raise RouterError(
                f"{path} has the argument {name!r}, unknown for R2R's {checkpoint.model_type}; "
                f"{nearest(name, known)}"
            )
    wanted = checkpoint.kind.inputs
    if isinstance(reads, list | tuple) and set(reads) != set(wanted):
        raise RouterError(
            f"{path} says that it reads {', '.join(map(str, reads))}, but R2R's "
            f"{checkpoint.model_type} reads {', '.join(wanted)}"
        )


def convert_r2r_checkpoint(
    path: Path,
    small: SmallModelId,
    out: Path,
    *,
    threshold: float | None = None,
    embed: Callable[[Sequence[int]], Tensor] | None = None,
    large_name: str = "unknown",
    large_fingerprint: str = "unknown (not recorded in R2R's format)",
    pair: str = "imported",
) -> NeuralRouter:
    """Write R2R's router at `path` as the router folder `out` and return the router.

    `small` is the model that it is for; `threshold` stands in for the checkpoint's own. Token
    embeddings in the checkpoint are left out: they are the small model's own. `embed`, the model's
    lookup, proves it; without it R2R's word for it is taken where it says that it froze them.

    Raises:
        RouterError: what does not fit, by name.
    """
    checkpoint = read_checkpoint(path)
    chosen = checkpoint.threshold if threshold is None else threshold
    if chosen is None:
        raise RouterError(f"{path} has no threshold; choose one for it and give it")
    config = _network_config(checkpoint, small)
    left_out = _check_embeddings(checkpoint, small.vocab_size, embed)
    network = R2RNetwork(config)
    _load(network, checkpoint)
    router = NeuralRouter(ARCHITECTURE, network)
    card = RouterCard(
        small=small,
        large_name=large_name,
        large_fingerprint=large_fingerprint,
        pair=pair,
        threshold=check_threshold(chosen),
        calibration={"source": "R2R's checkpoint" if threshold is None else "given"},
        provenance=provenance(
            converted_from=path.name,
            sha256=sha256_file(path),
            model_type=checkpoint.model_type,
            token_embeddings=left_out,
        ),
    )
    save_router(out, router, card)
    return router


def _network_config(checkpoint: R2RCheckpoint, small: SmallModelId) -> R2RNetworkConfig:
    wanted = checkpoint.hidden_size
    if wanted is not None and wanted != small.hidden_size:
        raise RouterError(
            f"{checkpoint.path} is for hidden size {wanted}, {small.name} has {small.hidden_size}; "
            "give the small model that it was trained for"
        )
    inputs = checkpoint.kind.features
    return R2RNetworkConfig(
        inputs=inputs,
        widths=tuple(FEATURES[name].width(small.hidden_size) for name in inputs),
        **network_settings(checkpoint.model_type, checkpoint.arguments),
    )


def _check_embeddings(
    checkpoint: R2RCheckpoint,
    vocab_size: int,
    embed: Callable[[Sequence[int]], Tensor] | None,
) -> str:
    """Return what became of the token embeddings, after they were found to be the model's own."""
    rows_VE, reads = checkpoint.tensors.get(_EMBEDDINGS), checkpoint.kind.inputs
    if rows_VE is None:
        if checkpoint.arguments.get("freeze_lm_head", False) or "token" not in reads:
            return "none in the checkpoint; the small model's own are read"
        return (
            "trained (freeze_lm_head is false), but not in this file; the small model's own are "
            "read, as R2R does when it loads it"
        )
    width, size = rows_VE.shape[-1], checkpoint.hidden_size
    if width != size or (len(rows_VE) == _FALLBACK_VOCABULARY != vocab_size):
        raise RouterError(
            f"the token embeddings in {checkpoint.path} are {len(rows_VE)} of size {width}, not "
            f"the small model's (hidden size {size}, vocabulary {vocab_size}); {_RANDOM}"
        )
    if embed is None:
        if not checkpoint.arguments.get("freeze_lm_head", False):
            raise RouterError(
                f"{checkpoint.path} holds token embeddings that were trained (freeze_lm_head is "
                "false), and a router folder reads the small model's own; give the small model, so "
                "that the two can be compared"
            )
        return "frozen ones in the checkpoint were left out; the small model's own are read"
    count = min(len(rows_VE), vocab_size)
    ids = range(0, count, max(1, count // _CHECKED_ROWS))
    own_nE = embed(list(ids))
    theirs_nE = rows_VE[list(ids)].float()
    # Half a percent: the two may have gone through different 16-bit formats.
    if own_nE.shape != theirs_nE.shape or not torch.allclose(
        own_nE, theirs_nE, rtol=5e-3, atol=5e-3 * float(theirs_nE.abs().mean())
    ):
        raise RouterError(
            f"the token embeddings in {checkpoint.path} are not the small model's; they were "
            "trained, or the router is for another model"
        )
    return "those in the checkpoint are the small model's own, and were left out"


def _load(network: R2RNetwork, checkpoint: R2RCheckpoint) -> None:
    """Put the checkpoint's weights into the network; all of them, and nothing else."""
    found = {_our_name(n, checkpoint): t for n, t in checkpoint.tensors.items() if n != _EMBEDDINGS}
    wanted = network.state_dict()
    statistics = {n for n in wanted if n.startswith(("mean_", "scale_"))}
    missing = sorted(set(wanted) - statistics - set(found))
    if missing:
        raise RouterError(f"{checkpoint.path} has no weights {missing[0]!r}; it is incomplete")
    strange = sorted(set(found) - set(wanted))
    if strange:
        raise RouterError(
            f"{checkpoint.path} has weights {strange[0]!r} that a {checkpoint.model_type} of its "
            "arguments does not have"
        )
    for name, value in found.items():
        if value.shape != wanted[name].shape:
            raise RouterError(_shape_text(checkpoint, name, value, wanted[name]))
    network.load_state_dict(
        {**{n: wanted[n] for n in statistics}, **{n: t.float() for n, t in found.items()}}
    )


def _our_name(name: str, checkpoint: R2RCheckpoint) -> str:
    """Return our name of one of R2R's weights; what stands before the blocks may differ."""
    stem, _, rest = name.partition(".")
    inputs = checkpoint.kind.features
    if stem == "layer_norm":
        return f"norms.{inputs[0]}.{rest}"
    if stem == "layer_norm_hidden_states":
        return f"norms.hidden.{rest}"
    if stem == "layer_norm_token":
        return f"norms.token_embedding.{rest}"
    if stem == "hidden_states_projection":
        return f"combined_projection.{rest}"
    return name


def _shape_text(checkpoint: R2RCheckpoint, name: str, value: Tensor, wanted: Tensor) -> str:
    text = (
        f"{checkpoint.path}: {name} has shape {list(value.shape)}, and {list(wanted.shape)} is "
        "what its arguments say"
    )
    dims = checkpoint.arguments.get("hidden_dims", (0,))
    narrower = name == "combined_projection.weight" and "token" in checkpoint.kind.inputs
    if narrower and wanted.shape[1] - value.shape[1] == (checkpoint.hidden_size or 0) - dims[0]:
        text += f"; {_RANDOM}"
    return text
