"""llama.cpp's shared library, the weights it holds, and contexts to decode in."""

from __future__ import annotations

import ctypes
import importlib
import os
import weakref
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from crossroads.errors import ConfigError, EngineError, WeightsError

INSTALL = 'pip install "crossroads-lm[llamacpp]"'
_MAGIC = b"GGUF"
_ERROR_LEVEL = 4  # ggml_log_level
UBATCH = 128  # tokens per graph: its scratch memory grows with this times the whole context
_TINY_PARAMETERS = 20_000_000


class _Log:
    """Keeps llama.cpp off stderr, and its last complaint for our own error messages.

    llama.cpp calls back as long as the process lives, so the callback must never be collected.
    """

    def __init__(self) -> None:
        self.last_error = ""
        self._callback: Any = None

    def take_over(self, library: Any) -> None:
        if self._callback is None:
            self._callback = library.llama_log_callback(self._hear)
            library.llama_log_set(self._callback, None)

    def _hear(self, level: int, text: bytes | None, _user_data: Any) -> None:
        if level == _ERROR_LEVEL and text:
            self.last_error = text.decode(errors="replace").strip()


_log = _Log()


def load_library() -> Any:
    """Return llama.cpp's C functions; from the first call on it logs nothing.

    Raises:
        EngineError: the package is not installed, or its shared library does not load.
    """
    try:
        library = importlib.import_module("llama_cpp.llama_cpp")
    except ModuleNotFoundError as error:
        raise EngineError(f"llama-cpp-python is not installed; run: {INSTALL}") from error
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(f"llama-cpp-python cannot be loaded: {error}") from error
    _log.take_over(library)
    library.llama_backend_init()
    return library


class NativeModel:
    """A model's weights, or its vocabulary alone, in llama.cpp's memory."""

    def __init__(self, path: Path, *, vocab_only: bool = False) -> None:
        """Load a GGUF file.

        Raises:
            EngineError: llama.cpp is not installed.
            WeightsError: the file is missing, damaged, or of a kind that llama.cpp cannot read.
        """
        self.path = path
        self.llama = load_library()
        _check_file(path)
        params = self.llama.llama_model_default_params()
        params.vocab_only = vocab_only
        _log.last_error = ""
        pointer = self.llama.llama_model_load_from_file(str(path).encode(), params)
        if not pointer:
            reason = _log.last_error or "no reason given"
            raise WeightsError(f"llama.cpp cannot load {path} ({reason}); fetch the file again")
        self._pointer: Any = pointer
        # Runs at collection or at exit, before the modules it needs are torn down.
        self._free = weakref.finalize(self, self.llama.llama_model_free, pointer)

    @property
    def pointer(self) -> Any:
        """The model for C functions.

        Raises:
            EngineError: it was closed.
        """
        if not self._free.alive:
            raise EngineError(f"{self.path.stem} was closed; load it again")
        return self._pointer

    @property
    def vocab(self) -> Any:
        """The vocabulary for C functions; lives as long as the model."""
        return self.llama.llama_model_get_vocab(self.pointer)

    def metadata(self, key: str) -> str | None:
        """Return one scalar value of the file's header as text."""
        buffer = ctypes.create_string_buffer(256)
        size = self.llama.llama_model_meta_val_str(self.pointer, key.encode(), buffer, len(buffer))
        return buffer.value.decode(errors="replace") if size >= 0 else None

    def number(self, key: str, otherwise: int = 0) -> int:
        """Return one number of the model family's own part of the header."""
        text = self.metadata(f"{self.metadata('general.architecture')}.{key}") or ""
        return int(text) if text.isdigit() else otherwise

    @property
    def cache_bytes(self) -> int:
        """Bytes that a cache takes per token: a key and a value in every layer."""
        heads = max(1, self.number("attention.head_count", 1))
        width = self.number("attention.key_length", self.number("embedding_length") // heads)
        kept = 2 * self.number("attention.head_count_kv", heads) * width
        bytes_each = 4 if self.metadata("general.file_type") == "0" else 2  # as open_context does
        return self.number("block_count") * kept * bytes_each

    def close(self) -> None:
        """Free the memory. Twice is harmless."""
        self._free()


@dataclass(frozen=True, slots=True)
class ContextSize:
    """How much a context holds, and how fast it goes: all at least 1."""

    context_length: int
    max_rows: int
    threads: int
    batch_tokens: int

    def check(self, most_rows: int) -> None:
        """Refuse sizes that cannot work.

        Raises:
            ConfigError: names the size.
        """
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ConfigError(
                    f"{field.name} must be at least 1, got {getattr(self, field.name)}"
                )
        if self.max_rows > most_rows:
            raise ConfigError(f"llama.cpp has at most {most_rows} rows, got {self.max_rows}")


def open_context(native: NativeModel, size: ContextSize) -> Any:
    """Return a context in which any subset of `size.max_rows` rows can be read at once.

    Raises:
        ConfigError: a size that cannot work.
        EngineError: there is no memory for it.
    """
    library = native.llama
    size.check(library.llama_max_parallel_sequences())
    params = library.llama_context_default_params()
    # One buffer for all rows, as large as all of them at their longest. With a buffer per row,
    # llama.cpp runs rows whose numbers do not follow one another as separate batches, and which
    # rows ask the large model changes with every token: three such rows took almost twice as long.
    params.kv_unified = True
    params.n_ctx = size.context_length * size.max_rows
    params.n_seq_max = size.max_rows
    params.n_batch = size.batch_tokens
    params.n_ubatch = min(size.batch_tokens, UBATCH)
    params.n_threads = params.n_threads_batch = size.threads
    params.pooling_type = library.LLAMA_POOLING_TYPE_NONE
    params.embeddings = True  # room for hidden states; switched for every decode
    params.swa_full = True  # else a sliding window has lost what a crop goes back to
    params.no_perf = True
    if library.llama_model_ftype(native.pointer) == library.LLAMA_FTYPE_ALL_F32:
        # The default float16 would be the only rounding left in a model that nobody quantised.
        params.type_k = params.type_v = library.GGML_TYPE_F32
    if not library.llama_supports_gpu_offload():
        # On a CPU, flash attention steps over the other rows' cells one by one: eight rows of 250
        # tokens took a third longer than with plain products over all cells.
        params.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = library.llama_init_from_model(native.pointer, params)
    if not context:
        raise EngineError(
            f"llama.cpp cannot open {size.max_rows} rows of {size.context_length} tokens for "
            f"{native.path.stem} ({_log.last_error or 'no reason given'}); lower one of the two"
        )
    return context


def free_context(library: Any, batch: Any, context: Any, _native: NativeModel) -> None:
    """Free what belongs to a context; `_native` is held here so that it outlives it."""
    library.llama_batch_free(batch)
    library.llama_free(context)


def default_threads(parameters: int) -> int:
    """Return how many threads a model of so many parameters is fastest with."""
    # Threads wait for one another after every operation, which costs more than a tiny one.
    if parameters < _TINY_PARAMETERS:
        return 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def refuse_uncroppable(native: NativeModel) -> None:
    """Refuse models that cannot take a token back, or that do not continue a text.

    Raises:
        EngineError: says what the model is.
    """
    library, pointer = native.llama, native.pointer
    if library.llama_model_is_recurrent(pointer) or library.llama_model_is_hybrid(pointer):
        raise EngineError(
            f"{native.path.stem} keeps a state that cannot be cut back to an earlier token; "
            "use a model with attention layers only"
        )
    if library.llama_model_has_encoder(pointer) or not library.llama_model_has_decoder(pointer):
        raise EngineError(f"{native.path.stem} is not a decoder-only model; use one that is")


def _check_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except FileNotFoundError as error:
        raise WeightsError(f"there is no {path}; check the path") from error
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    if magic != _MAGIC:
        raise WeightsError(f"{path} is not a GGUF file; give the .gguf file of a model")
