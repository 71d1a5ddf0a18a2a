"""An order that makes no sense is refused where it arrives: an engine that obeys it would stop."""

from __future__ import annotations

import json
from typing import Any

import pytest

from crossroads.models.remote_wire import XARG, Order, ReservedIds
from crossroads.sampling import SamplingParams
from crossroads.types import Role
from crossroads.vllm.deciding import read_order

GOOD = Order(Role.SMALL, 0.5, SamplingParams(0.7), 3, 5, ReservedIds(61, 62, 63), judged=(4, 5))


def _with(field: str, value: Any) -> dict[str, str]:
    order = json.loads(GOOD.to_xargs()[XARG])
    order[field] = value
    return {XARG: json.dumps(order)}


def test_an_order_comes_back_as_it_was() -> None:
    assert read_order(GOOD.to_xargs()) == GOOD
    assert GOOD.largest_id == 63


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("drawn", -1), ("drawn", 1.5), ("drawn", True), ("drawn", "3"), ("drawn", None),
        ("drawn", 2**40), ("prompt_length", []), ("tops", -2), ("tops", "all"),
        ("judged", [1, "2"]), ("judged", 3), ("judged", None),
        ("threshold", "high"), ("threshold", None),
        ("role", "middle"), ("sampling", {"temperature": -1}), ("sampling", 3),
        ("reserved", {"hand_over": 1, "score": 1, "entropy": 2}), ("reserved", [1, 2, 3]),
        ("reserved", {"hand_over": -1, "score": 1, "entropy": 2}), ("policy", "luck"),
        ("policy", None), ("state", ["a"]), ("state", 7), ("more", 1),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"no order of this version|no policy of this version"):
        read_order(_with(field, value))


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"role": "small"}'])
def test_what_is_no_order_at_all_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no order of this version"):
        read_order({XARG: text})
