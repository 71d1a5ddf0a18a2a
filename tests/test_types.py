"""What a token's record tells of itself."""

from __future__ import annotations

import pytest

from crossroads.types import Role, TokenRecord


@pytest.mark.parametrize(
    ("writer", "proposed", "replaced"),
    [
        (Role.LARGE, 6, True), (Role.LARGE, 5, False), (Role.LARGE, None, False),
        (Role.SMALL, 5, False), (Role.SMALL, 6, False), (Role.SMALL, None, False),
    ],
)  # fmt: skip
def test_only_the_large_model_replaces_and_only_what_was_proposed(
    writer: Role, proposed: int | None, replaced: bool
) -> None:
    assert TokenRecord(0, 5, writer, proposed_id=proposed).replaced is replaced
