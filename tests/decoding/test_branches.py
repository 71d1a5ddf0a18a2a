"""Branches that share a stem grow as if each had been read and grown alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from crossroads.decoding.branches import Branch, Stem, grow
from crossroads.decoding.request import Request
from crossroads.decoding.single import generate_alone
from crossroads.errors import EngineError
from crossroads.models.base import CausalLM
from crossroads.models.pairs import Pair
from crossroads.sampling import SamplingParams
from crossroads.types import Role
from laws.pairs import VOCAB, scripted_pair


@dataclass
class After:
    """Ends a branch at an eos or after so many tokens."""

    left: int
    eos: int = 0

    def add(self, token_id: int) -> bool:
        self.left -= 1
        return token_id == self.eos or self.left <= 0


def stems(seed: int, temperature: float, count: int = 7) -> list[Stem]:
    generator = np.random.default_rng(seed)
    found = []
    for number in range(count):
        text = [int(t) for t in generator.integers(1, VOCAB, size=int(generator.integers(2, 30)))]
        branches = [
            Branch(
                f"{number}/{i}",
                at=int(generator.integers(1, len(text) + 1)),
                first=int(generator.integers(0, VOCAB)),
                stop=After(int(generator.integers(1, 25))),
                sampling=SamplingParams(temperature, seed=int(generator.integers(1000))),
            )
            for i in range(int(generator.integers(1, 6)))
        ]
        found.append(Stem(text, branches))
    return found


def alone(pair: Pair, stem: Stem, branch: Branch, limit: int) -> tuple[int, ...]:
    """Return the branch, read from the start in a row of its own."""
    if branch.first == 0 or limit == 1:
        return (branch.first,)
    prompt = (*stem.token_ids[: branch.at], branch.first)
    request = Request(prompt, max_tokens=limit - 1, sampling=branch.sampling)
    ((_, trace),) = generate_alone(pair.large, Role.LARGE, pair.tokenizer, [request])
    return (branch.first, *trace.token_ids)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("rows", [2, 3, 17])
def test_a_branch_is_what_it_is_alone(temperature: float, rows: int) -> None:
    pair = scripted_pair()
    given = stems(rows, temperature)
    limits = {b.id: b.stop.left for stem in given for b in stem.branches}
    grown = {branch.id: tokens for branch, tokens in
             grow(pair.large, Role.LARGE, given, max_rows=rows)}  # fmt: skip
    assert sorted(grown) == sorted(limits)
    for stem in given:
        for branch in stem.branches:
            assert grown[branch.id] == alone(pair, stem, branch, limits[branch.id])
    assert pair.large.alive == 0


def test_a_stem_is_read_once_and_rows_stay_within_their_number() -> None:
    pair, given = scripted_pair(max_rows=5), stems(1, 0.0)
    read = sum(max(b.at for b in stem.branches) for stem in given)
    grown = list(grow(pair.large, Role.LARGE, given, max_rows=99))
    written = sum(len(tokens) - 1 for _, tokens in grown)
    assert sum(sum(call) for call in pair.large.calls) == read + written
    assert max(len(call) for call in pair.large.calls) == 4


def test_stems_are_taken_as_there_is_room() -> None:
    pair, taken = scripted_pair(), []

    def source():
        for number in range(50):
            taken.append(number)
            yield Stem([1, 2, 3], [Branch(str(number), 3, 5, After(20))])

    growing = grow(pair.large, Role.LARGE, source(), max_rows=4)
    next(growing)
    assert len(taken) <= 8, "a long run must not be read at once"
    growing.close()
    assert pair.large.alive == 0, "closing gives every row back"


def test_a_full_context_ends_a_branch() -> None:
    pair = scripted_pair(context_length=16)
    model: CausalLM = pair.large
    branch = Branch("x", at=10, first=5, stop=After(1000, eos=-1))
    ((_, tokens),) = grow(model, Role.LARGE, [Stem(range(1, 15), [branch])], max_rows=2)
    assert 10 + len(tokens) == 16


def test_one_row_is_not_enough() -> None:
    pair = scripted_pair()
    with pytest.raises(EngineError, match="at least 2 rows"):
        list(grow(pair.large, Role.LARGE, stems(0, 0.0), max_rows=1))
