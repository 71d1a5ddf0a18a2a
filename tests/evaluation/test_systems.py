"""What systems are called, and that a wrong name is one sentence before anything runs."""

from __future__ import annotations

import pytest
import torch

from crossroads.errors import ConfigError, CrossroadsError
from crossroads.evaluation.kinds import SystemKind
from crossroads.evaluation.systems import (
    DRAFT_TOKENS,
    default_systems,
    fingerprint,
    parse_systems,
    trained_system,
)
from crossroads.routing.checkpoint import RouterCard, SmallModelId
from crossroads.routing.choose import ChosenRouter
from crossroads.routing.routers.neural import NeuralRouter, build_network
from crossroads.types import Role

VOCAB = 64


def chosen(seed: int = 0) -> ChosenRouter:
    torch.manual_seed(seed)
    router = NeuralRouter("mlp", build_network("mlp", {"inputs": ["entropy"], "widths": [1]}))
    point = {"recall": 0.95, "positive_rate": 0.2}
    small = SmallModelId("small", "scripted", "f", 8, VOCAB)
    return ChosenRouter(router, 0.25, RouterCard(small, "large", "g", "p", 0.25, {"point": point}))


def test_names_say_what_a_system_is() -> None:
    names = ["small", "large", "router", "router@0.5", "router~0.1", "margin~router", "lossless:6"]
    names.append("random~router@0.5")
    found = {system.name: system for system in parse_systems(names, VOCAB, chosen())}
    assert found["small"].role is Role.SMALL
    assert found["large"].kind is SystemKind.LARGE
    assert (found["router"].threshold, found["router"].recall) == (0.25, 0.95)
    assert (found["router@0.5"].threshold, found["router@0.5"].recall) == (0.5, None)
    assert (found["router~0.1"].threshold, found["router~0.1"].fraction) == (None, 0.1)
    assert found["margin~router"].like == "router"
    assert found["random~router@0.5"].like == "router@0.5"
    assert found["lossless:6"].options == {"lossless": True, "max_lag": 6}
    (plain,) = parse_systems(["lossless"], VOCAB, None)
    assert plain.options["max_lag"] == DRAFT_TOKENS


def test_a_matched_system_comes_after_what_it_is_matched_to() -> None:
    found = [s.name for s in parse_systems(["entropy~router", "small", "router"], VOCAB, chosen())]
    assert found == ["small", "router", "entropy~router"]
    names = ["router", "entropy~router", "small", "random~large", "large"]
    found = [s.name for s in parse_systems(names, VOCAB, chosen())]
    assert found == ["router", "entropy~router", "small", "large", "random~large"]


@pytest.mark.parametrize("trained", [True, False])
def test_the_defaults_are_systems(trained: bool) -> None:
    names = default_systems([0.05, 0.2], trained=trained)
    found = parse_systems(names, VOCAB, chosen() if trained else None)
    assert {system.name for system in found} == set(names)
    first = "router" if trained else "entropy"
    assert {"small", "large", first, f"{first}~0.05", "random~0.2", "lossless"} <= set(names)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["smal"], "no system 'smal'; did you mean 'small'"),
        (["entropy", "entropy"], "given twice"),
        (["entropy~router"], "'router', which is not among the systems"),
        (["router"], "needs a trained router"),
        (["entropy@high"], "ends in 'high'"),
        (["entropy@nan"], "threshold"),
        (["entropy~1.5"], "between 0 and 1"),
        (["entropy~"], "after ~"),
        (["lossless:0"], "whole number of draft tokens"),
        (["oracle:2"], r"ratio must be in \(0, 1\]"),
        (["small", "margin~small", "entropy~margin~small"], "itself matched"),
    ],
)
def test_a_wrong_name_is_one_sentence(names: list[str], message: str) -> None:
    with pytest.raises(CrossroadsError, match=message) as caught:
        parse_systems(names, VOCAB, None)
    assert "\n" not in str(caught.value)


def test_a_fingerprint_tells_routers_apart() -> None:
    one, other = chosen(0), chosen(1)
    assert fingerprint(one.router) == fingerprint(chosen(0).router)
    assert fingerprint(one.router) != fingerprint(other.router)
    assert isinstance(one.router, NeuralRouter)
    assert fingerprint(one.router) != fingerprint(one.router.rescaled(2.0, 0.0))
    assert trained_system(one).identity == fingerprint(one.router)


def test_matching_to_what_is_missing_tells_how_to_add_it() -> None:
    with pytest.raises(ConfigError, match="add --system large"):
        parse_systems(["random~large"], VOCAB, None)
