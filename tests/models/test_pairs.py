"""From names to pairs: what is known, what is refused and in which words. No network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from crossroads.errors import PairError, WeightsError
from crossroads.models import pairs as pairs_module
from crossroads.models.catalogue import (
    DEFAULT_PAIR,
    LLAMACPP,
    MODELS,
    PAIRS,
    REMOTE,
    TRANSFORMERS,
    ModelSpec,
    PairSpec,
    find_model,
    find_pair,
    find_pair_or_models,
)
from crossroads.models.pairs import check_pair, load_model, load_pair, resolve_pair
from crossroads.models.sources import PackageIndexSource
from crossroads.types import Message, Progress, Role


@pytest.fixture(autouse=True)
def empty_cache(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if request.node.get_closest_marker("pair"):
        return  # these need the weights that were pulled
    monkeypatch.setenv("CROSSROADS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


# ---- the catalogue -----------------------------------------------------------------------------


def test_every_pair_names_known_models_and_every_file_can_be_fetched() -> None:
    assert DEFAULT_PAIR in PAIRS
    for pair in PAIRS.values():
        assert MODELS[pair.small.name] is pair.small
        assert MODELS[pair.large.name] is pair.large
        assert pair.small.approx_parameters < pair.large.approx_parameters
    for model in MODELS.values():
        assert (model.engine == LLAMACPP) == (model.file is not None)
        if model.file is not None:
            assert len(model.file.sha256) == 64
            assert model.file.name.endswith(".gguf")
            assert model.file.sources
    assert len({m.file.sha256 for m in MODELS.values() if m.file}) == 3


def test_parts_are_in_numeric_order() -> None:
    file = MODELS["qwen2.5-coder-1.5b"].file
    assert file is not None
    source = file.sources[0]
    assert isinstance(source, PackageIndexSource)
    numbers = [int(p.partition("==")[0].rpartition("part")[2]) for p in source.packages]
    assert numbers == list(range(1, 23))


def test_an_unknown_name_gets_the_nearest_one_and_the_list() -> None:
    with pytest.raises(PairError, match=r"no pair 'qwen2.5-codr', did you mean qwen2.5-coder\?"):
        find_pair("qwen2.5-codr")
    with pytest.raises(PairError, match=r"known: .*smollm2-135m.*or give a \.gguf file"):
        find_model("nothing like it")
    with pytest.raises(PairError, match="no pair or model"):
        find_pair_or_models("nothing like it")


def test_a_model_is_a_name_a_file_a_folder_or_a_hub_name(tmp_path: Path) -> None:
    assert find_model("qwen3-8b") is MODELS["qwen3-8b"]
    gguf = tmp_path / "own.gguf"
    gguf.write_bytes(b"GGUF")
    assert find_model(str(gguf)) == ModelSpec("own", LLAMACPP, path=gguf)
    folder = tmp_path / "org" / "model"
    folder.mkdir(parents=True)
    with pytest.raises(PairError, match=r"has no config\.json"):
        find_model("org/model")
    (folder / "config.json").write_text("{}")
    assert find_model("org/model") == ModelSpec("model", TRANSFORMERS, path=Path("org/model"))
    assert find_model("other/model") == ModelSpec("other/model", TRANSFORMERS, repo="other/model")


@pytest.mark.parametrize("path", ["./absent", "/no/where.gguf", "sub/absent.gguf"])
def test_a_path_that_is_not_there_is_not_taken_for_a_hub_name(path: str) -> None:
    with pytest.raises(PairError, match="there is no model at"):
        find_pair_or_models(path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(PairError, match=r"is not a \.gguf file"):
        find_model(str(tmp_path / "model.bin"))


def test_a_model_may_be_one_for_which_a_server_is_started(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    plain, started = find_model("org/model@vllm"), find_model(f"{tmp_path}@vllm --dtype half ")
    assert (plain.repo, plain.engine, plain.vllm, plain.urls) == ("org/model", REMOTE, "", ())
    assert (started.path, started.engine, started.vllm) == (tmp_path, REMOTE, "--dtype half")
    assert find_model("org/model").vllm is None


@pytest.mark.parametrize(
    ("reference", "complaint"),
    [
        ("qwen2.5-coder-1.5b@vllm", "vLLM runs .* and qwen2.5-coder-1.5b is a GGUF file"),
        ("org/model@vllmm", "there is no model 'org/model@vllmm'"),
        ("@vllm", "there is no model '@vllm'"),
    ],
)
def test_a_server_that_cannot_be_started_is_refused(reference: str, complaint: str) -> None:
    with pytest.raises(PairError, match=complaint):
        find_model(reference)


def test_a_model_has_one_place() -> None:
    with pytest.raises(ValueError, match="exactly one"):
        ModelSpec("nowhere", LLAMACPP)


# ---- which pair is meant -----------------------------------------------------------------------


def test_models_given_one_by_one_replace_those_of_the_pair() -> None:
    assert resolve_pair() is PAIRS[DEFAULT_PAIR]
    assert resolve_pair("r1") is PAIRS["r1"]
    mixed = resolve_pair("qwen3-0.6b-8b", large="qwen3-32b")
    assert (mixed.small.name, mixed.large.name) == ("qwen3-0.6b", "qwen3-32b")
    assert mixed.name == "qwen3-0.6b+qwen3-32b"
    assert resolve_pair(small="qwen3-4b", large="qwen3-8b").small is MODELS["qwen3-4b"]


def test_half_a_pair_is_refused() -> None:
    with pytest.raises(PairError, match="the large one is missing; give --large"):
        resolve_pair(small="qwen3-4b")
    with pytest.raises(PairError, match="the small one is missing; give --small"):
        resolve_pair(large="qwen3-4b")


# ---- tokenizers --------------------------------------------------------------------------------


def test_equal_tokens_make_a_pair_whatever_the_padding() -> None:
    check_pair([b"a", b"b", None], [b"a", b"b"], "s", "l")


@pytest.mark.parametrize(
    ("small", "large", "words"),
    [
        ([b"a", b"b", b"c"], [b"a", b"x", b"y"], "token 1 is 'b' in s and 'x' in l"),
        ([b"a"], [b"a", b" the"], "token 1 is nothing in s and ' the' in l"),
        ([b"\xff\xfe"], [b"\n"], r"token 0 is the bytes ff fe in s and '\n' in l"),
    ],
)
def test_the_first_token_that_differs_is_named(
    small: list[bytes | None], large: list[bytes | None], words: str
) -> None:
    with pytest.raises(PairError) as caught:
        check_pair(small, large, "s", "l")
    assert words in str(caught.value)
    assert "choose two models with one tokenizer" in str(caught.value)


# ---- loading -----------------------------------------------------------------------------------


class FakeTokenizer:
    def __init__(self, pieces: Sequence[bytes | None]) -> None:
        self._pieces = pieces

    @property
    def fingerprint(self) -> str:
        return repr(self._pieces)

    def pieces(self) -> Sequence[bytes | None]:
        return self._pieces

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def decode(self, token_ids: Sequence[int]) -> str:
        raise NotImplementedError

    def text_bytes(self, token_id: int) -> bytes:
        raise NotImplementedError

    def render(self, messages: Sequence[Message]) -> list[int]:
        raise NotImplementedError


class FakeEngine:
    """Stands for the engines: remembers what was loaded and closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pieces: dict[str, list[bytes]]) -> None:
        self.loaded: list[str] = []
        self.closed: list[str] = []
        self.failing = ""
        self.pieces = pieces
        monkeypatch.setattr(pairs_module, "load_tokenizer", self._tokenizer)
        monkeypatch.setattr(pairs_module, "_load", self._load)
        # These files have no header to estimate from; tests/models/test_memory.py has some.
        monkeypatch.setattr(pairs_module._LoadSize, "check_memory", lambda _size, _models: None)

    def _tokenizer(self, spec: ModelSpec, _path: Path) -> FakeTokenizer:
        return FakeTokenizer(self.pieces[spec.name])

    def _load(
        self, spec: ModelSpec, path: Path, size: object, progress: Progress | None, role: Role
    ) -> object:
        assert path.exists()
        del size, progress, role
        if spec.name == self.failing:
            raise MemoryError
        self.loaded.append(spec.name)
        engine = self

        class Model:
            def close(self) -> None:
                engine.closed.append(spec.name)

        return Model()


@pytest.fixture
def specs(tmp_path: Path) -> PairSpec:
    for name in ("s", "l"):
        (tmp_path / f"{name}.gguf").write_bytes(b"GGUF")
    return resolve_pair(small=str(tmp_path / "s.gguf"), large=str(tmp_path / "l.gguf"))


def test_a_pair_is_loaded_and_closed(specs: PairSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(monkeypatch, {"s": [b"a"], "l": [b"a"]})
    with load_pair(specs) as pair:
        assert pair.name == "s+l"
        assert engine.loaded == ["s", "l"]
        assert pair.tokenizer.pieces() == [b"a"]
        assert engine.closed == []
    assert engine.closed == ["s", "l"]


def test_two_tokenizers_are_refused_before_any_weights_are_read(
    specs: PairSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(monkeypatch, {"s": [b"a"], "l": [b"b"]})
    with pytest.raises(PairError, match="s and l cannot be a pair: token 0"):
        load_pair(specs)
    assert engine.loaded == []


def test_when_the_large_model_fails_the_small_one_is_freed(
    specs: PairSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(monkeypatch, {"s": [b"a"], "l": [b"a"]})
    engine.failing = "l"
    with pytest.raises(MemoryError):
        load_pair(specs)
    assert engine.closed == ["s"]


def test_missing_weights_are_an_error_and_never_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossroads.models.sources.obtain", pytest.fail)
    with pytest.raises(WeightsError, match=r"run: crossroads pull qwen2\.5-coder$"):
        load_pair(DEFAULT_PAIR)
    with pytest.raises(WeightsError, match=r"run: crossroads pull smollm2-135m$"):
        load_model("smollm2-135m")
    with pytest.raises(WeightsError, match=r"run: crossroads pull qwen3-4b$"):
        load_pair(resolve_pair(small="qwen3-4b", large="qwen3-8b"))
    assert not (tmp_path / "cache").exists()


@pytest.mark.pair
def test_the_real_impossible_pair_is_refused() -> None:
    pytest.importorskip("llama_cpp")
    try:
        load_model("smollm2-135m", context_length=64).close()
        large = pairs_module.locate(MODELS["qwen2.5-coder-1.5b"], pull=DEFAULT_PAIR)
    except WeightsError as error:
        pytest.skip(str(error))
    assert large.exists()
    with pytest.raises(PairError, match=r"token 0 is '<\|endoftext\|>' in smollm2-135m and '!'"):
        load_pair(resolve_pair(DEFAULT_PAIR, small="smollm2-135m"))
