"""Inputs of very different sizes: what a network without standardisation makes of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crossroads.diagnosis.causes.base import LABELS, Cause, Kind, cannot_tell, too_few, within
from crossroads.diagnosis.criteria import GAP, MATERIAL, STRONG
from crossroads.diagnosis.evidence import Evidence
from crossroads.diagnosis.network import WIDE
from crossroads.diagnosis.verdict import Estimate, Status, Verdict, percent, points_text

NAME = "normalisation"
UNEVEN = 30.0
"""How many times the deviation of the hidden state's least varying tenth the most varying one has.

A few outlier units are normal in language models and do not count; that whole tenths of the units
are of other sizes is not (3 in Qwen2.5's states).
"""


@dataclass(frozen=True, slots=True)
class _Scales:
    """Deviations: the typical (median) unit's and log-probability's, and how units differ.

    uneven: the 90th percentile of the units' over the 10th. largest: the largest over the median.
    """

    hidden: float
    logprob: float
    uneven: float
    largest: float

    @property
    def text(self) -> str:
        """The scales in a sentence."""
        return (
            f"A typical unit of the hidden state varies by {self.hidden:.3g} (a large one, of the "
            f"highest tenth, by {self.uneven:.3g} times a small one, of the lowest; the largest by "
            f"{self.largest:.3g} times the typical one), a typical top log-probability by "
            f"{self.logprob:.3g}."
        )


def _scales(evidence: Evidence) -> _Scales | None:
    wide = evidence.wide
    if wide is None:
        return None
    hidden_H, logprob_K = wide.hidden_nH.std(axis=0), wide.logprob_nK.std(axis=0)
    varying_H = hidden_H[hidden_H > 0]
    if not len(varying_H):
        return None
    low, typical, high = np.quantile(varying_H, [0.1, 0.5, 0.9]).tolist()
    largest = float(varying_H.max())
    return _Scales(typical, float(np.median(logprob_K)), high / low, largest / typical)


def examine(evidence: Evidence) -> Verdict:  # noqa: PLR0911  a return per verdict
    """Look at the inputs' sizes, whether the subject standardises, and what that is worth here."""
    scales = _scales(evidence)
    standardises, whose = _standardises(evidence)
    if scales is None:
        return cannot_tell(NAME, whose, LABELS)
    points, measured = _measured(evidence)
    text = " ".join(part for part in (scales.text, whose, measured) if part)
    facts = {
        "typical_hidden": scales.hidden,
        "typical_logprob": scales.logprob,
        "uneven": scales.uneven,
        "standardises": standardises,
    }
    if scales.uneven >= UNEVEN:
        return Verdict(
            NAME, Status.FOUND, f"The hidden state is not scaled. {text}", points, facts=facts
        )
    if standardises:
        return Verdict(NAME, Status.RULED_OUT, text, Estimate(0.0), facts=facts)
    if points is None:
        return Verdict(
            NAME, Status.CANNOT_TELL, text, needs="a run without --quick, which trains both ways",
            facts=facts,
        )  # fmt: skip
    if standardises is False and points.z >= STRONG and points.value >= MATERIAL:
        return Verdict(NAME, Status.FOUND, text, points, facts=facts)
    if within(points, GAP):
        return Verdict(NAME, Status.RULED_OUT, text, points, facts=facts)
    return Verdict(
        NAME, Status.CANNOT_TELL, text, points,
        needs="the run's config, or labels of more problems", facts=facts,
    )  # fmt: skip


def _standardises(evidence: Evidence) -> tuple[bool | None, str]:
    """Return whether the subject standardises its inputs, and that in a sentence."""
    if evidence.result is not None:
        found = evidence.result.setting("model", "init_args", "normalize_input")
        if isinstance(found, bool):
            done = (
                "standardises its inputs" if found else "feeds raw inputs (normalize_input false)"
            )
            return found, f"The result's network {done}."
        return None, "The result does not say whether its network standardises its inputs."
    if evidence.run is not None:
        found = evidence.run.settings.get("normalise")
        if isinstance(found, bool):
            done = "standardises its inputs" if found else "feeds raw inputs"
            return found, f"The run {done}."
    return None, "There is no run of which to say whether it standardises."


def _measured(evidence: Evidence) -> tuple[Estimate | None, str]:
    """Return by how much a network without standardisation needs more than one with it."""
    trainer, gauge = evidence.trainer, evidence.gauge
    if trainer is None or gauge is None or not gauge.trained or too_few(gauge) is not None:
        return None, ""
    inputs = trainer.config.inputs if trainer.as_run else WIDE
    raw_N = trainer.scores(inputs=inputs, normalise=False)
    scaled_N = trainer.scores(inputs=inputs, normalise=True)
    if raw_N is None or scaled_N is None:
        return None, f"Training it both ways failed: {trainer.problem}."
    raw = gauge.with_scores("raw inputs", raw_N, trained=True)
    points = raw.less(scaled_N[gauge.rows_N])
    return points, (
        f"Trained here both ways on {', '.join(inputs)}, raw inputs need "
        f"{percent(raw.rate.value)}, {points_text(points)} points more than standardised ones."
    )


CAUSES = (
    Cause(NAME, Kind.TRAINING, "did raw inputs of unlike sizes keep it from learning?", examine),
)
