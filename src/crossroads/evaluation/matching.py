"""Thresholds at which a router has a wanted live large_fraction: equal terms for a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from crossroads.artifacts import read_json, write_json
from crossroads.errors import ConfigError, DataError
from crossroads.evaluation.folder import slug
from crossroads.evaluation.run import Bench, identity_of, request_for, traces
from crossroads.evaluation.systems import System
from crossroads.routing.choose import HEURISTIC_THRESHOLD
from crossroads.tasks.evaluation import EvaluationTask
from crossroads.types import Role

PILOT_ROUNDS = 3
CLOSE_ENOUGH = 0.005
"""Of large_fraction; a pilot of a dozen answers cannot tell more."""


def matched_threshold(
    bench: Bench, task: EvaluationTask, system: System, fraction: float, pilot: int
) -> float:
    """Return the threshold at which a router's own live large_fraction is about `fraction`.

    A router that is asked decides which tokens come next, so its scores on another system's path
    would mislead: it answers the first `pilot` items itself, and its threshold is taken from the
    scores it gave there, until that changes nothing more. Answers are not looked at. The full run
    takes its own path: tables show the large_fraction that was measured.

    Effects: the threshold is kept in the folder; a resumed run takes it from there.
    """
    assert system.router is not None
    if system.router.name == "random":
        return 1 - fraction  # its scores are uniform, whatever the path
    path = bench.folder.path / "thresholds" / slug(task.name) / f"{slug(system.name)}.json"
    identity = identity_of(bench, task, system) | {"fraction": fraction, "pilot": pilot}
    if (known := _known(path, identity)) is not None:
        return known
    items = task.items[:pilot]
    threshold = _first_guess(system, fraction)
    bench.progress.start(f"{task.name}: {system.name}, matching", PILOT_ROUNDS, "rounds")
    for _ in range(PILOT_ROUNDS):
        tried = replace(system, threshold=threshold)
        requests = [request_for(bench, task, tried, item, 0) for item in items]
        records = [r for _, trace in traces(bench, tried, requests) for r in trace.records]
        scores = [record.score for record in records if record.score is not None]
        now = sum(record.writer is Role.LARGE for record in records) / max(1, len(records))
        bench.progress.advance()
        bench.progress.describe(f"large_fraction {now:.3f} of {fraction:.3f} wanted")
        if abs(now - fraction) < CLOSE_ENOUGH:
            break
        threshold = threshold_for_fraction(scores, fraction)
    bench.progress.finish()
    write_json(path, {"identity": identity, "threshold": threshold})
    return threshold


def _first_guess(system: System, fraction: float) -> float:
    """Return where the first round of a pilot begins: a good guess spares a round of answers.

    A trained router's is the score that so many of its calibration tokens reach. Of a heuristic
    nothing is known before; all send some tokens at their usual threshold.
    """
    if not system.score_quantiles:
        return HEURISTIC_THRESHOLD
    return float(np.quantile(system.score_quantiles, 1 - fraction))


def _known(path: Path, identity: Mapping[str, Any]) -> float | None:
    """Return the threshold that an earlier run found for the same system and items.

    Raises:
        ConfigError: it was found for others.
    """
    if not path.exists():
        return None
    stored = read_json(path, "matched threshold")
    changed = [key for key in identity if stored["identity"].get(key) != identity[key]]
    if changed:
        raise ConfigError(
            f"{path} was matched in another run ({changed[0]}: was "
            f"{stored['identity'].get(changed[0])!r}, now {identity[changed[0]]!r}); "
            "give another output folder, or the old settings to go on"
        )
    return float(stored["threshold"])


def threshold_for_fraction(scores: Sequence[float], large_fraction: float) -> float:
    """Return the threshold that sends `large_fraction` of these live tokens to the large model.

    Raises:
        DataError: there are no scores.
    """
    if not scores:
        raise DataError("there are no tokens to match a threshold on")
    ordered = np.sort(np.asarray(scores, dtype=np.float32))[::-1]
    sent = min(len(ordered) - 1, max(0, round(large_fraction * len(ordered)) - 1))
    return float(ordered[sent])
