"""From a name to two loaded models that are known to speak the same tokens.

Loading never downloads: weights that are missing are an error that says what to run. Tokenizers
are compared before the big weights are read, since they alone decide whether a pair is possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from crossroads.errors import EngineError, PairError
from crossroads.models.base import CausalLM, Tokenizer
from crossroads.models.catalogue import (
    DEFAULT_PAIR,
    LLAMACPP,
    PAIRS,
    REMOTE,
    ModelSpec,
    PairSpec,
    find_model,
    find_pair,
)
from crossroads.models.store import locate
from crossroads.models.vocabulary import first_difference
from crossroads.models.weights import file_sha256
from crossroads.types import ModelInfo, Progress, Role

if TYPE_CHECKING:
    from crossroads.models.completions import CompletionsLM
    from crossroads.models.remote import RemoteLM
    from crossroads.models.remote_states import RemoteStatesLM

    BehindServers = CompletionsLM | RemoteLM | RemoteStatesLM


@dataclass(frozen=True, slots=True)
class Pair:
    """Two loaded models and the tokenizer they share."""

    name: str
    small: CausalLM
    large: CausalLM
    tokenizer: Tokenizer

    def close(self) -> None:
        """Free both models. Twice is harmless."""
        self.small.close()
        self.large.close()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """One loaded model and its tokenizer, for work that needs no pair."""

    model: CausalLM
    tokenizer: Tokenizer

    def close(self) -> None:
        """Free the model. Twice is harmless."""
        self.model.close()


def resolve_pair(
    pair: str | None = None, *, small: str | None = None, large: str | None = None
) -> PairSpec:
    """Return the pair that the options mean; `small` and `large` replace the pair's own models.

    Without `pair`, both models or neither must be given; neither means the default pair.

    Raises:
        PairError: an unknown name, or half a pair.
    """
    if pair is None and (small is None) != (large is None):
        missing = "large" if large is None else "small"
        raise PairError(
            f"a pair needs two models and the {missing} one is missing; give --{missing}"
        )
    if small is None and large is None:
        return find_pair(pair or DEFAULT_PAIR)
    base = find_pair(pair) if pair else None
    small_spec = find_model(small) if small else _of(base).small
    large_spec = find_model(large) if large else _of(base).large
    return PairSpec(f"{small_spec.name}+{large_spec.name}", small_spec, large_spec)


def _of(base: PairSpec | None) -> PairSpec:
    if base is None:  # the callers have refused half a pair
        raise PairError("a pair needs two models; give --pair, or --small and --large")
    return base


def check_pair(
    small_pieces: Sequence[bytes | None],
    large_pieces: Sequence[bytes | None],
    small_name: str,
    large_name: str,
) -> None:
    """Refuse two models whose tokens differ at any id that either can emit.

    Raises:
        PairError: names the first id that differs, and what each model means by it.
    """
    difference = first_difference(small_pieces, large_pieces)
    if difference is None:
        return
    raise PairError(
        f"{small_name} and {large_name} cannot be a pair: token {difference.token_id} is "
        f"{_shown(difference.small)} in {small_name} and {_shown(difference.large)} in "
        f"{large_name}; choose two models with one tokenizer"
    )


def _shown(piece: bytes | None) -> str:
    """Return a piece as people can read it."""
    if piece is None:
        return "nothing"
    try:
        return repr(piece.decode())
    except UnicodeDecodeError:
        return f"the bytes {piece.hex(' ')}"


def load_pair(
    pair: PairSpec | str,
    *,
    context_length: int = 4096,
    max_rows: int = 1,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Pair:
    """Load both models of a pair, after their tokenizers have been found to agree.

    Raises:
        PairError: an unknown pair, or two tokenizers.
        WeightsError: weights that are not there or are damaged.
        EngineError: an engine that is not installed or cannot load them, or too little memory.
    """
    spec = find_pair(pair) if isinstance(pair, str) else pair
    small_path = locate(spec.small, pull=_pull_name(spec, spec.small), progress=progress)
    large_path = locate(spec.large, pull=_pull_name(spec, spec.large), progress=progress)
    small_tokenizer = load_tokenizer(spec.small, small_path)
    tokenizer = load_tokenizer(spec.large, large_path)
    check_pair(small_tokenizer.pieces(), tokenizer.pieces(), spec.small.name, spec.large.name)
    size = _LoadSize(context_length, max_rows, threads)
    size.check_memory([(spec.small, small_path), (spec.large, large_path)])
    small = _load(spec.small, small_path, size, progress, Role.SMALL)
    try:
        large = _load(spec.large, large_path, size, progress, Role.LARGE)
    except BaseException:
        small.close()
        raise
    return Pair(spec.name, small, large, tokenizer)


def load_model(
    model: ModelSpec | str,
    *,
    context_length: int = 4096,
    max_rows: int = 1,
    threads: int | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Load one model; raises as `load_pair` does."""
    spec = find_model(model) if isinstance(model, str) else model
    path = locate(spec, pull=spec.name, progress=progress)
    tokenizer = load_tokenizer(spec, path)
    size = _LoadSize(context_length, max_rows, threads)
    size.check_memory([(spec, path)])
    return LoadedModel(_load(spec, path, size, progress, Role.LARGE), tokenizer)


def _pull_name(pair: PairSpec, model: ModelSpec) -> str:
    return pair.name if pair.name in PAIRS else model.name


def load_tokenizer(spec: ModelSpec, path: Path) -> Tokenizer:
    """Load a model's tokenizer without its weights."""
    if spec.has_gguf:
        from crossroads.models.gguf_tokenizer import GgufTokenizer  # noqa: PLC0415

        return GgufTokenizer.load(path)
    from crossroads.models.hf_tokenizer import HfTokenizer  # noqa: PLC0415

    return HfTokenizer.load(path)


@dataclass(frozen=True, slots=True)
class _LoadSize:
    context_length: int
    max_rows: int
    threads: int | None

    def check_memory(self, models: Sequence[tuple[ModelSpec, Path]]) -> None:
        """Refuse what will not fit; models of other engines than llama.cpp are not counted."""
        gguf = [path for spec, path in models if spec.engine == LLAMACPP]
        if not gguf:
            return
        from crossroads.models import memory  # noqa: PLC0415

        memory.check_memory(
            [memory.estimate_gguf(path, self.context_length, self.max_rows) for path in gguf],
            memory.free_memory(),
            context_length=self.context_length,
            max_rows=self.max_rows,
        )


def _load(
    spec: ModelSpec, path: Path, size: _LoadSize, progress: Progress | None, role: Role
) -> CausalLM:
    if spec.engine == LLAMACPP:
        from crossroads.models.llamacpp import LlamaCppLM  # noqa: PLC0415

        return LlamaCppLM.load(
            path,
            context_length=size.context_length,
            max_rows=size.max_rows,
            threads=size.threads,
            fingerprint=spec.file.sha256 if spec.file else file_sha256(path, progress),
        )
    if spec.engine == REMOTE:
        return _connect(spec, path, size, role, progress)
    from crossroads.models.transformers import TransformersLM  # noqa: PLC0415

    return TransformersLM.load(path, context_length=size.context_length, max_rows=size.max_rows)


def _connect(
    spec: ModelSpec, path: Path, size: _LoadSize, role: Role, progress: Progress | None
) -> CausalLM:
    """Return a model behind servers, or behind one that is started for it and ends with it."""
    try:
        import httpx2  # noqa: F401, PLC0415
    except ModuleNotFoundError as error:
        raise EngineError(
            'a model behind a server needs httpx2; pip install "crossroads-lm[remote]"'
        ) from error
    info = _describe(spec, path, size)
    if spec.vllm is None:
        return _behind(spec, path, info, role)
    from crossroads.models.vllm_server import start_server  # noqa: PLC0415

    server = start_server(path, spec.vllm, role, info, progress)
    try:
        model = _behind(replace(spec, urls=(server.url,)), path, info, role)
    except BaseException:
        server.stop()
        raise
    model.server = server
    return model


def _behind(spec: ModelSpec, path: Path, info: ModelInfo, role: Role) -> BehindServers:
    """Return a model behind servers: a large one writes, of a small one the states are read."""
    from crossroads.models.completions import CompletionsLM  # noqa: PLC0415
    from crossroads.models.completions_probe import find_out  # noqa: PLC0415
    from crossroads.models.remote import RemoteLM  # noqa: PLC0415
    from crossroads.models.remote_wire import reserve  # noqa: PLC0415

    if role is Role.SMALL:
        return _states_of(spec, path, info)
    tokenizer = load_tokenizer(spec, path)
    found = find_out(spec.urls, tokenizer, info.eos_ids)
    if found.dialect is not None:
        return CompletionsLM(info, spec.urls, found, tokenizer)
    try:
        reserved = reserve(tokenizer, info.vocab_size)
    except PairError:  # a vocabulary without unused ids: the plugin cannot say that it is there
        reserved = None
    return RemoteLM(info, spec.urls, reserved=reserved)


def _states_of(spec: ModelSpec, path: Path, info: ModelInfo) -> BehindServers:
    if spec.has_gguf:
        raise PairError(
            f"a small model behind servers is named by its folder or repository of safetensors, "
            f"got {spec.name}, which is a GGUF file"
        )
    from crossroads.models.hf_head import load_ends  # noqa: PLC0415
    from crossroads.models.remote_states import RemoteStatesLM  # noqa: PLC0415

    return RemoteStatesLM(info, load_ends(path), spec.urls)


def _describe(spec: ModelSpec, path: Path, size: _LoadSize) -> ModelInfo:
    """Say what the model of some servers is, from its files here; its weights are not read."""
    if spec.has_gguf:
        from crossroads.models.gguf_describe import describe_gguf  # noqa: PLC0415

        return describe_gguf(
            path,
            engine=REMOTE,
            context_length=size.context_length,
            max_rows=size.max_rows,
            fingerprint=spec.file.sha256 if spec.file else file_sha256(path, None),
        )
    from crossroads.models.hf_describe import describe  # noqa: PLC0415

    return describe(path, engine=REMOTE, context_length=size.context_length, max_rows=size.max_rows)
