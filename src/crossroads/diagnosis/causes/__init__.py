"""Every candidate cause, in the order in which a reader wants to rule them out."""

from __future__ import annotations

from collections.abc import Mapping

from crossroads.diagnosis.causes import (
    alignment,
    baseline,
    label_noise,
    live,
    population,
    protocol,
    rates,
    repeats,
    sample,
    scaling,
    training,
)
from crossroads.diagnosis.causes.base import Cause

CAUSES: Mapping[str, Cause] = {
    cause.name: cause
    for module in (
        population,
        rates,
        alignment,
        label_noise,
        repeats,
        scaling,
        training,
        protocol,
        live,
        baseline,
        sample,
    )
    for cause in module.CAUSES
}
