"""The whole of `crossroads bench speed`: what is measured, and the record of it."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from crossroads.evaluation.speed.flat import FlatRow, flatness
from crossroads.evaluation.speed.measure import (
    ReadingTimes,
    SpeedRow,
    ideal_seconds,
    rows_of,
    take_turns,
)
from crossroads.evaluation.speed.systems import (
    LARGE_ALONE,
    NativePair,
    System,
    batch_run,
    own_loops,
    prompt_lookup,
    routed,
    speculation,
    thresholds_for,
)
from crossroads.models.llamacpp_own import PromptLookup
from crossroads.provenance import provenance
from crossroads.routing.routers.base import Router
from crossroads.types import Message, Progress

QUESTIONS = (
    "A baker sells 48 rolls in the morning and half as many in the afternoon. How many in all?",
    "Ann saves 15 dollars a week. How many weeks until she can buy a bicycle for 210 dollars?",
    "A train covers 180 km in 2 hours and 45 km in the next half hour. What is its mean speed?",
    "Three friends share 7 pizzas of 8 slices. Two slices are left. How many slices did each eat?",
    "A tank of 240 litres loses 3 litres an hour. After how many hours is a quarter of it gone?",
    "A class of 28 has 4 more girls than boys. How many boys are there?",
    "Tom reads 12 pages an hour and has read for 3.5 hours. How many of 60 pages are left?",
    "Eggs cost 3 dollars a dozen. What do 30 eggs cost if single eggs cost 30 cents?",
)
INSTRUCTION = "Think step by step, then give the final answer in \\boxed{}."


@dataclass(frozen=True, slots=True)
class SpeedConfig:
    """What is measured. fractions: large_fractions of ours. places: of `flatness`, if any."""

    max_tokens: int = 128
    prompts: int = 5
    fractions: tuple[float, ...] = (0.1, 0.2, 0.3)
    batch: int = 8
    places: tuple[int, ...] = ()
    lookup: bool = True


@dataclass(frozen=True, slots=True)
class BatchRow:
    """The mixed loop with some rows at once, and with one, on the same prompts.

    ms_per_token, ms_per_token_one: in the small model, in the large one, and in the loop itself.
    """

    rows: int
    tokens_per_second: float
    versus_one: float
    ms_per_token: dict[str, float]
    ms_per_token_one: dict[str, float]


@dataclass(frozen=True, slots=True)
class SpeedResult:
    """Everything that was measured, in one run on one machine."""

    rows: tuple[SpeedRow, ...]
    batch: BatchRow | None
    flat: tuple[FlatRow, ...]
    reading_ms: dict[str, dict[int, float]]
    memory: dict[str, float]
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def bench_speed(
    native: NativePair,
    router: Router,
    config: SpeedConfig,
    progress: Progress,
    *,
    threads: int | None = None,
    more: Callable[[int], dict[str, System]] | None = None,
) -> SpeedResult:
    """Measure a pair.

    more: makes further systems, for a number of tokens, that take their turns with ours.
    """
    prompts = prompts_of(native, config.prompts)
    small = ReadingTimes.of(native.small, progress)
    large = ReadingTimes.of(native.large, progress)
    tokens = config.max_tokens
    thresholds = thresholds_for(native, router, config.fractions, prompts, tokens)
    memory = _memory(native)  # before others load the weights once more
    systems = own_loops(native, tokens) | routed(native, router, thresholds, tokens)
    systems |= speculation(native, tokens)
    lookup = _lookup(native, threads) if config.lookup else None
    if lookup is not None:
        systems |= prompt_lookup(native, lookup, tokens)
    systems |= more(tokens) if more is not None else {}
    taken = take_turns(systems, prompts, progress)
    if lookup is not None:
        lookup.close()
    rows = rows_of(taken, LARGE_ALONE, lambda trace: ideal_seconds(trace, small, large))
    middle = thresholds[min(config.fractions, key=lambda f: abs(f - 0.2))]
    return SpeedResult(
        rows=tuple(rows),
        batch=_batch(native, router, middle, prompts, config, progress),
        flat=_flat(native, router, middle, prompts[0], config, progress),
        reading_ms={
            role: {n: 1000 * seconds for n, seconds in times.seconds.items()}
            for role, times in (("small", small), ("large", large))
        },
        memory=memory,
        provenance=provenance(config=asdict(config), thresholds=thresholds, threads=threads),
    )


def prompts_of(native: NativePair, count: int) -> list[list[int]]:
    """Return the first questions as prompts; questions repeat if more are asked for."""
    questions = [QUESTIONS[i % len(QUESTIONS)] for i in range(count)]
    render = native.pair.tokenizer.render
    return [render([Message("user", f"{question}\n{INSTRUCTION}")]) for question in questions]


def _lookup(native: NativePair, threads: int | None) -> PromptLookup:
    return PromptLookup(native.large.path, native.large.info.context_length, threads)


def _batch(
    native: NativePair,
    router: Router,
    threshold: float,
    prompts: Sequence[Sequence[int]],
    config: SpeedConfig,
    progress: Progress,
) -> BatchRow | None:
    if config.batch < 2:
        return None
    many = [prompts[i % len(prompts)] for i in range(config.batch)]
    progress.start(f"{config.batch} rows at once, and one by one", 2, "runs")
    ran = {}
    for rows in (config.batch, 1):
        ran[rows] = batch_run(native, router, threshold, many, config.max_tokens, rows)
        progress.advance()
    progress.finish()
    together, alone = ran[config.batch], ran[1]
    rate = together.tokens / together.seconds
    return BatchRow(
        config.batch,
        rate,
        rate * alone.seconds / alone.tokens,
        together.ms_per_token,
        alone.ms_per_token,
    )


def _flat(
    native: NativePair,
    router: Router,
    threshold: float,
    prompt: Sequence[int],
    config: SpeedConfig,
    progress: Progress,
) -> tuple[FlatRow, ...]:
    if not config.places:
        return ()
    return tuple(flatness(native.models(router, threshold), prompt, config.places, progress))


def _memory(native: NativePair) -> dict[str, float]:
    """Return bytes of both caches per token, and MiB of weights and at the peak."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    models = {"small": native.small, "large": native.large}
    found = {f"{role}_cache_bytes_per_token": float(m.cache_bytes) for role, m in models.items()}
    found |= {f"{role}_weights_mib": m.path.stat().st_size / 2**20 for role, m in models.items()}
    return found | {"peak_mib": peak / 2 ** (20 if sys.platform == "darwin" else 10)}
