"""The tokenizer of a transformers model."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from crossroads.errors import ConfigError, EngineError, RequestError
from crossroads.models.chat import render_segments
from crossroads.models.hf_source import find_source
from crossroads.models.vocabulary import PieceTokenizer
from crossroads.types import Message

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class HfTokenizer(PieceTokenizer):
    """A Tokenizer over a fast transformers tokenizer: byte-level BPE or SentencePiece-like."""

    def __init__(self, tokenizer: Any) -> None:
        """Wrap `tokenizer`.

        Raises:
            EngineError: it is a slow tokenizer, or its pieces do not stand for bytes.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise EngineError("only fast tokenizers are supported (a tokenizer.json is needed)")
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._byte_level = _is_byte_level(tokenizer)

    @classmethod
    def load(
        cls,
        path_or_repo: str | Path,
        *,
        revision: str | None = None,
        gguf_file: str | None = None,
    ) -> HfTokenizer:
        """Load the tokenizer of a folder, a hub repository, or a GGUF file in either.

        Raises:
            WeightsError: there is no such folder or repository, or it cannot be reached.
            EngineError: transformers is missing or cannot read the tokenizer.
        """
        return cls(find_source(path_or_repo, revision, gguf_file).load_tokenizer())

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text; special tokens in the text are read as text."""
        return self._encode(text, parse_special=False)

    def render(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of the tokenizer's chat template over the messages.

        A special token's text in a message is read as plain text; see `crossroads.models.chat`.

        Raises:
            ConfigError: the tokenizer carries no chat template.
            RequestError: the template refuses the messages.
        """
        pieces = self._pieces
        segments = render_segments(
            self._template,
            messages,
            ((pieces[i] or b"").decode() for i in sorted(self._special_ids)),
            bos=self._tokenizer.bos_token or "",
            eos=self._tokenizer.eos_token or "",
        )
        return [
            token_id
            for segment in segments
            for token_id in self._encode(segment.text, parse_special=not segment.plain)
        ]

    def _encode(self, text: str, parse_special: bool) -> list[int]:
        with self._lock:  # whether special tokens are split is a state of the backend
            try:
                ids: list[int] = self._tokenizer.encode(
                    text, add_special_tokens=False, split_special_tokens=not parse_special
                )
            except (TypeError, UnicodeEncodeError) as error:
                raise RequestError(
                    "the text holds half a surrogate pair; give valid Unicode"
                ) from error
        return ids

    @cached_property
    def _template(self) -> str:
        try:
            template: str = self._tokenizer.get_chat_template()
        except ValueError as error:
            raise ConfigError(
                "the tokenizer carries no chat template; use an instruction-tuned model"
            ) from error
        return template

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        added = self._tokenizer.added_tokens_decoder
        special = {token_id for token_id, token in added.items() if token.special}
        return frozenset({*special, *self._tokenizer.all_special_ids})

    @cached_property
    def _pieces(self) -> tuple[bytes | None, ...]:
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        added = set(self._tokenizer.added_tokens_decoder)
        pieces: list[bytes | None] = [None] * (max(vocabulary.values()) + 1)
        for text, token_id in vocabulary.items():
            if text == f"[PAD{token_id}]":  # how converters to GGUF fill unused ids
                continue
            plain = token_id in added
            pieces[token_id] = text.encode() if plain else _piece_bytes(text, self._byte_level)
        return tuple(pieces)


def _is_byte_level(tokenizer: Any) -> bool:
    """Tell byte-level BPE from SentencePiece-like vocabularies."""
    backend = tokenizer.backend_tokenizer
    parts = f"{backend.pre_tokenizer!r} {backend.decoder!r} {backend.normalizer!r}"
    if "ByteLevel" in parts:
        return True
    if "Metaspace" in parts or "ByteFallback" in parts or "▁" in parts:
        return False
    raise EngineError(
        f"{type(tokenizer).__name__} is neither byte-level nor SentencePiece-like; its ids do not "
        "stand for bytes, so it cannot be used"
    )


def _piece_bytes(text: str, byte_level: bool) -> bytes:
    """Return the bytes that a vocabulary entry stands for."""
    if byte_level:
        try:
            return bytes(_BYTE_OF_CHARACTER[character] for character in text)
        except KeyError:  # an entry stored as plain text
            return text.encode()
    if match := _BYTE_FALLBACK.fullmatch(text):
        return bytes([int(match[1], 16)])
    return text.replace("▁", " ").encode()


def _gpt2_bytes() -> dict[str, int]:
    """Return GPT-2's printable character for every byte, inverted.

    Printable bytes stand for themselves; the others, in order, for the characters from 256 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return table


_BYTE_OF_CHARACTER = _gpt2_bytes()
