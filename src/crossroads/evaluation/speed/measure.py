"""Runs of several systems on the same prompts, in turns, and what they took.

Systems take turns prompt by prompt, so that a busy machine slows all of them: read the ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crossroads.models.base import CausalLM
from crossroads.models.llamacpp import LlamaCppLM
from crossroads.types import Progress, Trace, Usage

LAGS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 64, 128)
"""Numbers of tokens at which reading is timed; between them, times are interpolated."""

_REPEATS, _REPEATS_LONG = 7, 3  # above 16 tokens a read takes long and varies little
_DEPTH = 192  # tokens in the cache before the timed ones: the middle of a GSM8K answer


@dataclass(frozen=True, slots=True)
class Run:
    """One system on one prompt. `trace` for systems that have one."""

    tokens: int
    seconds: float
    trace: Trace | None = None


@dataclass(frozen=True, slots=True)
class SpeedRow:
    """One system over all prompts: medians over prompts and repeats.

    over_ideal: measured time over `ideal_seconds` of the same runs; None where there is no ideal.
    versus_large: tokens per second over the large model's own, pair by pair.
    """

    system: str
    tokens_per_second: float
    versus_large: float
    large_fraction: float | None = None
    large_calls_per_token: float | None = None
    discarded_per_token: float | None = None
    over_ideal: float | None = None


class ReadingTimes:
    """How long a model takes to read n tokens in one call, without our looking at its outputs."""

    def __init__(self, seconds: Mapping[int, float]) -> None:
        """Take seconds by number of tokens."""
        self.seconds = dict(seconds)

    @classmethod
    def of(cls, model: LlamaCppLM, progress: Progress) -> ReadingTimes:
        """Measure: the median of a few reads at each of LAGS, after a text of usual length."""
        fits = [n for n in LAGS if _DEPTH + n <= model.info.context_length]
        progress.start(f"{model.info.name} reads", len(fits), "sizes")
        cache = model.new_cache()
        token = model.info.vocab_size // 3
        try:
            model.read_only(cache, [token] * _DEPTH)
            times = {}
            for n in fits:
                taken = []
                for _ in range(_REPEATS if n <= 16 else _REPEATS_LONG):
                    started = time.perf_counter()
                    model.read_only(cache, [token] * n)
                    taken.append(time.perf_counter() - started)
                    cache.crop(_DEPTH)
                times[n] = statistics.median(taken)
                progress.advance()
        finally:
            cache.release()
        progress.finish()
        return cls(times)

    def __call__(self, tokens: int) -> float:
        """Return the seconds for `tokens`, interpolated; beyond the largest, in proportion."""
        sizes = sorted(self.seconds)
        if tokens >= sizes[-1]:
            return self.seconds[sizes[-1]] * tokens / sizes[-1]
        above = next(n for n in sizes if n >= tokens)
        below = max((n for n in sizes if n <= tokens), default=above)
        share = 0.0 if above == below else (tokens - below) / (above - below)
        return (1 - share) * self.seconds[below] + share * self.seconds[above]


def ideal_seconds(trace: Trace, small: ReadingTimes, large: ReadingTimes) -> float:
    """Return what the two models' arithmetic alone would take for a trace.

    The small model reads the prompt, then one token per proposal; the large model reads its lag
    at every call: `t_small + large_fraction * t_large(lag)` (design section 5), call by call.
    """
    usage: Usage = trace.usage
    proposals = usage.generated_tokens + usage.discarded_tokens
    lags = [record.lag for record in trace.records if record.lag]
    return (
        small(len(trace.prompt_ids)) + (proposals - 1) * small(1) + sum(large(lag) for lag in lags)
    )


class Timed:
    """A model that keeps the time spent in `extend`."""

    def __init__(self, model: CausalLM) -> None:
        """Wrap a model."""
        self._model = model
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        """Return the model's own attribute."""
        return getattr(self._model, name)

    def extend(self, *arguments: Any) -> Any:
        """Extend, and count the seconds."""
        started = time.perf_counter()
        output = self._model.extend(*arguments)
        self.seconds += time.perf_counter() - started
        return output


def take_turns(
    systems: Mapping[str, Callable[[Sequence[int]], Run]],
    prompts: Sequence[Sequence[int]],
    progress: Progress,
) -> dict[str, list[Run]]:
    """Return every system's runs, one per prompt; the first prompt is run once more before, unseen.

    The order of the systems turns with every prompt, so that none always follows the same other.
    """
    progress.start("systems take turns", len(systems) * (len(prompts) + 1), "answers")
    names = list(systems)
    taken: dict[str, list[Run]] = {name: [] for name in names}
    for number, prompt in enumerate((prompts[0], *prompts)):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            run = systems[name](prompt)
            if number:  # the first one warms the machine's caches
                taken[name].append(run)
            progress.advance()
    progress.finish()
    return taken


def rows_of(
    taken: Mapping[str, Sequence[Run]],
    baseline: str,
    ideal: Callable[[Trace], float] | None,
) -> list[SpeedRow]:
    """Return one row per system; `baseline` names the large model's own loop."""
    base = [run.tokens / run.seconds for run in taken[baseline]]
    return [_row(name, runs, base, ideal) for name, runs in taken.items()]


def _row(
    name: str,
    runs: Sequence[Run],
    base: Sequence[float],
    ideal: Callable[[Trace], float] | None,
) -> SpeedRow:
    rates = [run.tokens / run.seconds for run in runs]
    rate = statistics.median(rates)
    versus = statistics.median(mine / other for mine, other in zip(rates, base, strict=True))
    traces = [run.trace for run in runs if run.trace is not None]
    if not traces:
        return SpeedRow(name, rate, versus)
    usage = sum((trace.usage for trace in traces), Usage())
    over = None
    if ideal is not None:
        over = statistics.median(
            run.seconds / ideal(run.trace) for run in runs if run.trace is not None
        )
    return SpeedRow(
        name,
        rate,
        versus,
        large_fraction=usage.large_fraction,
        large_calls_per_token=usage.large_calls / usage.generated_tokens,
        discarded_per_token=usage.discarded_tokens / usage.generated_tokens,
        over_ideal=over,
    )
