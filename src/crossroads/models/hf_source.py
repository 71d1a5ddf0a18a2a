"""Where transformers' models and tokenizers come from: folders, hub repositories, GGUF files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from crossroads.artifacts import sha256_file
from crossroads.errors import ConfigError, EngineError, WeightsError

INSTALL = 'pip install "crossroads-lm[transformers]"'
DTYPES = ("auto", "float32", "bfloat16", "float16")
_MIB = 1 << 20
_SAMPLES = 16  # evenly spread blocks of 64 KiB, so that a fine-tune of inner layers is seen
_SAMPLE_BYTES = 1 << 16


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
        with load_errors(self):
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
        with load_errors(self):
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
    with load_errors(source):
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
def load_errors(source: HfSource) -> Iterator[None]:
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
