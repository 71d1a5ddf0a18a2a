"""What a generation cost, in active parameters."""

from __future__ import annotations

from collections.abc import Sequence

from crossroads.types import Role, TokenRecord


def active_parameters(records: Sequence[TokenRecord], small: int, large: int, router: int) -> float:
    """Return the active parameters per generated token; 0 without tokens.

    `small + large_fraction * large + router` for a mixed generation (R2R, arXiv 2505.21600,
    section 4), counted record by record: a model counts once for each token for which it was
    asked. The large model reads its lag in the call that writes a token, as it would a prompt;
    the lag does not count again. Proposals that a revision threw away count for the small model.
    """
    if not records:
        return 0.0
    discarded = sum(record.discarded for record in records)
    proposed = sum(record.proposed_id is not None for record in records)
    scored = sum(record.score is not None for record in records)
    asked = sum(record.writer is Role.LARGE or record.lag > 0 for record in records)
    small_alone = sum(r.writer is Role.SMALL and r.proposed_id is None for r in records)
    reads = small * (proposed + discarded + small_alone) + router * (scored + discarded)
    return (reads + large * asked) / len(records)
