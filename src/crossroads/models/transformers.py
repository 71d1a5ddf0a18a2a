"""A CausalLM on a Hugging Face causal language model: the reference for correctness, CPU and GPU.

Rows are read together (`slot_cache`) where that gives what reading them one by one gives
(`row_cache`); a probe at construction finds out. Shapes: N positions, V vocabulary, H hidden size,
E embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossroads.errors import EngineError, RequestError
from crossroads.models.base import (
    KVCache,
    StepOutput,
    Want,
    check_extend,
    check_length,
    concatenate,
    summarise,
)
from crossroads.models.hf_model import (
    context_length_of,
    count_parameters,
    decoder_of,
    eos_ids_of,
    head_of,
)
from crossroads.models.hf_source import find_source, first_line
from crossroads.models.hf_tokenizer import HfTokenizer
from crossroads.models.row_cache import CacheStore, RowRead, RowStore, refuse_uncroppable
from crossroads.models.slot_cache import SlotStore
from crossroads.models.slot_masks import why_not_batched
from crossroads.models.slot_probe import why_rows_differ
from crossroads.types import ModelInfo

_HEAD_BLOCK = 64  # positions per head call: 64 x 152k float32 logits are 39 MB
_PROBE_TOLERANCE = 0.05  # of the largest logit; a scale or a cap that we missed is far beyond it
_NOT_RUNNABLE = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


class TransformersCache:
    """One row of a TransformersLM: a length, and a place in its store of keys and values."""

    def __init__(self, owner: TransformersLM, place: Any, length: int = 0) -> None:
        """Take `place`, which holds `length` tokens."""
        self._owner: TransformersLM | None = owner
        self._place = place
        self._length = length

    @property
    def length(self) -> int:
        """Tokens held."""
        return self._length

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        check_length(self, length)
        if self._owner is not None:
            self._owner._store.cut(self._place, length)
        self._length = length

    def release(self) -> None:
        """Give the place back."""
        owner, place = self._owner, self._place
        self._owner = self._place = None
        self._length = 0
        if owner is not None:
            owner._alive.discard(self)
            owner._store.free(place)


class TransformersLM:
    """A CausalLM over a loaded `AutoModelForCausalLM`, in the model's own number type.

    Chunked and unchunked reading, and a row alone and beside others, agree to about 1e-5 of the
    largest logit in float32; half types are coarser. Models whose cache cannot be cropped
    (recurrent, linear attention) are refused, as are models whose logits are not a known function
    of the hidden state.
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
        batched: bool = True,
    ) -> None:
        """Wrap `model`, which is put in evaluation mode.

        `batched=False` reads rows one by one: slower, less memory for rows of different lengths,
        and a row's outputs are the same to the last bit whatever is beside it.

        Raises:
            EngineError: the model's cache or its head is of a kind that this engine cannot drive.
        """
        self._alive: set[TransformersCache] = set()
        self._model = model.eval()
        self._config = model.config.get_text_config(decoder=True)
        self._name = name
        refuse_uncroppable(name, model, self._config)
        self._decoder = decoder_of(model)
        self._head: Any = head_of(model, self._config)
        self._embedding = model.get_input_embeddings()
        self._device: torch.device = self._embedding.weight.device
        self._store: CacheStore = RowStore(self._config, self._device)
        vocab_size = int(self._embedding.weight.shape[0])
        try:
            hidden_size = self._probe(vocab_size)
        except _NOT_RUNNABLE as error:
            raise EngineError(f"{name} cannot be run: {first_line(error)}") from error
        parameters, active = count_parameters(model, self._config)
        self._info = ModelInfo(
            name=name,
            engine="transformers",
            fingerprint=fingerprint,
            parameters=parameters,
            active_parameters=active,
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            context_length=context_length_of(name, self._config, context_length),
            max_rows=max_rows,
            eos_ids=eos_ids_of(model),
            dtype=str(model.dtype).removeprefix("torch."),
            tokenizer_fingerprint=tokenizer_fingerprint,
        )
        self._why_not_batched = self._try_slots() if batched else "it was asked for"

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
        batched: bool = True,
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
            batched=batched,
        )

    @property
    def batched(self) -> bool:
        """Whether one forward pass reads many rows."""
        return self._store.batched

    @property
    def why_not_batched(self) -> str | None:
        """Why rows are read one by one; None if they are not."""
        return self._why_not_batched

    @property
    def info(self) -> ModelInfo:
        """What the model is."""
        return self._info

    def new_cache(self) -> TransformersCache:
        """Return an empty cache."""
        self._check_room()
        return self._admit(self._store.new())

    def fork(self, cache: KVCache, length: int) -> TransformersCache:
        """Return a new cache with the first `length` tokens of `cache`, shared or copied.

        Raises:
            EngineError: as CausalLM says, or there is no memory for the copy.
        """
        source = self._own(cache)
        check_length(source, length)
        self._check_room()
        try:
            place = self._store.fork(source._place, length)
        except RuntimeError as error:  # torch's out of memory is one
            raise EngineError(
                f"{self._info.name} failed while copying a row: {first_line(error)}; "
                "nothing was changed, try fewer or shorter rows"
            ) from error
        return self._admit(place, length)

    def _check_room(self) -> None:
        self._check_open()
        if len(self._alive) >= self._info.max_rows:
            raise EngineError(f"all {self._info.max_rows} rows of {self._info.name} are in use")

    def _admit(self, place: Any, length: int = 0) -> TransformersCache:
        cache = TransformersCache(self, place, length)
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
        counts = want.counts(new_tokens)
        reads = [
            RowRead(row._place, row.length, tokens, count)
            for row, tokens, count in zip(rows, new_tokens, counts, strict=True)
        ]
        try:
            with torch.inference_mode():
                hidden_NH = self._store.read(self._decoder, reads)
                blocks_NH = torch.split(hidden_NH, _HEAD_BLOCK)
                outputs = [self._outputs(block_NH, want) for block_NH in blocks_NH]
        except BaseException as error:
            for row in rows:
                self._store.cut(row._place, row.length)
            if not isinstance(error, Exception):
                raise
            raise EngineError(
                f"{self._info.name} failed while reading tokens: {first_line(error)}; "
                "nothing was changed, try fewer or shorter rows"
            ) from error
        for row, tokens in zip(rows, new_tokens, strict=True):
            row._length += len(tokens)
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
        self._store.clear()
        self._model = self._decoder = self._head = self._embedding = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

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
        ids = [1, vocab_size // 3, vocab_size // 2]
        mine, theirs = self._store.new(), self._store.new()
        with torch.inference_mode():
            for start, stop in pairwise((0, 2, 3)):
                part_1N = torch.tensor([ids[start:stop]], device=self._device)
                read = RowRead(mine, start, ids[start:stop], 1)
                hidden_1H = self._store.read(self._decoder, [read])
                reply = self._model(input_ids=part_1N, past_key_values=theirs, use_cache=True)
            expected_V = reply.logits[0, -1].float()
            difference = (self._head(hidden_1H)[0] - expected_V).abs().max().item()
        if not difference <= _PROBE_TOLERANCE * expected_V.abs().max().item():
            raise EngineError(
                f"{self._name}'s logits are not its head applied to its last hidden state (model "
                f"type {self._config.model_type}); this engine does not know what else it does"
            )
        if theirs.get_seq_length() != len(ids):
            raise EngineError(f"{self._name} does not use the cache it is given; it cannot be run")
        return int(hidden_1H.shape[1])

    def _try_slots(self) -> str | None:
        """Read rows together from now on; otherwise return why that cannot be done."""
        reason = why_not_batched(self._config)
        if reason is not None:
            return reason
        try:
            differ = why_rows_differ(
                self._slots(max_rows=3, context_length=64),
                self._store,
                self._decoder,
                self._head,
                self._config,
                self._info.vocab_size,
            )
        except _NOT_RUNNABLE as error:
            kind = self._config.model_type
            return f"{kind} does not take rows of several lengths: {first_line(error)}"
        if differ is None:
            self._store = self._slots(self._info.max_rows, self._info.context_length)
        return differ

    def _slots(self, max_rows: int, context_length: int) -> SlotStore:
        return SlotStore(
            self._config,
            self._device,
            self._model.dtype,
            max_rows=max_rows,
            context_length=context_length,
        )
