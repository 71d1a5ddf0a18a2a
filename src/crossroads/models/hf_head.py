"""The two ends of a model without what lies between: its output head and its input embedding.

For a model whose decoder runs elsewhere and tells the states after its final norm: a few hundred
megabytes here make whole distributions of them.
Shapes: N positions, V vocabulary, H hidden size, E embedding size.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossroads.errors import EngineError
from crossroads.models.hf_model import Head, decoder_of, head_of
from crossroads.models.hf_source import HfSource, find_source, load_errors

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


@dataclass(frozen=True, slots=True)
class ModelEnds:
    """The output head, the input embedding [V, E], and what the final norm multiplies by [H].

    norm_H is None where the final norm is no RMSNorm.
    """

    head: Head
    embedding_VE: Tensor
    norm_H: Tensor | None


def load_ends(path_or_repo: str | Path) -> ModelEnds:
    """Read the ends of a model in a folder or hub repository of safetensors; nothing else is read.

    Raises:
        WeightsError: there is no such folder or repository, or it cannot be reached.
        EngineError: the weights are not where a model of its kind has them.
    """
    source = find_source(path_or_repo)
    with load_errors(source):
        import transformers  # noqa: PLC0415

        revision = source.revision or "main"
        config = transformers.AutoConfig.from_pretrained(source.location, revision=revision)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        reader = _Reader(source, model)
        head, output = head_of(model, config), model.get_output_embeddings()
        embedding_VE = reader.tensor(model.get_input_embeddings().weight)
        weight_VH = reader.tensor(output.weight)
        bias_V = None if output.bias is None else reader.tensor(output.bias)
        module = partial(_linear, weight_VH, bias_V)
        return ModelEnds(
            Head(module, head.scale, head.softcap), embedding_VE, _norm_weight(reader, model)
        )


def _linear(weight_VH: Tensor, bias_V: Tensor | None, hidden_NH: Tensor) -> Tensor:
    return torch.nn.functional.linear(hidden_NH.to(weight_VH.dtype), weight_VH, bias_V)


def _norm_weight(reader: _Reader, model: Any) -> Tensor | None:
    """Return what the final RMSNorm multiplies by, as the norm itself tells it."""
    norm = getattr(decoder_of(model), "norm", None)
    if norm is None or "RMSNorm" not in type(norm).__name__ or not hasattr(norm, "weight"):
        return None
    weight_H = reader.tensor(norm.weight).float()
    norm = norm.to_empty(device="cpu").float()
    with torch.no_grad():
        norm.weight.copy_(weight_H)
        # A row of ones has a root mean square of 1: what comes out is the factor, be it w or 1 + w.
        factor_H: Tensor = norm(torch.ones(1, len(weight_H)))[0]
    return factor_H


class _Reader:
    """Finds a module's tensors in the files of a checkpoint."""

    def __init__(self, source: HfSource, model: Any) -> None:
        self._source = source
        self._parameters = list(model.named_parameters(remove_duplicate=False))

    def tensor(self, parameter: Any) -> Tensor:
        """Return what the files hold for a parameter, under any of its names.

        Where both ends of a model share a matrix, the files have it once.
        """
        from safetensors import safe_open  # noqa: PLC0415

        wanted = [name for name, known in self._parameters if known is parameter]
        for name in wanted:
            path = self._file_of(name)
            if path is not None:
                with safe_open(path, framework="pt") as file:
                    found: Tensor = file.get_tensor(name)
                return found
        raise EngineError(
            f"{self._source.name} has no tensor {' or '.join(wanted)} in its safetensors; give the "
            "folder of its original weights"
        )

    def _file_of(self, name: str) -> Path | None:
        from safetensors import safe_open  # noqa: PLC0415

        index = self._get(_INDEX)
        if index is not None:
            files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return self._get(files[name]) if name in files else None
        single = self._get(_SINGLE)
        if single is None:
            return None
        with safe_open(single, framework="pt") as file:
            return single if name in file.keys() else None  # noqa: SIM118  no mapping

    def _get(self, file: str) -> Path | None:
        """Return a file of the model, fetched from the hub if that is where it is."""
        folder = Path(self._source.location)
        if folder.is_dir():
            return folder / file if (folder / file).is_file() else None
        from huggingface_hub import hf_hub_download  # noqa: PLC0415
        from huggingface_hub.errors import EntryNotFoundError  # noqa: PLC0415

        try:
            return Path(
                hf_hub_download(self._source.location, file, revision=self._source.revision)
            )
        except EntryNotFoundError:
            return None
