"""The tokenizer that a GGUF file carries, read by llama.cpp's own vocabulary functions."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from crossroads.errors import ConfigError, EngineError, RequestError
from crossroads.models.chat import render_segments
from crossroads.models.llamacpp_native import NativeModel
from crossroads.models.vocabulary import PieceTokenizer
from crossroads.types import Message

_FIRST_GUESS = 64  # bytes of a piece; the few longer ones are asked for again


class GgufTokenizer(PieceTokenizer):
    """A Tokenizer over a loaded GGUF file; it needs the vocabulary, not the weights.

    Nothing is added that was not asked for: no BOS, no leading space beyond the vocabulary's own.
    """

    def __init__(self, native: NativeModel) -> None:
        """Read the vocabulary of `native`, which must stay open while text is encoded.

        Raises:
            EngineError: the file carries no vocabulary.
        """
        self._native = native
        self._llama = native.llama
        if self._llama.llama_vocab_type(native.vocab) == self._llama.LLAMA_VOCAB_TYPE_NONE:
            raise EngineError(f"{native.path} carries no tokenizer; give a GGUF file that has one")

    @classmethod
    def load(cls, path: Path) -> GgufTokenizer:
        """Load the vocabulary of a GGUF file and no weights.

        Raises:
            EngineError: llama.cpp is not installed, or the file carries no vocabulary.
            WeightsError: the file is missing or damaged.
        """
        return cls(NativeModel(path, vocab_only=True))

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text; special tokens in the text are read as text."""
        return self._tokenize(text, parse_special=False)

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end a generation: the file's end token, and special tokens like it."""
        vocab = self._native.vocab
        named = (self._llama.llama_vocab_eos(vocab), self._llama.llama_vocab_eot(vocab))
        like_it = (i for i in self._special_ids if self._llama.llama_vocab_is_eog(vocab, i))
        return tuple(sorted({*like_it, *(i for i in named if i >= 0)}))

    def render(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of the file's chat template over the messages.

        A special token's text in a message is read as plain text; see `crossroads.models.chat`.

        Raises:
            ConfigError: the file carries no chat template.
            RequestError: the template refuses the messages.
        """
        template = self._llama.llama_model_chat_template(self._native.pointer, None)
        if not template:
            raise ConfigError(
                f"{self._native.path} carries no chat template; use an instruction-tuned model"
            )
        vocab = self._native.vocab
        segments = render_segments(
            template.decode(),
            messages,
            (self._text_of(token_id) for token_id in sorted(self._special_ids)),
            bos=self._text_of(self._llama.llama_vocab_bos(vocab)),
            eos=self._text_of(self._llama.llama_vocab_eos(vocab)),
        )
        return [
            token_id
            for segment in segments
            for token_id in self._tokenize(segment.text, parse_special=not segment.plain)
        ]

    def _tokenize(self, text: str, parse_special: bool) -> list[int]:
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                "the text holds half a surrogate pair; give valid Unicode"
            ) from error
        size = len(data) + 2  # a token is a byte at least; SentencePiece may add a space
        while True:
            buffer = (self._llama.llama_token * size)()
            count = self._llama.llama_tokenize(
                self._native.vocab, data, len(data), buffer, size, False, parse_special
            )
            if count >= 0:
                return list(buffer[:count])
            size = -count

    def _text_of(self, token_id: int) -> str:
        """Return an id's text, "" for a token that the vocabulary does not have."""
        piece = self._pieces[token_id] if 0 <= token_id < len(self._pieces) else None
        return (piece or b"").decode(errors="replace")

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        library = self._llama
        special = library.LLAMA_TOKEN_ATTR_CONTROL | library.LLAMA_TOKEN_ATTR_UNKNOWN
        # llama.cpp marks whatever looks like an end token, such as Qwen's ordinary "</s>", as
        # control too; where the file itself says that it is text, it is text.
        normal = library.LLAMA_TOKEN_ATTR_NORMAL
        return frozenset(
            token_id
            for token_id, attribute in enumerate(self._attributes)
            if attribute & special and not attribute & normal
        )

    @cached_property
    def _attributes(self) -> tuple[int, ...]:
        vocab, attribute = self._native.vocab, self._llama.llama_vocab_get_attr
        return tuple(attribute(vocab, i) for i in range(self._llama.llama_vocab_n_tokens(vocab)))

    @cached_property
    def _pieces(self) -> tuple[bytes | None, ...]:
        unused = self._llama.LLAMA_TOKEN_ATTR_UNUSED
        return tuple(
            None if attribute & unused else self._piece(token_id)
            for token_id, attribute in enumerate(self._attributes)
        )

    def _piece(self, token_id: int) -> bytes | None:
        """Return an id's bytes, None for an entry that only fills the table."""
        size = _FIRST_GUESS
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = self._llama.llama_token_to_piece(
                self._native.vocab, token_id, buffer, size, 0, True
            )
            if count >= 0:
                break
            size = -count
        piece = buffer.raw[:count]
        # Converters fill the ids between the tokenizer's end and the matrix's with these.
        return None if piece == b"[PAD%d]" % token_id else piece
