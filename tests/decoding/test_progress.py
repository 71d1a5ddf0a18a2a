"""Progress moves with every batch of tokens, never backwards, and ends at the number of answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossroads.decoding.progress import AnswerProgress
from crossroads.decoding.single import generate_alone
from crossroads.types import Role, SilentProgress
from laws.pairs import random_requests, scripted_pair


class Steps(SilentProgress):
    """Remembers every step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[float] = []
        self.start("answers", 1, "answers")

    def advance(self, amount: float = 1.0) -> None:
        super().advance(amount)
        self.steps.append(amount)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 8))
def test_progress_only_grows_and_ends_at_the_number_of_answers(seed: int, rows: int) -> None:
    pair, requests, steps = scripted_pair(), random_requests(6, seed), Steps()
    shown = AnswerProgress(steps, max_tokens=40)
    answers = generate_alone(
        pair.small, Role.SMALL, pair.tokenizer, requests, max_rows=rows, on_token=shown.token
    )
    for _, trace in answers:
        shown.answer(len(trace.records))
    assert min(steps.steps) > 0
    assert steps.stages["answers"] == pytest.approx(6)


def test_rows_of_equal_length_are_counted_as_they_go() -> None:
    steps = Steps()
    shown = AnswerProgress(steps, max_tokens=200)
    seen = []
    for _ in range(100):
        for _ in range(4):
            shown.token(4)
        seen.append(steps.stages["answers"])
    for _ in range(4):
        shown.answer(100)
    assert np.allclose(seen[:95], np.arange(1, 96) * 4 / 100)
    assert max(seen) <= 0.95 * 4 + 1e-9
    assert steps.stages["answers"] == 4
