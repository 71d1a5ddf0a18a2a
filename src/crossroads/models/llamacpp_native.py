"""llama.cpp's shared library and the weights it holds; no context, no decoding."""

from __future__ import annotations

import importlib
import weakref
from pathlib import Path
from typing import Any

from crossroads.errors import EngineError, WeightsError

INSTALL = 'pip install "crossroads-lm[llamacpp]"'
_MAGIC = b"GGUF"
_ERROR_LEVEL = 4  # ggml_log_level


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
        self.library = load_library()
        _check_file(path)
        params = self.library.llama_model_default_params()
        params.vocab_only = vocab_only
        _log.last_error = ""
        pointer = self.library.llama_model_load_from_file(str(path).encode(), params)
        if not pointer:
            reason = _log.last_error or "no reason given"
            raise WeightsError(f"llama.cpp cannot load {path} ({reason}); fetch the file again")
        self._pointer: Any = pointer
        # Runs at collection or at exit, before the modules it needs are torn down.
        self._free = weakref.finalize(self, self.library.llama_model_free, pointer)

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
        return self.library.llama_model_get_vocab(self.pointer)

    def metadata(self, key: str) -> str | None:
        """Return one scalar value of the file's header as text."""
        import ctypes  # noqa: PLC0415

        buffer = ctypes.create_string_buffer(256)
        size = self.library.llama_model_meta_val_str(
            self.pointer, key.encode(), buffer, len(buffer)
        )
        return buffer.value.decode(errors="replace") if size >= 0 else None

    def close(self) -> None:
        """Free the memory. Twice is harmless."""
        self._free()


def last_complaint() -> str:
    """Return what llama.cpp last reported as an error, to be told to the user."""
    return _log.last_error


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
