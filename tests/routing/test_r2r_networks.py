"""R2R's networks are the documented ones, and its checkpoints become router folders."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from crossroads.errors import RouterError
from crossroads.routing.checkpoint import SmallModelId, load_router
from crossroads.routing.convert import convert_r2r_checkpoint, read_checkpoint
from crossroads.routing.routers.neural import build_network, config_values
from crossroads.routing.routers.r2r import (
    MODEL_TYPES,
    REFUSED_TYPES,
    R2RNetwork,
    R2RNetworkConfig,
    find_type,
    network_settings,
)

HIDDEN, LOGITS, VOCABULARY = 12, 100, 40
SMALL = SmallModelId("tiny", "scripted", "f" * 64, HIDDEN, VOCABULARY)
WIDTHS = {"hidden": HIDDEN, "token_embedding": HIDDEN, "top_logits": LOGITS}
DEFAULT = "HiddenStatesTokenLMHeadLogitsClassifier"
types = pytest.mark.parametrize("name", list(MODEL_TYPES))


def features(rows: int, names: tuple[str, ...] = tuple(WIDTHS), seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: 3 * torch.randn(rows, WIDTHS[name], generator=generator) for name in names}


def arguments(name: str, **more: Any) -> dict[str, Any]:
    """Return what R2R's config would give a small network of that type."""
    found: dict[str, Any] = {"hidden_dims": [8, 16, 8], "dropout_rate": 0.1, **more}
    takes = MODEL_TYPES[name].takes
    if "hidden_states_size" in takes:
        found["hidden_states_size"] = HIDDEN
    if "logits_size" in takes:
        found["logits_size"] = LOGITS
    if "pretrained_model_name" in takes:
        found["freeze_lm_head"] = True
    return found


def network(name: str, **more: Any) -> R2RNetwork:
    inputs = MODEL_TYPES[name].features
    settings = network_settings(name, arguments(name, **more))
    torch.manual_seed(0)
    config = R2RNetworkConfig(inputs, tuple(WIDTHS[n] for n in inputs), **settings)
    return R2RNetwork(config).eval()


def test_the_default_has_56_million_parameters_at_its_size() -> None:
    inputs = MODEL_TYPES[DEFAULT].features
    with torch.device("meta"):
        made = R2RNetwork(R2RNetworkConfig(inputs, (1536, 1536, 100)))
    block = 2 * 1024 + (1024 * 4096 + 4096) + (4096 * 1024 + 1024)
    front = (100 * 1536 + 1536) + (3 * 1536 * 1024 + 1024) + (1024 * 1024 + 1024)
    expected = front + 6 * block + (2 * 1024 + 1024 + 1)
    assert sum(p.numel() for p in made.parameters()) == expected == 56_302_081


def retold(weights: dict[str, Tensor], values: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    """Return a network's logits by the documented formula, from weights under R2R's names."""
    normalise, blocks = config["normalize_input"], len(config["hidden_dims"])

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(dim=1, keepdim=True)
        deviation = (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
        return centred / deviation * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    parts = []
    for name, own in (
        ("hidden", "layer_norm_hidden_states"),
        ("token_embedding", "layer_norm_token"),
    ):
        if name in values:
            layer = own if f"{own}.bias" in weights else "layer_norm"
            parts.append(norm(layer, values[name]) if normalise else values[name])
    if "top_logits" in values:
        some = values["top_logits"]
        parts.append(linear("logits_projection", some.softmax(dim=1) if normalise else some))
    x = torch.cat(parts, dim=1)
    for name in ("combined_projection", "hidden_states_projection"):
        x = linear(name, x) if f"{name}.weight" in weights else x
    x = linear("backbone.input_projection", x)
    for i in range(blocks):
        block, change = f"backbone.blocks.{i}", f"backbone.blocks.{i}.dim_change"
        inner = linear(f"{block}.mlp.0", norm(f"{block}.layer_norm", x))
        inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
        skip = linear(change, x) if f"{change}.weight" in weights else x
        x = skip + linear(f"{block}.mlp.3", inner)
    return linear("backbone.output_layer.1", norm("backbone.output_layer.0", x))[:, 0]


@types
@pytest.mark.parametrize("normalise", [False, True])
def test_every_type_reads_what_its_name_says_and_nothing_else(name: str, normalise: bool) -> None:
    more = {"neural_window_size": 1} if name == "MultiHiddenStatesClassifier" else {}
    if name == "MultiLogitsClassifier":
        more = {"neural_window_size": 4}
    made = network(name, normalize_input=normalise, **more)
    read = features(7, MODEL_TYPES[name].features)
    assert made(read).shape == (7,)
    for changed in read:
        other = {**read, changed: features(7, seed=1)[changed]}
        assert not torch.equal(made(other), made(read)), changed


def test_normalised_inputs_do_not_feel_scale_and_shift() -> None:
    made, values = network(DEFAULT, normalize_input=True), features(5)
    scaled = {
        "hidden": 50 * values["hidden"] + 3,
        "token_embedding": 0.5 * values["token_embedding"] - 1,
        "top_logits": values["top_logits"] + 20,
    }
    torch.testing.assert_close(made(scaled), made(values), rtol=1e-3, atol=1e-3)
    raw = network(DEFAULT)
    assert not torch.allclose(raw(scaled), raw(values), rtol=0.1)


def test_statistics_standardise_and_are_not_there_by_default() -> None:
    made, values = network(DEFAULT), features(5)
    before = made(values)
    mean = {n: torch.full((w,), 2.0) for n, w in WIDTHS.items()}
    scale = {n: torch.full((w,), 4.0) for n, w in WIDTHS.items()}
    made.set_statistics(mean, scale)
    torch.testing.assert_close(made({n: 4 * v + 2 for n, v in values.items()}), before)


def test_only_what_follows_the_first_map_begins_kaiming_normal() -> None:
    torch.manual_seed(0)
    made = R2RNetwork(R2RNetworkConfig(tuple(WIDTHS), (200, 200, 100), (256, 256)))
    for name, module in made.named_modules():
        if not isinstance(module, torch.nn.Linear) or module.out_features < 100:
            continue
        deviation = float(module.weight.detach().std()) * module.in_features**0.5
        if name.startswith("backbone"):
            assert deviation == pytest.approx(2**0.5, rel=0.05), name
            assert not module.bias.any(), name
        else:
            assert deviation == pytest.approx(3**-0.5, rel=0.05), name


@pytest.mark.parametrize("name", [*REFUSED_TYPES, "HiddenStatesClasifier"])
def test_a_type_that_cannot_be_used_says_why(name: str) -> None:
    with pytest.raises(RouterError, match=r"cannot be used: |did you mean"):
        find_type(name)


def test_a_name_in_other_letters_is_found_as_r2r_finds_it() -> None:
    assert find_type(DEFAULT.lower())[0] == DEFAULT


@types
def test_what_is_not_said_is_what_r2rs_classes_take_and_not_what_its_configs_say(name: str) -> None:
    required = {"logits_size": LOGITS, "hidden_states_size": HIDDEN}
    config = R2RNetworkConfig(
        MODEL_TYPES[name].features,
        tuple(WIDTHS[n] for n in MODEL_TYPES[name].features),
        **network_settings(name, required),
    )
    assert config.hidden_dims == (256, 512, 256)
    assert (config.expansion_factor, config.dropout_rate) == (4, 0.3)
    assert not config.normalize_input


def test_our_defaults_are_those_of_r2rs_shipped_configs() -> None:
    config = R2RNetworkConfig(tuple(WIDTHS), tuple(WIDTHS.values()))
    assert config.hidden_dims == (1024,) * 6
    assert (config.expansion_factor, config.dropout_rate, config.logits_size) == (4, 0.1, 100)
    assert not config.normalize_input


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"use_position_embedding": True}, "use_position_embedding cannot be used"),
        ({"output_dim": 3}, "output_dim must be 1"),
        ({"hidden_dims": [0]}, "hidden_dims"),
        ({"hidden_dims": []}, "hidden_dims"),
        ({"expansion_factor": 0}, "expansion_factor"),
        ({"dropout_rate": 1.0}, "dropout_rate"),
    ],
)
def test_arguments_that_make_no_network_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RouterError, match=message):
        network(DEFAULT, **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inputs": ()}, "one width per input"),
        ({"logits_size": 101}, "logits_size"),
        ({"logits_size": 0}, "logits_size"),
        ({"window": 3}, "window must divide"),
    ],
)
def test_configs_that_make_no_network_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RouterError, match=message):
        R2RNetworkConfig(**{"inputs": ("top_logits",), "widths": (LOGITS,), **values})


# Checkpoints


def theirs(name: str, made: R2RNetwork) -> dict[str, Tensor]:
    """Return the network's weights under the names that R2R gives them."""
    found = {}
    for key, value in made.state_dict().items():
        if key.startswith(("mean_", "scale_")):
            continue
        alone = MODEL_TYPES[name].inputs == ("hidden_states",)
        if alone:
            key = key.replace("combined_projection", "hidden_states_projection")  # noqa: PLW2901
            key = key.replace("norms.hidden", "layer_norm")  # noqa: PLW2901
        key = key.replace("norms.hidden", "layer_norm_hidden_states")  # noqa: PLW2901
        found[key.replace("norms.token_embedding", "layer_norm_token")] = value.clone()
    return found


def checkpoint(path: Path, name: str, **changes: Any) -> Path:
    """Write a checkpoint in R2R's layout."""
    more = changes.pop("arguments", {})
    made = network(name, **more)
    content = {
        "model_type": name,
        "init_args": arguments(name, **more),
        "common_args": {"threshold": 0.3367, "input_type": list(MODEL_TYPES[name].inputs)},
        "model_specific_args": {},
        "state_dict": theirs(name, made),
        **changes,
    }
    torch.save(content, path)
    return path


IN_FRONT = {
    DEFAULT: "layer_norm_hidden_states layer_norm_token logits_projection combined_projection",
    "HiddenStatesTokenLMHeadClassifier": (
        "layer_norm_hidden_states layer_norm_token combined_projection"
    ),
    "HiddenStatesLogitsClassifier": (
        "layer_norm_hidden_states logits_projection combined_projection"
    ),
    "HiddenStatesClassifier": "layer_norm hidden_states_projection",
    "LogitsClassifier": "logits_projection",
    "MultiHiddenStatesClassifier": "layer_norm hidden_states_projection",
    "MultiLogitsClassifier": "logits_projection",
}
"""The modules of each of R2R's classes before the blocks, with normalised inputs."""


@types
def test_checkpoints_here_have_r2rs_names(name: str) -> None:
    """Else the tests below would show only that we can read ourselves."""
    blocks = [
        f"backbone.blocks.{i}.{m}" for i in range(3) for m in ("layer_norm", "mlp.0", "mlp.3")
    ]
    blocks += ["backbone.blocks.0.dim_change", "backbone.blocks.1.dim_change"]
    modules = {"backbone.input_projection", "backbone.output_layer.0", "backbone.output_layer.1"}
    modules |= {*IN_FRONT[name].split(), *blocks}
    names = {f"{module}.{part}" for module in modules for part in ("weight", "bias")}
    assert set(theirs(name, network(name, normalize_input=True, neural_window_size=1))) == names


@types
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("dims", [[8, 8], [8, 16, 8]])
def test_a_converted_router_is_the_formula_of_its_checkpoint(
    tmp_path: Path, name: str, normalise: bool, dims: list[int]
) -> None:
    more: dict[str, Any] = {"normalize_input": normalise, "hidden_dims": dims}
    if "neural_window_size" in MODEL_TYPES[name].takes:
        more["neural_window_size"] = 1
    path = checkpoint(tmp_path / "router.pt", name, arguments=more)
    written = convert_r2r_checkpoint(path, SMALL, tmp_path / "router")
    loaded = load_router(tmp_path / "router")
    assert loaded.card.threshold == 0.3367
    assert loaded.router.inputs == MODEL_TYPES[name].features
    values = features(11)
    read = {n: values[n].double() for n in MODEL_TYPES[name].features}
    weights = {n: w.double() for n, w in read_checkpoint(path).tensors.items()}
    expected = torch.sigmoid(retold(weights, read, more)).float()
    torch.testing.assert_close(loaded.router.score(values), expected, rtol=1e-5, atol=1e-7)
    assert torch.equal(loaded.router.score(values), written.score(values))


def test_the_architecture_is_registered_under_its_name() -> None:
    made = network(DEFAULT, normalize_input=True)
    values = json.loads(json.dumps(config_values(made)))
    again = build_network("r2r", values)
    assert isinstance(again, R2RNetwork)
    assert again.config == made.config
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.eval()(features(3)), made(features(3)))


def test_windows_of_logits_are_normalised_apart() -> None:
    made = network("MultiLogitsClassifier", normalize_input=True, neural_window_size=4)
    values = features(5)["top_logits"]
    shifts = torch.tensor([1.0, -2.0, 3.0, 10.0]).repeat_interleave(LOGITS // 4)
    shifted = made({"top_logits": values + shifts})
    torch.testing.assert_close(shifted, made({"top_logits": values}), rtol=1e-4, atol=1e-4)
    one = network("MultiLogitsClassifier", normalize_input=True, neural_window_size=1)
    assert not torch.allclose(
        one({"top_logits": values + shifts}), one({"top_logits": values}), rtol=0.01
    )


def test_frozen_embeddings_are_left_out_and_said(tmp_path: Path) -> None:
    embeddings = torch.randn(VOCABULARY, HIDDEN)
    weights = {**theirs(DEFAULT, network(DEFAULT)), "token_embeddings.weight": embeddings}
    path = checkpoint(tmp_path / "a.pt", DEFAULT, state_dict=weights)
    convert_r2r_checkpoint(path, SMALL, tmp_path / "router")
    card = load_router(tmp_path / "router").card
    assert "left out" in card.provenance["token_embeddings"]
    convert_r2r_checkpoint(
        path, SMALL, tmp_path / "proved", embed=lambda ids: embeddings[list(ids)]
    )
    assert "own" in load_router(tmp_path / "proved").card.provenance["token_embeddings"]
    with pytest.raises(RouterError, match="are not the small model's"):
        convert_r2r_checkpoint(
            path, SMALL, tmp_path / "c", embed=lambda ids: embeddings[list(ids)] + 1
        )


def test_trained_embeddings_are_refused(tmp_path: Path) -> None:
    weights = {
        **theirs(DEFAULT, network(DEFAULT)),
        "token_embeddings.weight": torch.randn(VOCABULARY, HIDDEN),
    }
    values = {**arguments(DEFAULT), "freeze_lm_head": False}
    path = checkpoint(tmp_path / "a.pt", DEFAULT, state_dict=weights, init_args=values)
    with pytest.raises(RouterError, match="embeddings that were trained"):
        convert_r2r_checkpoint(path, SMALL, tmp_path / "router")


def test_random_embeddings_of_an_offline_training_are_recognised(tmp_path: Path) -> None:
    weights = theirs(DEFAULT, network(DEFAULT))
    # R2R's fallback table has rows of hidden_dims[0] = 8 numbers, not 12.
    weights["combined_projection.weight"] = torch.zeros(8, 2 * HIDDEN + 8)
    path = checkpoint(tmp_path / "a.pt", DEFAULT, state_dict=weights)
    with pytest.raises(RouterError, match="R2R takes random token embeddings"):
        convert_r2r_checkpoint(path, SMALL, tmp_path / "router")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("backbone.output_layer.1.bias"), "no weights 'backbone.output_layer.1.b"),
        (lambda w: w.update(extra=torch.zeros(2)), "has weights 'extra'"),
        (
            lambda w: w.update({"backbone.blocks.0.mlp.0.bias": torch.zeros(3)}),
            r"backbone.blocks.0.mlp.0.bias has shape \[3\]",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, change: Any, message: str) -> None:
    weights = theirs(DEFAULT, network(DEFAULT))
    change(weights)
    path = checkpoint(tmp_path / "a.pt", DEFAULT, state_dict=weights)
    with pytest.raises(RouterError, match=message):
        convert_r2r_checkpoint(path, SMALL, tmp_path / "router")
    assert not (tmp_path / "router").exists()


def test_another_model_and_a_missing_threshold_are_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.pt", DEFAULT)
    other = SmallModelId("wide", "scripted", "f" * 64, 2 * HIDDEN, VOCABULARY)
    with pytest.raises(RouterError, match=f"is for hidden size {HIDDEN}, wide has {2 * HIDDEN}"):
        convert_r2r_checkpoint(path, other, tmp_path / "router")
    path = checkpoint(tmp_path / "b.pt", DEFAULT, common_args={"threshold": None})
    with pytest.raises(RouterError, match="has no threshold"):
        convert_r2r_checkpoint(path, SMALL, tmp_path / "router")
    convert_r2r_checkpoint(path, SMALL, tmp_path / "router", threshold=0.25)
    assert load_router(tmp_path / "router").card.threshold == 0.25


class Trap:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


def test_nothing_in_a_pickle_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model_type": DEFAULT, "init_args": {}, "state_dict": {}, "x": Trap()}, "a.pt")
    Path("b.pt").write_bytes(pickle.dumps(Trap(), protocol=2))
    Path("c.pt").write_bytes(b"nothing of the kind")
    for name in ("a.pt", "b.pt", "c.pt"):
        with pytest.raises(RouterError, match="not a checkpoint of plain tensors"):
            read_checkpoint(Path(name))
    assert not Path("executed").exists()


@pytest.mark.parametrize("content", [[1, 2], {"model_type": DEFAULT}, {"state_dict": {}}])
def test_other_files_are_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(RouterError, match="R2R's checkpoint"):
        read_checkpoint(tmp_path / "a.pt")
    with pytest.raises(RouterError, match="no R2R checkpoint at"):
        read_checkpoint(tmp_path / "missing.pt")


def test_a_dtype_among_the_arguments_is_read(tmp_path: Path) -> None:
    values = {**arguments(DEFAULT), "dtype": torch.float32}
    path = checkpoint(tmp_path / "a.pt", DEFAULT, init_args=values)
    convert_r2r_checkpoint(path, SMALL, tmp_path / "router")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"init_args": {"hiden_dims": [8]}}, "argument 'hiden_dims'.*did you mean 'hidden_dims'"),
        ({"common_args": {"threshold": "high"}}, "threshold 'high', which is not a number"),
        ({"common_args": {"threshold": float("nan")}}, "threshold nan, which is not a number"),
        ({"common_args": {"threshold": 0.5, "input_type": ["logits"]}}, "reads logits, but"),
        ({"common_args": [0.5]}, "no 'common_args'"),
        ({"model_type": "LogitsClasifier"}, "did you mean 'LogitsClassifier'"),
        ({"state_dict": {"a": torch.tensor([torch.inf])}}, "'a' that are not finite numbers"),
        ({"state_dict": {"a": 1.0}}, "'a' that are not finite numbers"),
    ],
)
def test_what_a_checkpoint_says_amiss_is_named(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    path = checkpoint(tmp_path / "a.pt", DEFAULT, **values)
    with pytest.raises(RouterError, match=message):
        convert_r2r_checkpoint(path, SMALL, tmp_path / "router")
    assert not (tmp_path / "router").exists()


def test_embeddings_of_another_size_are_random_ones(tmp_path: Path) -> None:
    weights = {
        **theirs(DEFAULT, network(DEFAULT)),
        "token_embeddings.weight": torch.zeros(50257, 8),
    }
    path = checkpoint(tmp_path / "a.pt", DEFAULT, state_dict=weights)
    with pytest.raises(RouterError, match=r"50257 of size 8, not the small model's.*random"):
        convert_r2r_checkpoint(path, SMALL, tmp_path / "router")


def test_embeddings_that_were_trained_and_are_gone_are_said(tmp_path: Path) -> None:
    """R2R's smaller file lacks them, and R2R puts the model's own in their place."""
    values = {**arguments(DEFAULT), "freeze_lm_head": False}
    path = checkpoint(tmp_path / "a.pt", DEFAULT, init_args=values)
    convert_r2r_checkpoint(path, SMALL, tmp_path / "router")
    said = load_router(tmp_path / "router").card.provenance["token_embeddings"]
    assert "trained" in said
    assert "small model's own" in said


def test_half_precision_weights_are_read(tmp_path: Path) -> None:
    weights = {n: w.bfloat16() for n, w in theirs(DEFAULT, network(DEFAULT)).items()}
    path = checkpoint(tmp_path / "a.pt", DEFAULT, state_dict=weights)
    got = convert_r2r_checkpoint(path, SMALL, tmp_path / "router").network.state_dict()
    assert torch.equal(got["logits_projection.weight"], weights["logits_projection.weight"].float())
