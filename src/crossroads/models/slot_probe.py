"""Does reading rows together give what reading them one by one gives? A few tokens tell.

Shapes: N positions, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from crossroads.models.row_cache import CacheStore, RowRead
from crossroads.models.slot_masks import narrowed

_REACH = 3  # windows and chunks are narrowed to so many tokens meanwhile
# Of the largest logit. Rounding stays below 1e-5 in float32 (1e-3 leaves room for TF32) and reaches
# some percent in half types; one token too many or too few in sight is far beyond either in a model
# that attends.
_FLOAT_TOLERANCE, _HALF_TOLERANCE = 1e-3, 0.05


def why_rows_differ(
    slots: CacheStore,
    rows: CacheStore,
    decoder: Any,
    head: Callable[[Tensor], Tensor],
    config: Any,
    vocab_size: int,
) -> str | None:
    """Return how far two ragged rows of `slots` are from the same rows of `rows`; None if near.

    The first row reads 5 tokens, is cut to 3, reads 1 and, alone, 1 more; the other reads 2 and 3,
    in the same passes, in a slot that does not follow the first's. Rejected tokens, padding, a
    neighbour or a wrong mask would each move what comes after.
    """
    ids = [(1 + 7 * i) % vocab_size for i in range(12)]
    first, second = [*ids[:3], *ids[5:7]], ids[7:12]
    with narrowed(config, _REACH), torch.inference_mode():
        a, gap, b = slots.new(), slots.new(), slots.new()
        slots.free(gap)
        start = slots.read(decoder, [RowRead(a, 0, ids[:5], 5), RowRead(b, 0, second[:2], 2)])
        slots.cut(a, 3)
        then = slots.read(decoder, [RowRead(a, 3, first[3:4], 1), RowRead(b, 2, second[2:], 3)])
        last = slots.read(decoder, [RowRead(a, 4, first[4:], 1)])
        got_NH = torch.cat([start[:3], then[:1], last, start[5:], then[1:]])
        alone = [RowRead(rows.new(), 0, tokens, len(tokens)) for tokens in (first, second)]
        expected_NH = rows.read(decoder, alone)
        got_NV, expected_NV = head(got_NH), head(expected_NH)
    size = expected_NV.abs().max().item()
    difference = (got_NV - expected_NV).abs().max().item()
    single = expected_NH.dtype == torch.float32
    if difference <= size * (_FLOAT_TOLERANCE if single else _HALF_TOLERANCE):
        return None
    return (
        f"two rows read together differ from the rows alone by {difference:.2g} "
        f"in logits of up to {size:.2g}"
    )
