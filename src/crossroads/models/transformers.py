"""A CausalLM on a Hugging Face causal language model: the reference for correctness, CPU and GPU.

Every row has a DynamicCache of its own, so that a crop is a row's own affair, and rows are read
one after another: a row's outputs cannot depend on its neighbours, and nothing is gained by
batching. Shapes: N positions, V vocabulary, H hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossroads.errors import ConfigError, EngineError, RequestError
from crossroads.models.base import (
    KVCache,
    StepOutput,
    Want,
    check_extend,
    check_length,
    concatenate,
    summarise,
)
from crossroads.models.hf_source import find_source, first_line
from crossroads.models.hf_tokenizer import HfTokenizer
from crossroads.types import ModelInfo

_CHUNK = 512  # tokens per forward pass: bounds the activations of a long row
_HEAD_BLOCK = 64  # positions per head call: 64 x 152k float32 logits are 39 MB
_PROBE_TOLERANCE = 0.05  # of the largest logit; a scale or a cap that we missed is far beyond it

# How a family multiplies what its head returns, by the start of `config.model_type`. The probe at
# construction refuses a model that does something else.
_LOGIT_SCALES: dict[str, Callable[[Any], float | None]] = {
    "cohere": lambda config: getattr(config, "logit_scale", None),
    "granite": lambda config: 1.0 / getattr(config, "logits_scaling", 1.0),
    "hyperclovax": lambda config: getattr(config, "logits_scaling", None),
}


class TransformersCache:
    """One row's keys and values, every layer whole (sliding windows are only masked)."""

    def __init__(self, owner: TransformersLM, layers: Any, length: int = 0) -> None:
        """Take a slot of `owner`; `layers` is a DynamicCache of `length` tokens."""
        self._owner: TransformersLM | None = owner
        self._layers = layers
        self._length = length

    @property
    def length(self) -> int:
        """Tokens held."""
        return self._length

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        check_length(self, length)
        if self._layers is not None:
            _cut(self._layers, length)
        self._length = length

    def release(self) -> None:
        """Give the slot back and free the memory."""
        if self._owner is not None:
            self._owner._alive.discard(self)
        self._owner = self._layers = None
        self._length = 0

    def _read(self, decoder: Any, ids_1N: Tensor) -> Tensor:
        """Append ids and return the hidden states [N, H] after the final norm."""
        output = decoder(input_ids=ids_1N, past_key_values=self._layers, use_cache=True)
        hidden_NH: Tensor = output.last_hidden_state[0]
        self._length += ids_1N.shape[1]
        return hidden_NH

    def _restore(self, length: int) -> None:
        """Undo a read that may have died between two layers."""
        _cut(self._layers, length)
        self._length = length


def _cut(layers: Any, length: int) -> None:
    """Keep `length` tokens of every layer, however many each holds."""
    for layer in layers.layers:
        extra = layer.get_seq_length() - length if hasattr(layer, "get_seq_length") else 0
        if extra > 0:  # crop takes the number to remove, negated; crop(0) would remove nothing
            layer.crop(-extra)


@dataclass(frozen=True, slots=True)
class _Head:
    """From the last hidden state to logits, as the model's own forward pass does it."""

    module: Any
    scale: float
    softcap: float | None

    def __call__(self, hidden_NH: Tensor) -> Tensor:
        logits_NV: Tensor = self.module(hidden_NH).float() * self.scale
        if self.softcap is not None:
            logits_NV = self.softcap * torch.tanh(logits_NV / self.softcap)
        return logits_NV


class TransformersLM:
    """A CausalLM over a loaded `AutoModelForCausalLM`, in the model's own number type.

    Chunked and unchunked reading agree to about 1e-5 of the largest logit in float32; half types
    are coarser. Models whose cache cannot be cropped (recurrent, linear attention) are refused,
    as are models whose logits are not a known function of the hidden state.
    """

    def __init__(
        self,
        model: Any,
        *,
        name: str,
        fingerprint: str,
        tokenizer_fingerprint: str = "",
        max_rows: int = 64,
        context_length: int | None = None,
    ) -> None:
        """Wrap `model`, which is put in evaluation mode.

        Raises:
            EngineError: the model's cache or its head is of a kind that this engine cannot drive.
        """
        self._alive: set[TransformersCache] = set()
        self._model = model.eval()
        self._config = model.config.get_text_config(decoder=True)
        self._name = name
        _refuse_uncroppable(name, model, self._config)
        self._decoder = _decoder_of(model)
        self._head: Any = _head_of(model, self._config)
        self._embedding = model.get_input_embeddings()
        self._device: torch.device = self._embedding.weight.device
        vocab_size = int(self._embedding.weight.shape[0])
        try:
            hidden_size = self._probe(vocab_size)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise EngineError(f"{name} cannot be run: {first_line(error)}") from error
        parameters, active = _count_parameters(model, self._config)
        self._info = ModelInfo(
            name=name,
            engine="transformers",
            fingerprint=fingerprint,
            parameters=parameters,
            active_parameters=active,
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            context_length=_context_length(name, self._config, context_length),
            max_rows=max_rows,
            eos_ids=_eos_ids(model),
            dtype=str(model.dtype).removeprefix("torch."),
            tokenizer_fingerprint=tokenizer_fingerprint,
        )

    @classmethod
    def load(
        cls,
        path_or_repo: str | Path,
        *,
        revision: str | None = None,
        gguf_file: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        context_length: int | None = None,
        max_rows: int = 64,
        trust_remote_code: bool = False,
    ) -> TransformersLM:
        """Load a folder, a repository of the model hub, or a GGUF file in either.

        A GGUF file is unpacked to ordinary tensors, float32 under dtype "auto"; the fingerprint
        is then the file's SHA-256. A repository's is its commit hash, a folder's a hash over
        samples of its weight files (`folder_fingerprint`). The tokenizer must be there too.

        Raises:
            WeightsError: there is no such folder or repository, or it cannot be reached.
            EngineError: a missing package or device, or a model that this engine cannot drive.
        """
        source = find_source(path_or_repo, revision, gguf_file)
        model = source.load_model(dtype, device, trust_remote_code)
        return cls(
            model,
            name=source.name,
            fingerprint=source.fingerprint_of(model),
            tokenizer_fingerprint=HfTokenizer(source.load_tokenizer()).fingerprint,
            max_rows=max_rows,
            context_length=context_length,
        )

    @property
    def info(self) -> ModelInfo:
        """What the model is."""
        return self._info

    def new_cache(self) -> TransformersCache:
        """Return an empty cache."""
        return self._admit(_empty_layers(self._config))

    def fork(self, cache: KVCache, length: int) -> TransformersCache:
        """Return a new cache with the first `length` tokens of `cache`; the tensors are shared.

        Sharing is safe because a layer grows by making new tensors, never in place.
        """
        source = self._own(cache)
        check_length(source, length)
        layers = copy.copy(source._layers)
        layers.layers = [copy.copy(layer) for layer in source._layers.layers]
        _cut(layers, length)
        return self._admit(layers, length)

    def _admit(self, layers: Any, length: int = 0) -> TransformersCache:
        self._check_open()
        if len(self._alive) >= self._info.max_rows:
            raise EngineError(f"all {self._info.max_rows} rows of {self._info.name} are in use")
        cache = TransformersCache(self, layers, length)
        self._alive.add(cache)
        return cache

    def extend(
        self,
        caches: Sequence[KVCache],
        new_tokens: Sequence[Sequence[int]],
        want: Want = Want(),  # noqa: B008
    ) -> StepOutput:
        """Append each row's tokens and return outputs on the CPU; see CausalLM.

        Raises:
            EngineError: the forward pass failed (out of memory, say); every cache is as before.
        """
        self._check_open()
        check_extend(self._info, caches, new_tokens)
        rows = [self._own(cache) for cache in caches]
        before = [row.length for row in rows]
        outputs: list[StepOutput] = []
        counts = want.counts(new_tokens)
        try:
            with torch.inference_mode():
                for row, tokens, count in zip(rows, new_tokens, counts, strict=True):
                    outputs += self._read_row(row, tokens, count, want)
        except BaseException as error:
            for row, length in zip(rows, before, strict=True):
                row._restore(length)
            if not isinstance(error, Exception):
                raise
            raise EngineError(
                f"{self._info.name} failed while reading tokens: {first_line(error)}; "
                "nothing was changed, try fewer or shorter rows"
            ) from error
        return concatenate(outputs, counts)

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Return the rows of the input embedding, as stored (before any scaling by the model)."""
        self._check_open()
        wrong = [i for i in token_ids if not 0 <= i < self._info.vocab_size]
        if wrong:
            raise RequestError(f"token id {wrong[0]} is outside {self._info.name}'s vocabulary")
        ids_N = torch.tensor([int(i) for i in token_ids], dtype=torch.long, device=self._device)
        rows_NE: Tensor = self._embedding.weight.detach()[ids_N].float().cpu()
        return rows_NE

    def close(self) -> None:
        """Free the weights and every cache."""
        for cache in tuple(self._alive):
            cache.release()
        self._model = self._decoder = self._head = self._embedding = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _read_row(
        self, row: TransformersCache, tokens: Sequence[int], count: int, want: Want
    ) -> list[StepOutput]:
        """Read one row chunk by chunk; return its last `count` outputs, block by block."""
        ids_N = torch.tensor([int(token) for token in tokens], device=self._device)
        blocks: list[StepOutput] = []
        skip = len(tokens) - count
        for ids_C in torch.split(ids_N, _CHUNK):
            hidden_NH = row._read(self._decoder, ids_C[None])[skip:]
            skip = max(0, skip - len(ids_C))
            blocks += [
                self._outputs(part_NH, want)
                for part_NH in torch.split(hidden_NH, _HEAD_BLOCK)
                if len(part_NH)
            ]
        return blocks

    def _outputs(self, hidden_NH: Tensor, want: Want) -> StepOutput:
        out = summarise(
            self._head(hidden_NH), [len(hidden_NH)], want, hidden_NH if want.hidden else None
        )
        moved: dict[str, Any] = {}
        for field in fields(out):
            value = getattr(out, field.name)
            moved[field.name] = value.cpu() if isinstance(value, Tensor) else value
        return StepOutput(**moved)

    def _own(self, cache: KVCache) -> TransformersCache:
        if not isinstance(cache, TransformersCache):
            raise TypeError(f"not a cache of this engine: {type(cache).__name__}")
        if cache not in self._alive:
            raise ValueError(f"a cache that was released, or is not {self._info.name}'s")
        return cache

    def _check_open(self) -> None:
        if self._model is None:
            raise EngineError(f"{self._info.name} was closed; load it again")

    def _probe(self, vocab_size: int) -> int:
        """Check two short reads against the model's own logits and return the hidden size.

        What a family does to its logits is not declared anywhere; this finds what the table of
        scales misses, and models that ignore the cache they are given.
        """
        ids_1N = torch.tensor([[1, vocab_size // 3, vocab_size // 2]], device=self._device)
        mine = TransformersCache(self, _empty_layers(self._config))
        theirs = _empty_layers(self._config)
        with torch.inference_mode():
            for start, stop in pairwise((0, 2, 3)):
                part_1N = ids_1N[:, start:stop]
                hidden_NH = mine._read(self._decoder, part_1N)
                reply = self._model(input_ids=part_1N, past_key_values=theirs, use_cache=True)
            expected_V = reply.logits[0, -1].float()
            difference = (self._head(hidden_NH[-1:])[0] - expected_V).abs().max().item()
        if not difference <= _PROBE_TOLERANCE * expected_V.abs().max().item():
            raise EngineError(
                f"{self._name}'s logits are not its head applied to its last hidden state (model "
                f"type {self._config.model_type}); this engine does not know what else it does"
            )
        if theirs.get_seq_length() != ids_1N.shape[1]:
            raise EngineError(f"{self._name} does not use the cache it is given; it cannot be run")
        return int(hidden_NH.shape[1])


def _empty_layers(config: Any) -> Any:
    """Return an empty cache; a sliding layer keeps its whole row, so that it can be cropped.

    The model's mask hides what is outside the window either way; the price is memory.
    """
    from transformers import cache_utils  # noqa: PLC0415

    cache = cache_utils.DynamicCache(config=config)
    cache.layers = [
        cache_utils.DynamicLayer()
        if type(layer) is cache_utils.DynamicSlidingWindowLayer
        else layer
        for layer in cache.layers
    ]
    return cache


def _refuse_uncroppable(name: str, model: Any, config: Any) -> None:
    good = ("DynamicLayer", "DummyLayer")  # a dummy borrows another layer's keys and values
    try:
        kinds = {type(layer).__name__ for layer in _empty_layers(config).layers}.difference(good)
    except KeyError as error:  # a layer type for which transformers has no cache class
        kinds = {str(error)}
    if not kinds and getattr(model, "_is_stateful", False):
        kinds = {"recurrent state"}
    if kinds:
        raise EngineError(
            f"{name} keeps a state that cannot be cut back to an earlier token "
            f"({', '.join(sorted(kinds))}); use a model with attention layers only"
        )


def _decoder_of(model: Any) -> Any:
    """Return the part of the model that ends in the final norm."""
    decoder = model.get_decoder()
    return getattr(model, "model", model.base_model) if decoder is model else decoder


def _head_of(model: Any, config: Any) -> _Head:
    family = config.model_type
    scales = [read(config) for start, read in _LOGIT_SCALES.items() if family.startswith(start)]
    scale = scales[0] if scales else None
    return _Head(
        module=model.get_output_embeddings(),
        scale=1.0 if scale is None else float(scale),
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def _count_parameters(model: Any, config: Any) -> tuple[int, int]:
    """Return all parameters and an estimate of those one token uses.

    Of the routed experts a token uses `num_experts_per_tok` out of all; everything else it uses.
    """
    total = int(model.num_parameters())
    counts = ("num_experts", "num_local_experts", "n_routed_experts")
    experts = next((n for n in (getattr(config, c, None) for c in counts) if n), None)
    chosen = getattr(config, "num_experts_per_tok", None)
    if not experts or not chosen:
        return total, total
    routed = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    return total, total - routed + routed * int(chosen) // int(experts)


def _context_length(name: str, config: Any, wanted: int | None) -> int:
    if wanted is not None and wanted < 1:
        raise ConfigError(f"context_length must be at least 1, got {wanted}")
    known = getattr(config, "max_position_embeddings", None)
    sizes = [int(size) for size in (known, wanted) if size]
    if not sizes:
        raise ConfigError(f"{name} does not say how long its context is; give context_length")
    return min(sizes)


def _eos_ids(model: Any) -> tuple[int, ...]:
    """Return every end id of the generation config and the config, in that order."""
    ids: list[int] = []
    for config in (getattr(model, "generation_config", None), model.config):
        value = getattr(config, "eos_token_id", None)
        ids += [value] if isinstance(value, int) else list(value or ())
    return tuple(dict.fromkeys(ids))
