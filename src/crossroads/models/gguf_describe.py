"""What a GGUF file's model is, without its weights: for servers that run it elsewhere."""

from __future__ import annotations

from pathlib import Path

from crossroads.models.gguf_rows import count_parameters
from crossroads.models.gguf_tokenizer import GgufTokenizer
from crossroads.models.llamacpp_native import NativeModel
from crossroads.types import ModelInfo


def describe_gguf(
    path: Path, *, engine: str, context_length: int, max_rows: int, fingerprint: str
) -> ModelInfo:
    """Return what a file holds; its header alone is read.

    Raises:
        EngineError: llama.cpp is not installed, or the file carries no vocabulary.
        WeightsError: the file is missing or damaged.
    """
    native = NativeModel(path, vocab_only=True)
    try:
        tokenizer = GgufTokenizer(native)
        library = native.llama
        parameters = count_parameters(path)
        dtype = library.llama_ftype_name(int(native.metadata("general.file_type") or 0))
        return ModelInfo(
            name=path.stem,
            engine=engine,
            fingerprint=fingerprint,
            parameters=parameters,
            active_parameters=parameters,
            vocab_size=len(tokenizer.pieces()),
            hidden_size=native.number("embedding_length"),
            context_length=min(context_length, native.number("context_length", context_length)),
            max_rows=max_rows,
            eos_ids=tokenizer.end_ids,
            dtype=(dtype or b"unknown").decode(),
            tokenizer_fingerprint=tokenizer.fingerprint,
        )
    finally:
        native.close()
