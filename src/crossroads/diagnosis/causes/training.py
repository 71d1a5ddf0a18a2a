"""Could the same rows have given a better network: longer, another recipe, another seed?"""

from __future__ import annotations

import numpy as np

from crossroads.diagnosis import arithmetic
from crossroads.diagnosis.causes.base import RUN, Cause, Kind, cannot_tell, too_few, within
from crossroads.diagnosis.criteria import GAP, MATERIAL, STRONG
from crossroads.diagnosis.evidence import Evidence
from crossroads.diagnosis.gauge import Gauge
from crossroads.diagnosis.network import Retrainer
from crossroads.diagnosis.result import Result
from crossroads.diagnosis.verdict import Estimate, Status, Verdict, percent, points_text
from crossroads.types import Split

UNDER, OVER, SEEDS = "undertraining", "overfitting", "seed spread"
_LONGER = 3
_EARLY = 3  # best epochs up to this one mean overfitting at once
_CONSTANT = 0.98  # share of a constant score's loss from which nothing was learned
_QUICK = "a run without --quick, which trains here"


def examine_under(evidence: Evidence) -> Verdict:  # noqa: PLR0911  a return per verdict
    """Train longer, or simply train, on the same rows."""
    trainer, gauge = evidence.trainer, evidence.gauge
    history = _history_text(evidence)
    if evidence.run is None and evidence.result is None:
        return cannot_tell(UNDER, "There is no run that could have been trained longer.", RUN)
    nothing = _learned_nothing(evidence)
    if nothing is not None:
        return nothing
    if evidence.data is None:
        return cannot_tell(UNDER, history or "Nothing is here to train on.", RUN)
    few = too_few(gauge)
    if gauge is None or few is not None:
        return cannot_tell(UNDER, f"{history} {few or ''}".strip(), "labels of more problems")
    if trainer is None:
        return cannot_tell(UNDER, history or "Nothing was trained (--quick).", _QUICK)
    if evidence.result is not None:
        return _against_result(evidence, trainer, gauge, history)
    return _against_run(trainer, gauge, history)


def _against_result(evidence: Evidence, trainer: Retrainer, gauge: Gauge, history: str) -> Verdict:
    """Compare the result with a network that is trained here on the data at hand."""
    score_N = trainer.scores()
    if score_N is None:
        return cannot_tell(UNDER, f"Training here failed: {trainer.problem}.", "other data")
    assert evidence.result is not None
    own = gauge.with_scores(trainer.recipe, score_N, trained=True).rate
    points = Estimate(evidence.result.positive_rate - own.value, error=own.error)
    if own.interval is not None:
        points = Estimate.of(points.value, evidence.result.positive_rate - np.array(_ends(own)))
        points = Estimate(points.value, points.interval, own.error)
    text = (
        f"{history} Trained here, {trainer.recipe} needs {percent(own.value)} on these rows, "
        f"{points_text(points)} points less than the result. If these are the rows that the result "
        "was trained on, its training left that on the table."
    ).strip()
    if points.z >= STRONG and points.value >= MATERIAL:
        return Verdict(UNDER, Status.FOUND, text, points)
    return Verdict(UNDER, Status.CANNOT_TELL, text, points, needs="the run's folder and its data")


def _ends(estimate: Estimate) -> tuple[float, float]:
    assert estimate.interval is not None
    return estimate.interval.low, estimate.interval.high


def _against_run(trainer: Retrainer, gauge: Gauge, history: str) -> Verdict:
    """Compare the run with its own recipe trained longer, or with a small network."""
    epochs = trainer.config.epochs * (_LONGER if trainer.as_run else 1)
    longer_N = trainer.scores(epochs=epochs)
    if longer_N is None:
        return cannot_tell(UNDER, f"Training here failed: {trainer.problem}.", "other data")
    points = gauge.less(longer_N[gauge.rows_N])
    what = f"{trainer.recipe}, {_LONGER} times as long" if trainer.as_run else trainer.recipe
    text = (
        f"{history} Trained here, {what}, needs {percent(gauge.rate.value - points.value)}: "
        f"{points_text(points)} points less than the run."
    ).strip()
    if points.z >= STRONG and points.value >= MATERIAL:
        return Verdict(UNDER, Status.FOUND, text, points)
    if points.interval is not None and points.interval.high < GAP:
        return Verdict(UNDER, Status.RULED_OUT, text, points)
    return Verdict(UNDER, Status.CANNOT_TELL, text, points, needs="labels of more problems")


def _history_text(evidence: Evidence) -> str:
    """Return what is known of the training's end."""
    if evidence.result is not None:
        return _result_text(evidence.result)
    if evidence.run is None or not evidence.run.history:
        return ""
    rates = [epoch["positive_rate"] for epoch in evidence.run.history]
    best = int(np.argmin(rates)) + 1
    end = " It was still getting better when it ended." if best == len(rates) else ""
    return f"The run's least positive_rate on calibration is in epoch {best} of {len(rates)}.{end}"


def _result_text(result: Result) -> str:
    """Return what a result and its config tell of the training's end."""
    best, params = result.best_epoch, result.setting("training", "params") or {}
    epochs, patience = params.get("num_epochs"), params.get("patience", 10)
    text = ""
    if best is not None and isinstance(epochs, int):
        text = f"The result kept epoch {best} of at most {epochs}."
        if isinstance(patience, int) and best > epochs - patience:
            text += " The limit of epochs ended it, not that it stopped getting better."
        elif best <= _EARLY:
            text += " It was at its best at once, and overfitted from there on."
    if isinstance(params.get("valid_freq"), int) and params["valid_freq"] > 1:
        text += (
            f" With valid_freq {params['valid_freq']} R2R's script trains without dropout after "
            "its first look in every epoch."
        )
    return text.strip()


def _learned_nothing(evidence: Evidence) -> Verdict | None:
    """Return `found` if a result's validation loss is that of a constant score."""
    result = evidence.result
    if result is None or result.best_val_loss is None:
        return None
    base = arithmetic.base_rate(result.final)
    loss = result.setting("training", "loss") or {}
    if base is None or loss.get("type") != "BCEWithLogitsLoss":
        return None
    factor = loss.get("recall_factor", 1.0)
    if not isinstance(factor, int | float) or not 0 < base < 1:
        return None
    constant = arithmetic.constant_loss(base, float(factor))
    if result.best_val_loss < _CONSTANT * constant:
        return None
    return Verdict(
        UNDER,
        Status.FOUND,
        f"Its least validation loss is {result.best_val_loss:.3f}, and a constant score has "
        f"{constant:.3f} at a base rate of {percent(base)}: the network learned next to nothing. "
        f"{_result_text(result)}".strip(),
    )


def examine_over(evidence: Evidence) -> Verdict:
    """Compare the ranking of the rows that it was trained on with that of the others."""
    gauge, data = evidence.gauge, evidence.data
    if data is None or gauge is None or not gauge.trained:
        needs = RUN if data is None else f"{RUN}, or {_QUICK}"
        return cannot_tell(OVER, "No trained network can be scored on its own train rows.", needs)
    few = too_few(gauge)
    if few is not None:
        return cannot_tell(OVER, few, "labels of more problems")
    train = evidence.ranks(data.tokens.in_split(Split.TRAIN))
    if train is None:
        return cannot_tell(OVER, "The data have no train rows with positives.", "the train split")
    error = float(np.hypot(gauge.rate.error or 0.0, train.rate.error or 0.0))
    value = gauge.rate.value - train.rate.value
    points = Estimate.of(value, np.array([value - 1.96 * error, value + 1.96 * error]))
    points = Estimate(value, points.interval, error)
    text = (
        f"{gauge.name.capitalize()} needs {percent(train.rate.value)} on the rows it was trained "
        f"on and {percent(gauge.rate.value)} on the others: {points_text(points)} points. More "
        "problems or a smaller network would close that."
    )
    if points.z >= STRONG and points.value >= GAP:
        return Verdict(OVER, Status.FOUND, text, points)
    if within(points, GAP):
        return Verdict(OVER, Status.RULED_OUT, text, points)
    return Verdict(OVER, Status.CANNOT_TELL, text, points, needs="labels of more problems")


def examine_seeds(evidence: Evidence) -> Verdict:  # noqa: PLR0911  a return per verdict
    """Train the same recipe with other seeds."""
    trainer, gauge = evidence.trainer, evidence.gauge
    if trainer is None or gauge is None or not gauge.trained:
        needs = RUN if evidence.data is None else _QUICK
        unseeded = " R2R's script sets no seed: two runs of it differ." if evidence.result else ""
        return cannot_tell(SEEDS, f"Nothing was trained with other seeds.{unseeded}", needs)
    rates = []
    for number in range(evidence.options.seeds):
        score_N = trainer.scores(seed=trainer.config.seed + number)
        if score_N is None:
            return cannot_tell(SEEDS, f"Training here failed: {trainer.problem}.", "other data")
        rates.append(
            gauge.with_scores("", score_N, trained=True).ranking.rate_at_recall(gauge.recall)
        )
    if len(rates) < 2:
        return cannot_tell(SEEDS, "One seed has no spread.", "--seeds 3 or more")
    spread = float(np.std(rates, ddof=1))
    text = (
        f"{len(rates)} seeds of {trainer.recipe} need "
        f"{', '.join(percent(rate) for rate in rates)}: a standard deviation of "
        f"{100 * spread:.1f} points."
    )
    gap = evidence.gap
    facts = {"rates": rates, "deviation": spread}
    if gap is None:
        return Verdict(SEEDS, Status.CANNOT_TELL, text, needs="--reference", facts=facts)
    if abs(gap.value) < GAP or abs(gap.value) > 5 * spread:
        # 5 deviations: with three seeds, another run lies within 5.0 of them 95 times in 100
        # (t of two degrees of freedom, times the root of 4/3).
        return Verdict(SEEDS, Status.RULED_OUT, text, facts=facts)
    if abs(gap.value) <= 2 * spread:
        return Verdict(SEEDS, Status.FOUND, text, facts=facts)
    return Verdict(SEEDS, Status.CANNOT_TELL, text, needs="more seeds (--seeds)", facts=facts)


CAUSES = (
    Cause(UNDER, Kind.TRAINING, "would longer or other training do better?", examine_under),
    Cause(OVER, Kind.TRAINING, "does it know its train rows by heart?", examine_over),
    Cause(SEEDS, Kind.CHANCE, "is the difference within what seeds do?", examine_seeds, False),
)
