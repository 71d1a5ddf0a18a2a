"""The same text twice: across splits it flatters a number, within one it weighs it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crossroads.diagnosis.causes.base import LABELS, Cause, Kind, cannot_tell, too_few
from crossroads.diagnosis.criteria import REPEATED
from crossroads.diagnosis.evidence import Evidence
from crossroads.diagnosis.hashing import Copy
from crossroads.diagnosis.tokens import Tokens
from crossroads.diagnosis.verdict import Estimate, Status, Verdict, percent, points_text
from crossroads.types import Split

LEAKAGE, DUPLICATES = "leakage between splits", "duplicated rows"


def examine_leakage(evidence: Evidence) -> Verdict:
    """Look for held-out text that another split has as well."""
    tokens, found = evidence.tokens, evidence.repeats
    if evidence.result is not None and evidence.result.splits_tokens:
        return Verdict(
            LEAKAGE,
            Status.FOUND,
            "The result's config draws its test tokens from the train data one by one "
            "(split_test_from_train): neighbours of nearly every test token, of the same problems, "
            "are in train. Its number is better than it would be on new problems, by how much only "
            "another split tells.",
        )
    if tokens is None or found is None:
        return cannot_tell(LEAKAGE, "No rows are at hand.", LABELS)
    held_out_N = tokens.held_out_N
    if not held_out_N.any() or not tokens.in_split(Split.TRAIN).any():
        return cannot_tell(
            LEAKAGE, "The data are not divided into train and other splits.",
            "all splits of the data, those that were trained on too",
        )  # fmt: skip
    share = float(found.leaked_N.sum() / held_out_N.sum())
    said = (
        f"{percent(share)} of the calibration and test positions are in another split as well"
        f"{_example(tokens, found.across)}."
    )
    facts = {"leaked_share": share, "pairs": len(found.across)}
    if share < REPEATED:
        return Verdict(LEAKAGE, Status.RULED_OUT, said, Estimate(0.0), facts=facts)
    points, text = _without(evidence, found.leaked_N)
    return Verdict(
        LEAKAGE,
        Status.FOUND,
        f"{said} A network can know them by heart, so the number is better than it would be on new "
        f"problems.{text}",
        points,
        facts=facts,
    )


def examine_duplicates(evidence: Evidence) -> Verdict:
    """Look for text that one split has several times."""
    tokens, found = evidence.tokens, evidence.repeats
    if tokens is None or found is None:
        return cannot_tell(DUPLICATES, "No rows are at hand.", LABELS)
    share = float(found.repeated_N.sum() / max(int(tokens.judged_N.sum()), 1))
    said = f"{percent(share)} of the positions repeat earlier ones of their split."
    facts = {"repeated_share": share}
    if share < REPEATED:
        return Verdict(DUPLICATES, Status.RULED_OUT, said, Estimate(0.0), facts=facts)
    points, text = _without(evidence, found.repeated_N)
    return Verdict(
        DUPLICATES,
        Status.FOUND,
        f"{said} They count several times in every rate, and in training.{text}",
        points,
        facts=facts,
    )


def _without(evidence: Evidence, gone_N: np.ndarray) -> tuple[Estimate | None, str]:
    """Return by how much the rate falls without some positions, and that in a sentence."""
    gauge = evidence.gauge
    if gauge is None or too_few(gauge) is not None:
        return None, ""
    keep_N = (~gone_N).astype(float)
    if not gauge.positive_n[keep_N[gauge.rows_N] > 0].any():
        return None, " Without them no positive is left."
    rate, points = gauge.rate_without(keep_N)
    return points, (
        f" By {gauge.name}, {percent(gauge.rate.value)} with them and {percent(rate)} without: "
        f"{points_text(points)} points."
    )


def _example(tokens: Tokens, pairs: Sequence[Copy]) -> str:
    if not pairs:
        return ""
    best = max(pairs, key=lambda pair: pair.share)
    first, second = tokens.responses[best.first], tokens.responses[best.second]
    return (
        f" ({len(pairs)} pairs of responses, such as {first.problem_id} in {first.split} and "
        f"{second.problem_id} in {second.split}, {percent(best.share, 0)} of their runs in common)"
    )


CAUSES = (
    Cause(LEAKAGE, Kind.DATA, "is held-out text also in train?", examine_leakage),
    Cause(DUPLICATES, Kind.DATA, "do rows count several times?", examine_duplicates),
)
