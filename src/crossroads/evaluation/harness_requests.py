"""What a task of lm-evaluation-harness asks for, as a request of ours. No lm_eval in here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from crossroads.decoding.request import Request
from crossroads.errors import RequestError
from crossroads.sampling import SamplingParams

TOKEN_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""The harness's names for one setting; the first one that is given counts, as it does there."""

FILTERS = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": 0}
SETTINGS = ("until", "do_sample", "temperature", *FILTERS, *TOKEN_LIMITS)

HARMLESS = {"num_beams": 1}
"""Settings of the harness's tasks that ask for nothing at this value: one beam is no search."""


def read_settings(settings: Mapping[str, Any], max_tokens: int) -> Request:
    """Return what a task's `generation_kwargs` ask for as a request, but for its prompt.

    As in the harness: `do_sample` false is greedy whatever the temperature, and without
    `do_sample` the temperature decides. `do_sample` true without a temperature is temperature 1.
    `max_tokens` is for tasks that set no limit.

    Raises:
        RequestError: a setting that a routed pair does not have, or a value out of range.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    for name, value in given.items():
        if name not in SETTINGS and HARMLESS.get(name) != value:
            raise RequestError(
                f"a routed pair cannot keep the generation setting {name}={value!r}; it has "
                f"{', '.join(SETTINGS)}"
            )
    until = given.get("until", [])
    stops = until if isinstance(until, list | tuple) else [until]
    limits = [given[name] for name in TOKEN_LIMITS if name in given]
    return Request(
        (0,),
        max_tokens=limits[0] if limits else max_tokens,
        sampling=_sampling(given),
        stop=tuple(text for text in stops if text != ""),  # the harness, too, ignores ""
    )


def _sampling(given: Mapping[str, Any]) -> SamplingParams:
    do_sample = given.get("do_sample")
    if do_sample not in (None, True, False):
        raise RequestError(f"do_sample must be true or false, got {do_sample!r}")
    temperature = _number("temperature", given.get("temperature", 1.0 if do_sample else 0.0))
    filters = {name: _number(name, given.get(name, value)) for name, value in FILTERS.items()}
    return SamplingParams(temperature=0.0 if do_sample is False else temperature, **filters)


def _number(name: str, value: Any) -> Any:
    kind, words = (
        (int, "a whole number") if name in ("top_k", "seed") else (int | float, "a number")
    )
    if isinstance(value, bool) or not isinstance(value, kind):
        raise RequestError(f"{name} must be {words}, got {value!r}")
    return value


def repeated(request: Request, number: int) -> Request:
    """Return the request's `number`th repetition: the same, but for the seed of its draws.

    A task that draws several answers to one prompt asks for the same thing several times. Number
    0 keeps the seed; the others' come from a hash, so that no two seeds share answers.
    """
    if number == 0:
        return request
    mixed = np.random.SeedSequence([request.sampling.seed, number])
    seed = int(mixed.generate_state(1, np.uint64)[0])
    return replace(request, sampling=replace(request.sampling, seed=seed))
