"""Vocabularies are compared by what their ids stand for, and padding stands for nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.models.vocabulary import Difference, first_difference, vocabulary_fingerprint

pieces = st.lists(st.none() | st.binary(max_size=3), max_size=8)


@given(pieces, st.integers(0, 5))
def test_padding_at_the_end_changes_nothing(a: list[bytes | None], extra: int) -> None:
    padded = [*a, *[None] * extra]
    assert first_difference(a, padded) is None
    assert vocabulary_fingerprint(a) == vocabulary_fingerprint(padded)


@given(pieces, pieces)
def test_fingerprints_are_equal_exactly_when_there_is_no_difference(
    a: list[bytes | None], b: list[bytes | None]
) -> None:
    same = first_difference(a, b) is None
    assert same == (vocabulary_fingerprint(a) == vocabulary_fingerprint(b))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([b"a", b"b"], [b"a", b"c"], Difference(1, b"b", b"c")),
        ([b"a", None], [b"a", b"c"], Difference(1, None, b"c")),
        ([b"a", b"b"], [b"a"], Difference(1, b"b", None)),
        ([b"ab", b"c"], [b"a", b"bc"], Difference(0, b"ab", b"a")),
        ([b""], [None], Difference(0, b"", None)),
    ],
)
def test_the_first_difference_is_named(
    a: list[bytes | None], b: list[bytes | None], expected: Difference
) -> None:
    assert first_difference(a, b) == expected
