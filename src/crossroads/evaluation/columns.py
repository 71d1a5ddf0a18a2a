"""A trace's tokens by column, which is how counting, tables and pages want them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crossroads.types import Role, TokenRecord


@dataclass(frozen=True, slots=True)
class Columns:
    """One list per fact, one entry per token; None where the small model was not asked.

    large: the large model wrote it. asked: the large model was asked there, to write it or to let
    it stand. replaced: it wrote another token than the small model had proposed.
    """

    token_ids: list[int]
    large: list[bool]
    asked: list[bool]
    replaced: list[bool]
    proposed_ids: list[int | None]
    scores: list[float | None]
    entropies: list[float | None]
    lags: list[int]
    causes: list[str | None]

    @classmethod
    def of(cls, records: Sequence[TokenRecord]) -> Columns:
        """Return the columns of a trace's records."""
        large = [record.writer is Role.LARGE for record in records]
        return cls(
            token_ids=[record.token_id for record in records],
            large=large,
            asked=[wrote or r.lag > 0 for wrote, r in zip(large, records, strict=True)],
            replaced=[record.replaced for record in records],
            proposed_ids=[record.proposed_id for record in records],
            scores=[record.score for record in records],
            entropies=[record.entropy for record in records],
            lags=[record.lag for record in records],
            causes=[None if r.cause is None else r.cause.value for r in records],
        )
