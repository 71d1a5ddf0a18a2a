"""Law 10: a loaded router gives bit-identical scores; a wrong or altered folder is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch

from crossroads.errors import RouterError
from crossroads.routing.checkpoint import (
    RouterCard,
    SmallModelId,
    load_router,
    router_by_name,
    save_router,
)
from crossroads.routing.routers.heuristics import HEURISTICS
from crossroads.routing.routers.neural import NeuralRouter, build_network
from crossroads.types import ModelInfo

INFO = ModelInfo(
    name="tiny",
    engine="scripted",
    fingerprint="f" * 64,
    parameters=10,
    active_parameters=10,
    vocab_size=64,
    hidden_size=40,
    context_length=100,
    max_rows=4,
    eos_ids=(0,),
    dtype="float32",
    tokenizer_fingerprint="t",
)
WIDTHS = {"entropy": 1, "top_logprobs": 100, "hidden": 40}


def features(count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: 3 * torch.randn(count, w, generator=generator) for n, w in WIDTHS.items()}


def router(**settings: float) -> NeuralRouter:
    torch.manual_seed(0)
    config = {"inputs": list(WIDTHS), "widths": list(WIDTHS.values()), **settings}
    network = build_network("mlp", config)
    mean = {n: torch.randn(w) for n, w in WIDTHS.items()}
    network.set_statistics(mean, {n: torch.rand(w) + 0.5 for n, w in WIDTHS.items()})
    return NeuralRouter("mlp", network)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    card = RouterCard(SmallModelId.of(INFO), "big", "g" * 64, "pair", threshold=0.25)
    save_router(tmp_path / "router", router(), card)
    return tmp_path / "router"


def test_a_loaded_router_gives_bit_identical_scores(saved: Path) -> None:
    loaded = load_router(saved, INFO)
    assert torch.equal(loaded.router.score(features(50)), router().score(features(50)))
    assert loaded.card.threshold == 0.25
    assert loaded.router.parameters == router().parameters > 0


def test_scores_do_not_depend_on_the_batch() -> None:
    fixed, some = router(), features(200)
    scores = fixed.score(some)
    for i in range(200):
        one = {name: value[i : i + 1] for name, value in some.items()}
        assert torch.equal(fixed.score(one)[0], scores[i])
    halves = [
        fixed.score({n: v[part] for n, v in some.items()})
        for part in (slice(0, 77), slice(77, 200))
    ]
    assert torch.equal(torch.cat(halves), scores)


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("depth", [1, 3])
def test_a_score_is_what_the_trained_network_says(members: int, depth: int) -> None:
    """A router scores by other operations than training used; the sums must be the same."""
    trained = router(members=members, depth=depth, dropout=0.5).network
    exact = copy.deepcopy(trained).double()
    wild = {name: 20 * value for name, value in features(50).items()}  # some beyond the clamp
    expected = torch.sigmoid(0.7 * exact(wild) - 0.2)
    found = NeuralRouter("mlp", trained, scale=0.7, bias=-0.2).score(wild)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)
    assert float(expected.std()) > 0.01


def test_scores_lie_between_zero_and_one() -> None:
    scores = router().score(features(500))
    assert bool(((scores >= 0) & (scores <= 1)).all())
    assert float(scores.std()) > 0


@pytest.mark.parametrize("file", ["router.json", "router.safetensors"])
def test_an_altered_file_is_refused(saved: Path, file: str) -> None:
    path = saved / file
    content = bytearray(path.read_bytes())
    at = content.find(b"0.25") if file.endswith("json") else len(content) - 3
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(RouterError, match="altered"):
        load_router(saved, INFO)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 41}, "hidden size 40.*hidden size 41"),
        ({"engine": "llamacpp"}, "engine scripted.*engine llamacpp"),
        ({"fingerprint": "e" * 64}, "weights ffffffffffff.*weights eeeeeeeeeeee"),
        ({"vocab_size": 65}, "vocabulary 64.*vocabulary 65"),
    ],
)
def test_another_model_is_refused_by_name(saved: Path, change: dict, message: str) -> None:
    with pytest.raises(RouterError, match=message):
        load_router(saved, dataclasses.replace(INFO, **change))


def test_a_folder_without_a_router_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RouterError, match=r"no router at .*crossroads train"):
        load_router(tmp_path, INFO)


def test_missing_weights_are_refused(saved: Path) -> None:
    (saved / "router.safetensors").unlink()
    with pytest.raises(RouterError, match="missing or was altered"):
        load_router(saved)


def test_another_format_is_refused(saved: Path) -> None:
    card = json.loads((saved / "router.json").read_text())
    (saved / "router.json").write_text(json.dumps({**card, "format": 99}))
    with pytest.raises(RouterError, match="format 99"):
        load_router(saved)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(RouterError, match="known: entropy, margin"):
        router_by_name("entropi", 64)
    with pytest.raises(RouterError, match="known: mlp"):
        build_network("cnn", {})
    with pytest.raises(RouterError, match="no setting 'input'; did you mean 'inputs'"):
        build_network("mlp", {"input": []})
    with pytest.raises(RouterError, match="does not fit"):
        build_network("mlp", {"inputs": ["entropy"]})


@pytest.mark.parametrize("name", list(HEURISTICS))
def test_every_heuristic_scores_in_range_and_pure(name: str) -> None:
    heuristic = router_by_name(name, 64, seed=1)
    values = {
        "entropy": torch.linspace(0, 4.1, 30)[:, None],
        "margin": torch.linspace(0, 1, 30)[:, None],
        "top_probability": torch.linspace(0.02, 1, 30)[:, None],
        "position": torch.arange(30)[:, None],
        "proposed_id": torch.arange(30)[:, None] * 7 % 64,
    }
    scores = heuristic.score(values)
    assert scores.shape == (30,)
    assert bool(((scores >= 0) & (scores <= 1)).all())
    again = heuristic.score({n: v[10:20] for n, v in values.items()})
    assert torch.equal(again, scores[10:20])


def test_random_scores_are_uniform_and_seeded() -> None:
    position = torch.arange(4000)[:, None]
    values = {"position": position, "proposed_id": position * 31 % 997}
    scores = router_by_name("random", 64, seed=1).score(values)
    assert torch.histc(scores, 10, 0, 1).tolist() == pytest.approx([400] * 10, abs=80)
    assert not torch.equal(scores, router_by_name("random", 64, seed=2).score(values))
    neighbours = torch.stack([scores[:-1], scores[1:]])
    assert abs(float(torch.corrcoef(neighbours)[0, 1])) < 0.05
