"""Whether a token costs the same late in a text as early: our loop's own time, by position."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from crossroads.decoding.mixed import MixedLoop, MixedModels
from crossroads.decoding.request import Request
from crossroads.evaluation.speed.measure import Timed
from crossroads.models.base import CausalLM
from crossroads.types import Progress

_WINDOW = 32  # tokens whose median is taken at each place


@dataclass(frozen=True, slots=True)
class FlatRow:
    """At `tokens` generated tokens: milliseconds of a step in the small model, and in the loop.

    What the large model takes at a place is a matter of the lag there, not of the place.
    """

    tokens: int
    ms_small: float
    ms_loop: float


def flatness(
    models: MixedModels, prompt: Sequence[int], places: Sequence[int], progress: Progress
) -> list[FlatRow]:
    """Return what a token costs at each of `places` (numbers of generated tokens), one row.

    The row goes on past the end of its text: the models' end tokens are left out.
    """
    small, large = Timed(_endless(models.small)), Timed(_endless(models.large))
    loop = MixedLoop(MixedModels(small, large, models.router, models.tokenizer, models.threshold))
    loop.add(Request(tuple(prompt), max_tokens=max(places) + _WINDOW))
    rows: list[FlatRow] = []
    progress.start("a long text", max(places), "tokens")
    step = 0
    small_ms: list[float] = []
    own_ms: list[float] = []
    while loop.active:
        small.seconds = large.seconds = 0.0
        started = time.perf_counter()
        loop.step()
        seconds = time.perf_counter() - started
        small_ms.append(1000 * small.seconds)
        own_ms.append(1000 * (seconds - small.seconds - large.seconds))
        step += 1
        progress.advance()
        if step - _WINDOW in places:
            parts = (statistics.median(part[-_WINDOW:]) for part in (small_ms, own_ms))
            rows.append(FlatRow(step - _WINDOW, *parts))
    progress.finish()
    return rows


class _Endless:
    """A model whose texts do not end."""

    def __init__(self, model: CausalLM) -> None:
        self._model = model
        self.info = replace(model.info, eos_ids=())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _endless(model: CausalLM) -> Any:
    return _Endless(model)
