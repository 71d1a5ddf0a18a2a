"""Step 4: judges look at every mismatch; each keeps a resumable record of its verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from crossroads.artifacts import IndexedLog, canonical_hash, ensure_writable, pin_config
from crossroads.errors import ConfigError
from crossroads.labelling.judges.base import Judge, Verdict
from crossroads.labelling.records import Case
from crossroads.types import Progress


class Verdicts:
    """One judge's verdicts, on disk, by case."""

    def __init__(self, folder: Path) -> None:
        """Read what `judge_all` wrote to `folder`."""
        self._log = IndexedLog(folder / "verdicts.jsonl")

    def __contains__(self, case: object) -> bool:
        """Return whether the case was judged, or tried."""
        return case in self._log

    def __len__(self) -> int:
        """Number of cases that were judged, or tried."""
        return len(self._log)

    def keys(self) -> Iterable[str]:
        """Return the cases, in the order in which they were judged."""
        return self._log.keys()

    def get(self, case: str) -> Verdict:
        """Return the verdict on a case; one that was never tried is a failure, too."""
        if case not in self._log:
            return Verdict(None, None, "not judged")
        record = self._log.get(case)
        return Verdict(record["divergent"], record["probability"], record["reason"])

    def append(self, case: str, verdict: Verdict) -> None:
        """Add a verdict."""
        self._log.append(
            {
                "key": case,
                "status": "failed" if verdict.divergent is None else "ok",
                "divergent": verdict.divergent,
                "probability": verdict.probability,
                "reason": verdict.reason,
            }
        )


def judge_folder(folder: Path, name: str, settings: Mapping[str, Any]) -> Path:
    """Return where a judge's record is: other settings make another judge."""
    return folder / f"{name}-{canonical_hash(dict(settings))[:8]}"


def judge_all(
    judge: Judge,
    cases: Iterable[Case],
    folder: Path,
    progress: Progress,
    *,
    total: int,
    retry_failed: bool = False,
) -> Verdicts:
    """Return the verdicts of `judge` on `cases`, of which there are `total`.

    Effects: every verdict is added to a log under `folder` as it comes; cases that are there are
    not judged again, failed ones only with `retry_failed`.

    Raises:
        EngineError: what the judge works with is gone; what was judged is kept.
    """
    own = judge_folder(folder, judge.name, judge.settings)
    ensure_writable(own)
    pin_config(own / "config.json", {"judge": judge.name, **judge.settings}, "verdicts")
    verdicts = Verdicts(own)
    progress.start(f"judge {judge.name}", total, "mismatches")

    def missing() -> Iterator[Case]:
        for case in cases:
            again = retry_failed and verdicts.get(case.id).divergent is None
            if case.id not in verdicts or again:
                yield case
            else:
                progress.advance()

    for judgement in judge.judge(missing()):
        verdicts.append(judgement.case_id, judgement.verdict)
        progress.advance()
    progress.finish()
    return verdicts


def _any(verdicts: Sequence[Verdict]) -> bool | None:
    if any(verdict.divergent for verdict in verdicts):
        return True
    return None if any(verdict.divergent is None for verdict in verdicts) else False


def _all(verdicts: Sequence[Verdict]) -> bool | None:
    if any(verdict.divergent is False for verdict in verdicts):
        return False
    return None if any(verdict.divergent is None for verdict in verdicts) else True


def _vote(verdicts: Sequence[Verdict]) -> bool | None:
    """More than half of all judges; a failed one may not tip the scales either way."""
    half = len(verdicts) / 2
    if sum(verdict.divergent is True for verdict in verdicts) > half:
        return True
    if sum(verdict.divergent is False for verdict in verdicts) >= half:
        return False
    return None


COMBINATIONS: Mapping[str, Callable[[Sequence[Verdict]], bool | None]] = {
    "any": _any,
    "all": _all,
    "vote": _vote,
}


def combine(rule: str, verdicts: Sequence[Verdict]) -> Verdict:
    """Return one verdict of several judges' on the same case.

    any: divergent if one says so. all: if every one says so. vote: if more than half do. A failure
    counts for neither side: where it could decide, the combination has failed, too. The probability
    is the mean of those that have one; a judge without one counts with its 0 or 1.

    Raises:
        ConfigError: an unknown rule.
    """
    if rule not in COMBINATIONS:
        raise ConfigError(f"there is no combination {rule!r}; known: {', '.join(COMBINATIONS)}")
    if len(verdicts) == 1:
        return verdicts[0]
    divergent = COMBINATIONS[rule](verdicts)
    reason = "; ".join(verdict.reason for verdict in verdicts if verdict.divergent is None)
    if divergent is None:
        return Verdict(None, None, reason)
    known = [
        float(verdict.divergent) if verdict.probability is None else verdict.probability
        for verdict in verdicts
        if verdict.divergent is not None
    ]
    return Verdict(divergent, sum(known) / len(known))
