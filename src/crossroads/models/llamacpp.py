"""A CausalLM on llama.cpp: GGUF files, fastest on a CPU, many ragged rows in one batch.

Every row is a llama.cpp sequence of one context, so one decode reads any subset of the rows at
once. This file uses the C functions that llama-cpp-python declares, not its `Llama` class, which
has one sequence. Shapes: N output positions, V vocabulary, H hidden size, E embedding size.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossroads.artifacts import sha256_file
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
from crossroads.models.gguf_rows import TensorRows
from crossroads.models.gguf_tokenizer import GgufTokenizer
from crossroads.models.llamacpp_native import (
    ContextSize,
    NativeModel,
    default_threads,
    free_context,
    open_context,
    refuse_uncroppable,
)
from crossroads.types import ModelInfo

FLOAT_TOLERANCE = 1e-4
"""Largest difference of a logit between two chunkings, for float32 weights.

A matrix product adds in another order for another number of columns.
"""

QUANTISED_TOLERANCE = 1.0
"""Largest difference of any of V logits between two chunkings, for quantised weights.

llama.cpp rounds the activations to 8 bits in blocks before it multiplies, and a difference in the
last bit of a float can move such a rounding by one. On Qwen2.5-Coder-0.5B q4_k_m (logits with a
standard deviation of 1.9, hidden states of 5.9), 48 tokens read one by one differ from one prefill
by 0.6 at most over every id of every position (root mean square 0.08; hidden states 1.8 and 0.15);
the best token's log-probability by 0.09 at most and 0.009 at the median position. Chunks of 8 gave
the prefill's numbers exactly; a row read beside others differed from the row alone by 0.3 to 0.4.
"""

_HEAD_BLOCK = 64  # positions summarised at a time: 64 x 152k float32 logits are 39 MB


class _Entry(NamedTuple):
    """One token of a llama.cpp batch."""

    token: int
    position: int
    slot: int
    output: bool


class LlamaCppCache:
    """One row: a sequence slot of the context."""

    def __init__(self, owner: LlamaCppLM, slot: int) -> None:
        """Take slot `slot` of `owner`."""
        self._owner: LlamaCppLM | None = owner
        self._slot = slot
        self._length = 0

    @property
    def length(self) -> int:
        """Tokens held."""
        return self._length

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        check_length(self, length)
        if self._owner is not None and length < self._length:
            self._owner._cut(self._slot, length)
        self._length = length

    def release(self) -> None:
        """Give the slot back and free its cells."""
        if self._owner is not None:
            self._owner._take_back(self._slot)
        self._owner = None
        self._length = 0


class LlamaCppLM:
    """A CausalLM over one GGUF file. One thread at a time may call it.

    How far two chunkings may differ: `FLOAT_TOLERANCE`, `QUANTISED_TOLERANCE`. Models that cannot
    crop (recurrent and hybrid ones) are refused.
    """

    def __init__(self, native: NativeModel, info: ModelInfo, size: ContextSize) -> None:
        """Open a context over `native`; `load` is the way in."""
        self._native = native
        self._llama = native.llama
        self._info = info
        self._batch_tokens = size.batch_tokens
        self._context = open_context(native, size)
        self._batch = self._llama.llama_batch_init(size.batch_tokens, 0, 1)
        # Made after the model's own finalizer, so that it runs before it at exit, too.
        self._free = weakref.finalize(
            self, free_context, self._llama, self._batch, self._context, native
        )
        self._memory = self._llama.llama_get_memory(self._context)
        if not self._memory:
            self.close()
            raise EngineError(f"{info.name} keeps no cache, so it cannot continue a text")
        self._free_slots = list(reversed(range(size.max_rows)))
        self._rows: TensorRows | None = None

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        context_length: int = 4096,
        max_rows: int = 8,
        threads: int | None = None,
        batch_tokens: int = 512,
        fingerprint: str | None = None,
    ) -> LlamaCppLM:
        """Load a GGUF file.

        threads: None means every core that this process may use, and one for tiny models.
        batch_tokens: the most tokens that one call of llama.cpp reads; bounds its output memory.
        fingerprint: the file's SHA-256, if the caller knows it; else the file is read for it.

        The context is no longer than what the model was trained for.

        Raises:
            ConfigError: a size that cannot work.
            EngineError: llama.cpp is missing, is out of memory, or the model cannot crop.
            WeightsError: the file is missing or damaged.
        """
        native = NativeModel(path)
        try:
            refuse_uncroppable(native)
            trained = native.llama.llama_model_n_ctx_train(native.pointer)
            parameters = native.llama.llama_model_n_params(native.pointer)
            size = ContextSize(
                context_length=min(context_length, trained or context_length),
                max_rows=max_rows,
                threads=default_threads(parameters) if threads is None else threads,
                batch_tokens=batch_tokens,
            )
            info = _describe(native, size, fingerprint or sha256_file(path))
            return cls(native, info, size)
        except BaseException:
            native.close()
            raise

    @property
    def info(self) -> ModelInfo:
        """What the model is."""
        return self._info

    @property
    def path(self) -> Path:
        """The GGUF file."""
        return self._native.path

    @property
    def cache_bytes(self) -> int:
        """Bytes that a row's cache takes per token."""
        return self._native.cache_bytes

    def tokenizer(self) -> GgufTokenizer:
        """Return the file's tokenizer; it works until this model is closed."""
        return GgufTokenizer(self._native)

    def new_cache(self) -> LlamaCppCache:
        """Return an empty cache.

        Raises:
            EngineError: `info.max_rows` caches are alive, or the model was closed.
        """
        self._check_open()
        if not self._free_slots:
            raise EngineError(f"all {self._info.max_rows} rows of {self._info.name} are in use")
        return LlamaCppCache(self, self._free_slots.pop())

    def fork(self, cache: KVCache, length: int) -> LlamaCppCache:
        """Return a new cache that shares the cells of the first `length` tokens of `cache`.

        Raises:
            EngineError: `info.max_rows` caches are alive, or the model was closed.
        """
        source = self._own(cache)
        check_length(source, length)
        copy = self.new_cache()
        self._llama.llama_memory_seq_cp(self._memory, source._slot, copy._slot, 0, length)
        copy._length = length
        return copy

    def extend(
        self,
        caches: Sequence[KVCache],
        new_tokens: Sequence[Sequence[int]],
        want: Want = Want(),  # noqa: B008
    ) -> StepOutput:
        """Append each row's tokens and return outputs; see CausalLM.

        Raises:
            EngineError: llama.cpp failed; every cache is as it was before.
        """
        self._check_open()
        check_extend(self._info, caches, new_tokens)
        own = [self._own(cache) for cache in caches]
        counts = want.counts(new_tokens)
        try:
            outputs = [
                output
                for entries, hidden in _passes(own, new_tokens, counts, want.hidden)
                for start in range(0, len(entries), self._batch_tokens)
                for output in self._read(entries[start : start + self._batch_tokens], want, hidden)
            ]
        except BaseException:  # an interrupt, too, must leave no half-read row
            for cache in own:
                self._cut(cache._slot, cache.length)
            raise
        for cache, tokens in zip(own, new_tokens, strict=True):
            cache._length += len(tokens)
        return concatenate(outputs, counts)

    def read_only(self, cache: KVCache, tokens: Sequence[int]) -> None:
        """Append tokens to a cache and return nothing: the last one's logits stay in llama.cpp.

        What a baseline of llama.cpp alone calls, and what times its arithmetic without our reading.
        """
        own = self._own(cache)
        check_extend(self._info, [own], [tokens])
        for start in range(0, len(tokens), self._batch_tokens):
            part = tokens[start : start + self._batch_tokens]
            self._decode(
                [
                    _Entry(token, own.length + i, own._slot, start + i == len(tokens) - 1)
                    for i, token in enumerate(part)
                ],
                hidden=False,
            )
            own._length += len(part)
        self._llama.llama_synchronize(self._context)

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Return the rows [N, E] of the input embedding, float32.

        Raises:
            RequestError: an id outside the vocabulary.
        """
        self._check_open()
        size = self._info.vocab_size
        if wrong := [token_id for token_id in token_ids if not 0 <= token_id < size]:
            raise RequestError(f"token id {wrong[0]} is outside the vocabulary of {size}")
        if self._rows is None:
            self._rows = TensorRows(self._native.path, "token_embd.weight")
        return torch.from_numpy(self._rows.read(token_ids))

    def close(self) -> None:
        """Free the weights and every cache. Twice is harmless."""
        self._free()
        self._native.close()
        self._rows = None

    def _read(self, entries: Sequence[_Entry], want: Want, hidden: bool) -> Iterator[StepOutput]:
        """Decode one batch and yield its outputs, in the order of the entries."""
        self._decode(entries, hidden=hidden)
        outputs = [index for index, entry in enumerate(entries) if entry.output]
        for start in range(0, len(outputs), _HEAD_BLOCK):
            block = outputs[start : start + _HEAD_BLOCK]
            logits_NV = self._view(self._llama.llama_get_logits_ith, block, self._info.vocab_size)
            hidden_NH = None
            if hidden:
                hidden_NH = self._view(
                    self._llama.llama_get_embeddings_ith, block, self._info.hidden_size
                ).clone()
            # The next decode overwrites what the views show; all else in the summary is new.
            yield summarise(
                logits_NV.clone() if want.logits else logits_NV, (len(block),), want, hidden_NH
            )

    def _decode(self, entries: Sequence[_Entry], *, hidden: bool) -> None:
        batch = self._batch
        batch.n_tokens = len(entries)
        for index, entry in enumerate(entries):
            batch.token[index] = entry.token
            batch.pos[index] = entry.position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = entry.slot
            batch.logits[index] = entry.output
        self._llama.llama_set_embeddings(self._context, hidden)
        code = self._llama.llama_decode(self._context, batch)
        if code != 0:
            raise EngineError(
                f"llama.cpp could not read {len(entries)} tokens with {self._info.name} "
                f"(code {code}); load it with a shorter context or fewer rows"
            )

    def _view(self, pointer_of: Any, indices: Sequence[int], width: int) -> Tensor:
        """Return llama.cpp's own buffer [N, width] of consecutive outputs, not copied."""
        first, last = (
            ctypes.cast(pointer_of(self._context, index), ctypes.c_void_p).value
            for index in (indices[0], indices[-1])
        )
        size = len(indices) * width
        row_bytes = width * ctypes.sizeof(ctypes.c_float)
        if first is None or last != first + (len(indices) - 1) * row_bytes:
            raise EngineError(
                "this version of llama.cpp lays its outputs out in another way; "
                "install the version that pyproject.toml names"
            )
        buffer = (ctypes.c_float * size).from_address(first)
        return torch.frombuffer(buffer, dtype=torch.float32).view(len(indices), width)

    def _own(self, cache: KVCache) -> LlamaCppCache:
        if not isinstance(cache, LlamaCppCache):
            raise TypeError(f"not a cache of this engine: {type(cache).__name__}")
        if cache._owner is not self:
            raise ValueError(f"a cache that was released, or is not {self._info.name}'s")
        return cache

    def _cut(self, slot: int, length: int) -> None:
        """Remove a row's cells from position `length` on."""
        if self._free.alive and not self._llama.llama_memory_seq_rm(self._memory, slot, length, -1):
            raise EngineError(f"{self._info.name} cannot forget tokens that it has read")

    def _take_back(self, slot: int) -> None:
        self._cut(slot, 0)
        self._free_slots.append(slot)

    def _check_open(self) -> None:
        if not self._free.alive:
            raise EngineError(f"{self._info.name} was closed; load it again")


def _passes(
    caches: Sequence[LlamaCppCache],
    new_tokens: Sequence[Sequence[int]],
    counts: Sequence[int],
    hidden: bool,
) -> Iterator[tuple[list[_Entry], bool]]:
    """Yield what to decode, and whether with hidden states; outputs come in row order.

    counts: outputs of each row, its last ones. With hidden states on, llama.cpp makes every token
    an output and runs the head for it, so tokens whose outputs nobody wants go first, without.
    """
    rows = [
        [
            _Entry(int(token), cache.length + i, cache._slot, i >= len(tokens) - count)
            for i, token in enumerate(tokens)
        ]
        for cache, tokens, count in zip(caches, new_tokens, counts, strict=True)
    ]
    unasked = [entry for row in rows for entry in row if not entry.output]
    if not hidden or not unasked:
        yield [entry for row in rows for entry in row], hidden
        return
    yield unasked, False
    yield [entry for row in rows for entry in row if entry.output], True


def _describe(native: NativeModel, size: ContextSize, fingerprint: str) -> ModelInfo:
    library, pointer = native.llama, native.pointer
    tokenizer = GgufTokenizer(native)
    parameters = library.llama_model_n_params(pointer)
    dtype = library.llama_ftype_name(library.llama_model_ftype(pointer)) or b"unknown"
    return ModelInfo(
        name=native.path.stem,
        engine="llamacpp",
        fingerprint=fingerprint,
        parameters=parameters,
        active_parameters=parameters,
        vocab_size=len(tokenizer.pieces()),
        hidden_size=library.llama_model_n_embd_out(pointer),
        context_length=size.context_length,
        max_rows=size.max_rows,
        eos_ids=tokenizer.end_ids,
        dtype=dtype.decode(),
        tokenizer_fingerprint=tokenizer.fingerprint,
    )
