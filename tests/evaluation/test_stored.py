"""A stored answer is the answer: every field of every record comes back."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from crossroads.evaluation.stored import StoredAnswer, trace_from_columns, trace_to_columns
from crossroads.grading import Grade
from crossroads.types import Cause, FinishReason, Role, TokenRecord, Trace

single = st.floats(width=32, allow_nan=False, allow_infinity=False)
records = st.builds(
    TokenRecord,
    position=st.just(0),
    token_id=st.integers(0, 10**6),
    writer=st.sampled_from(Role),
    proposed_id=st.none() | st.integers(0, 10**6),
    score=st.none() | single,
    entropy=st.none() | single,
    lag=st.integers(0, 99),
    seconds=st.integers(0, 10**6).map(lambda n: n / 10_000),
    cause=st.none() | st.sampled_from(Cause),
    discarded=st.integers(0, 9),
    logprob=st.none() | st.floats(-50, 0),
    top_logprobs=st.none()
    | st.lists(st.tuples(st.integers(0, 99), st.floats(-50, 0)), max_size=3).map(tuple),
)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    found = draw(st.lists(records, max_size=6))
    return Trace(
        prompt_ids=tuple(draw(st.lists(st.integers(0, 99), max_size=4))),
        records=tuple(replace(record, position=i) for i, record in enumerate(found)),
        finish_reason=draw(st.sampled_from(FinishReason)),
        text=draw(st.text(max_size=8)),
        threshold=draw(st.none() | st.floats(0, 1)),
        seed=draw(st.integers(0, 2**31)),
        id=draw(st.text(max_size=4)),
    )


@given(traces())
def test_a_trace_comes_back_whole(trace: Trace) -> None:
    line = json.dumps(trace_to_columns(trace), allow_nan=False)
    assert trace_from_columns(json.loads(line)) == trace


def test_scores_keep_their_float32_and_take_few_digits() -> None:
    score = float(np.float32(0.1))
    record = TokenRecord(0, 5, Role.SMALL, 5, score, 0.5)
    columns = trace_to_columns(Trace((1,), (record,), FinishReason.EOS, "x"))
    assert json.dumps(columns["tokens"]["score"]) == "[0.1]"
    assert "lag" not in columns["tokens"]


def test_an_answer_comes_back_whole() -> None:
    trace = Trace((1, 2), (TokenRecord(0, 5, Role.LARGE, lag=2),), FinishReason.EOS, "x", id="p#1")
    answer = StoredAnswer("p", 1, trace, Grade(False, None, "no box"), 0.25)
    assert answer.key == "p#1"
    assert StoredAnswer.from_json(json.loads(json.dumps(answer.to_json()))) == answer
