"""Mean and deviation of router inputs over a split, read in chunks. W is an input's width."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crossroads.errors import DataError
from crossroads.training.rows import Rows

_CHUNK = 8192
CONSTANT = 1e-6
"""A deviation below this, relative to the mean's size, counts as none."""


def input_statistics(
    rows: Rows, names: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return each input's mean [W] and standard deviation [W], float32.

    One entry that does not vary (a dead hidden unit) gets scale 1; an input that does not vary at
    all is refused, since it can only be a mistake.

    Raises:
        DataError: an input is constant or not finite.
    """
    means, scales = {}, {}
    for name in names:
        mean_W, deviation_W = _moments(rows, name)
        varies_W = deviation_W > CONSTANT * mean_W.abs().clamp_min(1.0)
        if not bool(varies_W.any()):
            raise DataError(
                f"the input {name!r} has the same value in all {len(rows)} training positions; "
                "leave it out or look at how the data was made"
            )
        means[name] = mean_W.float()
        scales[name] = torch.where(varies_W, deviation_W, 1.0).float()
    return means, scales


def _moments(rows: Rows, name: str) -> tuple[Tensor, Tensor]:
    """Return mean and deviation [W], float64, in two passes: large means lose no digits."""
    chunks = [slice(start, start + _CHUNK) for start in range(0, len(rows), _CHUNK)]

    def total(of: Tensor | None) -> Tensor:
        sums = []
        for chunk in chunks:
            value_nW = rows.features(chunk, [name])[name].double()
            sums.append(value_nW.sum(0) if of is None else (value_nW - of).square().sum(0))
        return torch.stack(sums).sum(0)

    mean_W = total(None) / len(rows)
    deviation_W = (total(mean_W) / len(rows)).sqrt()
    if not bool(torch.isfinite(deviation_W).all()):
        raise DataError(f"the input {name!r} has values that are not finite; label again")
    return mean_W, deviation_W
