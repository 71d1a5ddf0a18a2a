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
    """At `tokens` generated tokens: milliseconds of a step, and those outside of both models."""

    tokens: int
    ms_per_token: float
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
    steps: list[float] = []
    own: list[float] = []
    while loop.active:
        small.seconds = large.seconds = 0.0
        started = time.perf_counter()
        loop.step()
        seconds = time.perf_counter() - started
        steps.append(seconds)
        own.append(seconds - small.seconds - large.seconds)
        step += 1
        progress.advance()
        if step - _WINDOW in places:
            rows.append(
                FlatRow(
                    step - _WINDOW,
                    1000 * statistics.fmean(steps[-_WINDOW:]),
                    1000 * statistics.median(own[-_WINDOW:]),
                )
            )
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
