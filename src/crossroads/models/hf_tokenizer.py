"""What Hugging Face hands out: sources (a folder, a hub repository, a GGUF file) and tokenizers."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from crossroads.artifacts import sha256_file
from crossroads.errors import ConfigError, EngineError, RequestError, WeightsError
from crossroads.models.chat import render_segments
from crossroads.models.vocabulary import vocabulary_fingerprint
from crossroads.types import Message

INSTALL = 'pip install "crossroads-lm[transformers]"'
DTYPES = ("auto", "float32", "bfloat16", "float16")
_MIB = 1 << 20
_SAMPLES = 16  # evenly spread blocks of 64 KiB, so that a fine-tune of inner layers is seen
_SAMPLE_BYTES = 1 << 16
_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


# ---- sources -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HfSource:
    """Where a model and its tokenizer are.

    `location` is a folder or a hub repository, `gguf_file` a file name in a folder.
    """

    location: str
    name: str
    revision: str | None = None
    gguf_file: str | None = None

    def load_model(
        self, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False
    ) -> Any:
        """Return the causal language model, on its device.

        Raises:
            ConfigError: an unknown dtype or device.
            EngineError, WeightsError: as TransformersLM.load says.
        """
        if dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        chosen = _pick_device(device)
        options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code}
        with _load_errors(self):
            import transformers  # noqa: PLC0415

            if self.gguf_file is not None:
                options["dtype"] = "float32" if dtype == "auto" else dtype
                options["gguf_file"] = self.gguf_file
                # Weights left in blocks would need a kernel for each quantisation.
                options["quantization_config"] = transformers.GgufConfig(dequantize=True)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                self.location, revision=self.revision or "main", **options
            )
            return model.to(chosen)

    def load_tokenizer(self) -> Any:
        """Return the transformers tokenizer.

        Raises:
            EngineError, WeightsError: as HfTokenizer.load says.
        """
        with _load_errors(self):
            import transformers  # noqa: PLC0415

            return transformers.AutoTokenizer.from_pretrained(
                self.location, revision=self.revision or "main", gguf_file=self.gguf_file
            )

    def fingerprint_of(self, model: Any) -> str:
        """Name the weights that `model` was loaded from: by file hash, folder hash or commit.

        Raises:
            WeightsError: the hub did not say which commit it gave.
        """
        folder = Path(self.location)
        if self.gguf_file is not None:
            return sha256_file(folder / self.gguf_file)
        if folder.is_dir():
            return folder_fingerprint(folder)
        commit = getattr(model.config, "_commit_hash", None)
        if not commit:
            raise WeightsError(
                f"the model hub did not say which commit of {self.location} it gave; "
                "download the repository and give its folder"
            )
        return str(commit)


def find_source(
    path_or_repo: str | Path, revision: str | None = None, gguf_file: str | None = None
) -> HfSource:
    """Resolve what the user named; a path to a .gguf file is its folder and its name.

    Raises:
        EngineError: transformers is not installed.
        WeightsError: the folder or the file is missing, or the hub cannot give the GGUF file.
    """
    path = Path(path_or_repo).expanduser()
    if gguf_file is None and path.suffix == ".gguf":
        path, gguf_file = path.parent, path.name
    if path.is_dir():
        return _local_source(path, gguf_file)
    text = str(path_or_repo)
    if isinstance(path_or_repo, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise WeightsError(f"there is no folder {path}; give a model folder or a hub repository")
    source = HfSource(text, name=text, revision=revision)
    if gguf_file is None:
        return source
    with _load_errors(source):
        from huggingface_hub import hf_hub_download  # noqa: PLC0415

        file = Path(hf_hub_download(text, gguf_file, revision=revision))
    return _local_source(file.parent, file.name)


def _local_source(folder: Path, gguf_file: str | None) -> HfSource:
    if gguf_file is None:
        return HfSource(str(folder), name=folder.resolve().name)
    file = folder / gguf_file
    if not file.is_file():
        raise WeightsError(f"there is no {file}; check gguf_file and the folder")
    return HfSource(str(folder), name=file.stem, gguf_file=gguf_file)


def folder_fingerprint(folder: Path) -> str:
    """Return a SHA-256 over samples of a folder's safetensors files (or .bin files).

    Of every file, by name: its name, its size, its safetensors header, its first and last MiB and
    16 blocks of 64 KiB between them. Big files are not read whole: this tells models apart, it is
    no proof against tampering.

    Raises:
        WeightsError: the folder holds no weights.
    """
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files:
        raise WeightsError(f"{folder} holds no .safetensors files; give a model's folder")
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            header = 8 + int.from_bytes(file.read(8), "little")
            first = max(_MIB, header if path.suffix == ".safetensors" else 0)
            file.seek(0)
            digest.update(file.read(min(first, size)))
            for i in range(_SAMPLES):
                file.seek(i * size // _SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
            file.seek(max(0, size - _MIB))
            digest.update(file.read())
    return digest.hexdigest()


def _pick_device(device: str) -> torch.device:
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise EngineError("device 'cuda' was asked for, but torch sees no CUDA device; use 'cpu'")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


@contextmanager
def _load_errors(source: HfSource) -> Iterator[None]:
    """Say in one sentence why something could not be loaded."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name in ("transformers", "huggingface_hub", "gguf", "accelerate"):
            raise EngineError(f"{error.name} is not installed; run: {INSTALL}") from error
        raise EngineError(f"cannot load {source.name}: {first_line(error)}") from error
    except OSError as error:  # the hub's errors are OSErrors too
        if Path(source.location).is_dir():
            raise WeightsError(f"cannot read {source.location}: {first_line(error)}") from error
        raise WeightsError(
            f"there is no folder {source.location}, and the model hub does not have that "
            "repository or cannot be reached; check the name and the network"
        ) from error
    except (ImportError, ValueError, KeyError, RuntimeError) as error:
        raise EngineError(f"cannot load {source.name}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Return what an exception says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# ---- tokenizer ---------------------------------------------------------------------------------


class HfTokenizer:
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

    @cached_property
    def fingerprint(self) -> str:
        """Hash over every id's bytes."""
        return vocabulary_fingerprint(self.pieces())

    def pieces(self) -> Sequence[bytes | None]:
        """Return every id's raw bytes; an added token's are its text."""
        return self._pieces

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text; special tokens in the text are read as text."""
        return self._encode(text, parse_special=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of the ids."""
        return b"".join(map(self.text_bytes, token_ids)).decode("utf-8", errors="replace")

    def text_bytes(self, token_id: int) -> bytes:
        """Return the bytes that one id adds to the text."""
        if token_id in self._special_ids or not 0 <= token_id < len(self._pieces):
            return b""
        return self._pieces[token_id] or b""

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
