"""A training run's report as one page that loads nothing: figures, then tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from crossroads.artifacts import write_text
from crossroads.svg import DARK, INK, LIGHT, MARKERS, MUTED, SERIES, plain_axes, svg
from crossroads.training.report import HISTOGRAM_EDGES
from crossroads.training.report_tables import verdict
from crossroads.training.target import Target
from crossroads.training.threshold import NEVER

_NONE = "\u2013"
_LABELS = ("identical", "neutral", "divergent")
_ODDS = (0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)  # marked on an axis of log-odds
Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Table:
    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class _Figure:
    title: str
    drawing: Markup
    caption: str


def write_page(path: Path, report: Values) -> None:
    """Write the page of a report's JSON; the same report gives the same bytes.

    `report` is `Report.to_json()`; `history`, `best_epoch` and `provenance` are shown where they
    are there.

    Raises:
        EngineError: matplotlib is not installed. ConfigError: the file cannot be written.
    """
    source = resources.files("crossroads.training").joinpath("report_page.html.j2")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(source.read_text(encoding="utf-8"))
    page = template.render(
        headline=_headline(report),
        light=LIGHT,
        dark=DARK,
        chosen=_chosen_table(report),
        figures=list(_figures(report)),
        tables=list(_tables(report)),
        provenance=list(_flat(report.get("provenance") or {})),
    )
    write_text(path, page)


def _headline(report: Values) -> str:
    """Return the result in a sentence or two."""
    if not report["chosen"]:
        words = Target.parse(report["target"]).words
        return f"No router could meet the target on calibration: {words}."
    first, *others = report["chosen"]
    point, objective = first["test"]["point"], report["objective"]
    sentence = (
        f"Calibrated for {Target.parse(report['target']).words}, {first['router']} caught "
        f"{_share(point['recall'], first['test']['recall'])} of the {point['positives']} "
        f"{objective} tokens of test and sent "
        f"{_share(point['positive_rate'], first['test']['positive_rate'])} of all tokens."
    )
    same = [row for row in report["rows"] if row["target_recall"] == _compared_recall(report)]
    best = min(same[1:], key=lambda row: row["same_recall"]["value"], default=None)
    if not others or best is None:
        return sentence
    pair = next(
        c
        for c in report["comparisons"]
        if c["other"] == best["router"] and c["recall"] == best["target_recall"]
    )
    return (
        f"{sentence} At {100 * best['target_recall']:g}\u00a0% recall it sends "
        f"{_ratio(pair['ratio'])} times what {best['router']} sends, the best of the others: "
        f"{verdict(pair['ratio']['interval'])}."
    )


def _compared_recall(report: Values) -> float:
    """Return the recall that is talked about: the target's, where it is one, or the nearest."""
    recalls = sorted({row["target_recall"] for row in report["rows"]})
    wanted = report["chosen"][0]["test"]["point"]["recall"]
    target = Target.parse(report["target"])
    if target.kind in ("recall", "guarantee"):
        wanted = target.value
    return float(min(recalls, key=lambda recall: abs(recall - wanted)))


# Tables


def _chosen_table(report: Values) -> _Table:
    rows = tuple(
        (
            row["router"],
            _threshold(row["test"]["point"]["threshold"]),
            *(
                _cell(row[split]["point"][name], row[split][name])
                for split in ("calibration", "test")
                for name in ("recall", "positive_rate")
            ),
            _interval(row["test"]["recall_clopper_pearson"]),
        )
        for row in report["chosen"]
    )
    return _Table(
        f"Calibrated for {Target.parse(report['target']).words}",
        "Brackets are 95 % intervals in which whole problems are resampled; the last column takes "
        "every positive for independent (Clopper and Pearson), to compare with. positive_rate is "
        "the share of scored tokens that the threshold sends to the large model; the share of "
        "generated tokens that it writes in use (large_fraction) is another number.",
        (
            "router", "threshold", "calibration recall %", "calibration positive_rate %",
            "test recall %", "test positive_rate %", "test recall %, Clopper-Pearson",
        ),
        rows,
    )  # fmt: skip


def _tables(report: Values) -> Iterator[_Table]:
    if report.get("side_by_side"):
        yield _protocol_table(report)
    yield _same_recall_table(report)
    if report["comparisons"]:
        yield _comparison_table(report)
    yield _recalls_table(report)
    yield _quality_table(report)
    yield _domain_table(report)
    yield _split_table(report)


def _protocol_table(report: Values) -> _Table:
    return _Table(
        "One router by R2R's protocol and by ours",
        " ".join(f"{note[:1].upper()}{note[1:]}." for note in report.get("notes", [])),
        (
            "protocol", "chosen on", "measured on", "threshold", "recall %", "positive_rate %",
            "positives", "tokens",
        ),
        tuple(
            (
                line["protocol"], line["chosen_on"], line["measured_on"],
                _threshold(line["threshold"]),
                _cell(line["recall"], line["recall_interval"]),
                _cell(line["positive_rate"], line["positive_rate_interval"]),
                f"{line['positives']:,}", f"{line['tokens']:,}",
            )
            for line in report["side_by_side"]
        ),
    )  # fmt: skip


def _by_router(report: Values) -> tuple[list[float], dict[str, dict[float, Values]]]:
    """Return the recall targets, and each router's rows by them."""
    recalls = sorted({row["target_recall"] for row in report["rows"]})
    found: dict[str, dict[float, Values]] = {}
    for row in report["rows"]:
        found.setdefault(row["router"], {})[row["target_recall"]] = row
    return recalls, found


def _same_recall_table(report: Values) -> _Table:
    recalls, rows = _by_router(report)
    return _Table(
        "positive_rate at equal recall on test",
        "Each router at its own threshold that has the recall on test itself: what its order of "
        "the tokens is worth, without the error of choosing a threshold elsewhere.",
        ("router", *(f"{100 * recall:g} % recall" for recall in recalls)),
        tuple(
            (name, *(_estimate(of[r]["same_recall"]) for r in recalls)) for name, of in rows.items()
        ),
    )


def _comparison_table(report: Values) -> _Table:
    first = report["comparisons"][0]["router"]
    return _Table(
        "Is the difference real?",
        f"positive_rate of {first} over, and minus, another's at equal recall, both on the same "
        "resamples of problems. Several comparisons at once: one of twenty such intervals misses "
        "by chance.",
        ("other", "recall %", "ratio", "points", f"{first} sends"),
        tuple(
            (
                c["other"],
                f"{100 * c['recall']:g}",
                _ratio(c["ratio"]),
                _estimate(c["difference"], "+.1f"),
                verdict(c["ratio"]["interval"]),
            )
            for c in report["comparisons"]
        ),
    )


def _recalls_table(report: Values) -> _Table:
    recalls, rows = _by_router(report)

    def cell(row: Values) -> str:
        test = row["test"]
        return (
            f"{_cell(test['point']['recall'], test['recall'])} / "
            f"{_cell(test['point']['positive_rate'], test['positive_rate'])}"
        )

    return _Table(
        "Recall / positive_rate on test, by the recall asked of calibration",
        "The threshold is chosen on calibration; what it does on test is what a user gets.",
        ("router", *(f"{100 * recall:g} %" for recall in recalls)),
        tuple((name, *(cell(of[r]) for r in recalls)) for name, of in rows.items()),
    )


def _quality_table(report: Values) -> _Table:
    return _Table(
        "Ranking and probabilities on test",
        "A heuristic's score is no probability: its Brier score, log loss and calibration error "
        "say little. Few tokens alone make a calibration error.",
        ("router", "AUROC %", "average precision %", "Brier", "log loss", "calibration error %"),
        tuple(
            (
                row["router"],
                _estimate(row["auroc"]),
                _estimate(row["average_precision"]),
                _estimate(row["brier"], ".4f", 1.0),
                _estimate(row["log_loss"], ".3f", 1.0),
                _estimate(row["calibration_error"]),
            )
            for row in report["quality"]
        ),
    )


def _domain_table(report: Values) -> _Table:
    return _Table(
        "By domain",
        "At the threshold above, on test.",
        ("router", "domain", "problems", "tokens", "positives", "recall %", "positive_rate %"),
        tuple(
            (
                row["router"], row["domain"], f"{row['problems']}", f"{row['tokens']:,}",
                f"{row['positives']:,}",
                _NONE if row["recall"] is None else _estimate(row["recall"]),
                _estimate(row["positive_rate"]),
            )
            for row in report["domains"]
        ),
    )  # fmt: skip


def _split_table(report: Values) -> _Table:
    return _Table(
        "Base rates",
        f"positives are the {report['objective']} tokens. mismatch: the small model proposes "
        "another token than the large one wrote; divergent: on another path.",
        ("split", "problems", "tokens", "positives", "mismatch %", "divergent %"),
        tuple(
            (
                row["split"], f"{row['problems']}", f"{row['tokens']:,}", f"{row['positives']:,}",
                _estimate(row["mismatch"]), _estimate(row["divergent"]),
            )
            for row in report["splits"]
        ),
    )  # fmt: skip


def _flat(value: Values, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested values as dotted names and texts."""
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping) and item:
            yield from _flat(item, f"{name} \u203a ")
        elif isinstance(item, list | tuple):
            yield name, ", ".join(map(str, item))
        else:
            yield name, _NONE if item is None else str(item)


def _threshold(value: float) -> str:
    return "none is sent" if value == NEVER else f"{value:.4f}"


def _cell(value: float, interval: Values, form: str = ".1f", scale: float = 100) -> str:
    return f"{scale * value:{form}} {_interval(interval, form, scale)}"


def _interval(interval: Values, form: str = ".1f", scale: float = 100) -> str:
    return f"[{scale * interval['low']:{form}}, {scale * interval['high']:{form}}]"


def _estimate(found: Values, form: str = ".1f", scale: float = 100) -> str:
    return _cell(found["value"], found["interval"], form, scale)


def _ratio(found: Values) -> str:
    return _estimate(found, ".2f", 1.0)


def _share(value: float, interval: Values) -> str:
    """Return a share for running text; the spaces do not break."""
    text = f"{100 * value:.1f} % {_interval(interval)}"
    return text.replace(" ", "\u00a0")


# Figures


def _figures(report: Values) -> Iterator[_Figure]:
    routers = [row["router"] for row in report["curves"]]
    height = 3.4 + 0.24 * (-(-len(routers) // 2))
    yield _Figure(
        "Recall against positive_rate, on test",
        _drawing("curve", height, lambda figure: _draw_curves(figure, height, report)),
        "Lower is better. The marks are the thresholds chosen on calibration, with 95 % intervals.",
    )
    first = report["quality"][0]
    yield _Figure(
        f"Are the scores of {first['router']} probabilities?",
        _drawing("reliability", 3.3, lambda figure: _draw_reliability(figure, first["bins"])),
        "Each mark is about a tenth of the test tokens: their mean score, and how many of them are "
        "positive, with a 95 % interval, in log-odds. On the dashed line a score is what it says. "
        "Without a positive there is no mark.",
    )
    threshold = report["chosen"][0]["test"]["point"]["threshold"] if report["chosen"] else None
    yield _Figure(
        f"Scores of {report['histograms'][0]['router']} by label, on test",
        _drawing(
            "scores", 3.5, lambda figure: _draw_scores(figure, report["histograms"][0], threshold)
        ),
        "Share of each label's tokens, by log-odds of the score; the dashed line is the threshold. "
        "The first and last step hold all that is beyond.",
    )
    history = report.get("history") or []
    if history:
        yield _Figure(
            "Training",
            _drawing(
                "history",
                4.2,
                lambda figure: _draw_history(figure, history, report.get("best_epoch")),
            ),
            "Losses, and positive_rate at the target recall on calibration, by epoch. The dashed "
            "line is the epoch that was kept.",
        )


def _drawing(name: str, height: float, draw: Any) -> Markup:
    return Markup(svg(name, 5.0, height, draw))  # noqa: S704  matplotlib escapes the names


def _draw_curves(figure: Any, height: float, report: Values) -> None:
    axes = figure.add_axes((0.115, 1 - 2.8 / height, 0.855, 2.7 / height))
    chosen = {row["router"]: row["test"] for row in report["chosen"]}
    for number, row in enumerate(report["curves"]):
        colour, marker = SERIES[number % len(SERIES)], MARKERS[number % len(MARKERS)]
        at = [100 * recall for recall in row["recall"]]
        up = [100 * rate for rate in row["positive_rate"]]
        axes.plot(
            at, up, color=colour, linewidth=2.0 if number == 0 else 1.2, label=row["router"],
            marker=marker, markevery=[], markersize=6, zorder=3 if number == 0 else 2,
        )  # fmt: skip
        if row["router"] in chosen:
            _draw_point(axes, chosen[row["router"]], colour, marker)
    axes.set_xlim(-2, 102)
    axes.set_ylim(-2, 102)
    plain_axes(axes, "recall (%)", "positive_rate (%)")
    figure.legend(loc="lower left", ncols=2, frameon=False, borderaxespad=0.2, numpoints=1)


def _draw_point(axes: Any, test: Values, colour: str, marker: str) -> None:
    x, y = 100 * test["point"]["recall"], 100 * test["point"]["positive_rate"]
    across = [100 * test["recall"][end] for end in ("low", "high")]
    up = [100 * test["positive_rate"][end] for end in ("low", "high")]
    line = {"color": colour, "linewidth": 1.1, "alpha": 0.65, "zorder": 3}
    axes.plot(across, [y, y], **line)
    axes.plot([x, x], up, **line)
    axes.plot([x], [y], marker=marker, markersize=7, color=colour, linestyle="none", zorder=4)


def _draw_reliability(figure: Any, bins: Sequence[Values]) -> None:
    axes = figure.add_axes((0.14, 0.16, 0.79, 0.81))
    # A share of 0 has no log-odds.
    known = [x for found in bins for x in (found["score"], found["share"]["value"]) if x > 0]
    least, most = min(known, default=_ODDS[0]), max(known, default=_ODDS[-1])
    marked = [
        p
        for before, p, after in zip((0.0, *_ODDS), _ODDS, (*_ODDS[1:], 1.0), strict=False)
        if after > least and before < most
    ]
    ends = [_log_odds(marked[0]), _log_odds(marked[-1])]
    axes.plot(ends, ends, linestyle=(0, (5, 4)), linewidth=1, color=MUTED, zorder=1)
    for found in bins:
        x, share = _log_odds(found["score"]), found["share"]
        span = [_log_odds(share["interval"][end]) for end in ("low", "high")]
        axes.plot([x, x], span, color=SERIES[0], linewidth=1.1, alpha=0.65)
        axes.plot([x], [_log_odds(share["value"])], marker="o", markersize=5, color=SERIES[0])
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([_log_odds(p) for p in marked], [f"{p:g}" for p in marked])
    plain_axes(axes, "mean score", "share of positives")


def _draw_scores(figure: Any, histogram: Values, threshold: float | None) -> None:
    axes = figure.add_axes((0.115, 0.215, 0.855, 0.755))
    inner = [_log_odds(edge) for edge in HISTOGRAM_EDGES[1:-1]]
    step = inner[1] - inner[0]
    edges = [inner[0] - step, *inner, inner[-1] + step]
    for number, label in enumerate(_LABELS):
        counts = histogram[label]
        total = sum(counts)
        if total:
            shares = [100 * count / total for count in counts]
            axes.stairs(shares, edges, color=SERIES[number], linewidth=1.6, label=label)
    if threshold is not None and threshold <= 1:
        at = min(max(_log_odds(threshold), edges[0]), edges[-1])
        axes.axvline(at, linestyle=(0, (5, 4)), linewidth=1, color=INK)
    marked = _ODDS[1:]
    axes.set_xticks([_log_odds(p) for p in marked], [f"{p:g}" for p in marked])
    axes.set_ylim(bottom=0)
    plain_axes(axes, "score", "tokens of the label (%)")
    figure.legend(loc="lower left", ncols=3, frameon=False, borderaxespad=0.2)


def _draw_history(figure: Any, history: Sequence[Values], best: int | None) -> None:
    loss = figure.add_axes((0.125, 0.59, 0.845, 0.39))
    rate = figure.add_axes((0.125, 0.19, 0.845, 0.3), sharex=loss)
    epochs = [epoch["epoch"] for epoch in history]
    lines = (
        (loss, "loss", "training loss", 1.0),
        (loss, "calibration_loss", "calibration loss", 1.0),
        (rate, "positive_rate", "positive_rate", 100.0),
    )
    for number, (axes, key, name, scale) in enumerate(lines):
        if key in history[0]:
            values = [scale * epoch[key] for epoch in history]
            marker = MARKERS[number] if len(epochs) < 30 else None
            axes.plot(
                epochs, values, color=SERIES[number], label=name, marker=marker, markersize=3.5
            )
    for axes in (loss, rate):
        if best is not None:
            axes.axvline(best, linestyle=(0, (5, 4)), linewidth=1, color=MUTED)
    plain_axes(loss, "", "loss")
    plain_axes(rate, "epoch", "%")
    loss.tick_params(labelbottom=False)
    rate.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="lower left", ncols=3, frameon=False, borderaxespad=0.2)


def _log_odds(share: float) -> float:
    """Return log(p / (1 - p)); 0 and 1 are drawn far outside."""
    p = min(max(share, 1e-9), 1 - 1e-9)
    return math.log(p / (1 - p))
