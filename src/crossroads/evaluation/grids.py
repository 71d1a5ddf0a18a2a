"""A task's tables as text: what the page shows of its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crossroads.evaluation import words
from crossroads.evaluation.figure import large_cost
from crossroads.evaluation.kinds import SystemKind
from crossroads.evaluation.parting import Fork, Outcomes, Parting
from crossroads.evaluation.summary import SystemResult, TaskResult
from crossroads.evaluation.usage_patterns import UsagePatterns

MOST_TOKENS = 20  # rows of a table of routed tokens
_VISIBLE = {" ": "\u2423", "\n": "\u23ce", "\t": "\u21e5", "\r": "\u240d"}


@dataclass(frozen=True, slots=True)
class Grid:
    """A table as text, the systems in its rows. kinds: of the systems, to mark the router."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()


def results(result: TaskResult) -> Grid:
    """Return accuracy, share, length, cost and recovered gap of every system."""
    # pass@1 is what `correct %` shows.
    ks = sorted({k for system in result.systems for k in system.pass_at if k > 1})
    alone, letters = large_cost(result), words.letters(result)

    def cells(system: SystemResult) -> Iterator[str]:
        yield words.estimate(system.accuracy)
        for k in ks:
            yield words.estimate(system.pass_at[k]) if k in system.pass_at else words.NONE
        yield words.estimate(system.large_fraction)
        yield words.percent(system.replaced_fraction)
        yield words.estimate(system.tokens, 0, 1)
        yield words.percent(system.cost / alone if alone else None)
        yield words.gap_percent(system.recovered)
        yield letters.get(system.system, words.NONE)

    header = (
        "system", "correct %", *(f"pass@{k} %" for k in ks), "large_fraction %", "replaced %",
        "tokens / answer", "cost, % of large alone", "recovered gap %", "letters",
    )  # fmt: skip
    notes = [
        "Brackets are 95 % intervals over problems. large_fraction is the share of generated "
        "tokens that the large model wrote, replaced the share in which it wrote another one than "
        "was proposed. Cost is active parameters per answer. Systems that "
        "share a letter are not separated by these problems."
    ]
    reasons = {s.recovered.reason for s in result.systems if s.recovered}
    notes += [f"No recovered gap: {reason}." for reason in sorted(reasons - {None}, key=str)]
    return _grid("Results", header, result, cells, tuple(notes))


def costs(result: TaskResult) -> Grid:
    """Return what every system costs, in parameters, calls and time."""
    alone = large_cost(result)

    def cells(system: SystemResult) -> Iterator[str]:
        yield words.parameters(system.active_parameters)
        yield f"{system.cost / 1e9:.1f} B"
        yield words.percent(system.cost / alone if alone else None)
        yield words.percent(system.router_share, 2)
        yield f"{system.large_calls:,}"
        yield f"{system.lag_per_call:.1f}"
        yield f"{system.tokens_per_second:.1f}"

    header = (
        "system", "active params / token", "cost / answer", "of large alone %", "router\u2019s %",
        "large calls", "lag / call", "tokens / s",
    )  # fmt: skip
    note = (
        "Active parameters count a model for each token for which it was asked; cost is tokens "
        "times active parameters per token (R2R, arXiv 2505.21600). The router\u2019s share is of "
        "the active parameters. lag: tokens that the large model reads when it is asked."
    )
    return _grid("What it costs", header, result, cells, (note,))


def endings(result: TaskResult) -> Grid:
    """Return how every system's answers ended, and its threshold with what calibration said."""
    reasons = sorted({reason for system in result.systems for reason in system.finish})

    def cells(system: SystemResult) -> Iterator[str]:
        yield f"{system.unparsed}/{system.problems * system.samples}"
        yield from (f"{system.finish.get(reason, 0)}" for reason in reasons)
        yield words.NONE if system.threshold is None else f"{system.threshold:.4f}"
        yield system.matched_to or words.NONE
        yield words.percent(system.recall)
        yield words.percent(system.positive_rate)

    header = (
        "system", "unparsed", *(f"ended by {reason}" for reason in reasons), "threshold",
        "matched to", "calibration: recall %", "calibration: positive_rate %",
    )  # fmt: skip
    note = (
        "Unparsed answers gave no readable result; they count as not correct. recall and "
        "positive_rate are what calibration promised on labelled tokens, another population: "
        "positive_rate is not large_fraction."
    )
    return _grid("How answers ended, and thresholds", header, result, cells, (note,))


def _grid(
    title: str, header: tuple[str, ...], result: TaskResult, cells: Any, notes: tuple[str, ...]
) -> Grid:
    rows = tuple((system.system, *cells(system)) for system in result.systems)
    return Grid(title, header, rows, notes, tuple(s.kind.value for s in result.systems))


def differences(result: TaskResult) -> Grid | None:
    """Return the first router minus every other system; None without such a pair."""
    router = words.first_router(result)
    found = words.against(result, router.system) if router else []
    if router is None or not found:
        return None
    rows = tuple(
        (
            pair.other,
            words.points(pair.comparison),
            words.p_text(pair.comparison.p_value),
            words.p_text(pair.adjusted_p),
            pair.verdict,
        )
        for pair in found
    )
    tests = " and ".join(sorted({pair.comparison.test for pair in found}))
    note = (
        f"Paired by problem; p values by {tests}. The adjusted ones take account of all pairs of "
        "systems (Holm 1979) and decide."
    )
    header = (
        f"{router.system} minus", "points of accuracy", "p", "adjusted p", f"{router.system} is",
    )  # fmt: skip
    return Grid("Is the difference real?", header, rows, (note,))


def curves(result: TaskResult) -> Grid | None:
    """Return the routers against the heuristics' curves; None where none was compared."""
    if not result.against:
        return None
    rows = []
    for found in result.against:
        comparison = found.trade_off.comparison
        numbers = (words.NONE, words.NONE, found.trade_off.reason or words.NONE)
        if comparison is not None:
            numbers = (words.points(comparison), words.p_text(comparison.p_value), "")
        at = words.percent(found.trade_off.large_fraction)
        rows.append((f"{found.system} minus {found.heuristic}", at, *numbers))
    note = (
        "The heuristic\u2019s accuracy is interpolated at the router\u2019s own large_fraction, "
        "along all its thresholds that were run and the models alone, if one of those thresholds "
        "is near. These p values stand alone: no other comparison is taken into account."
    )
    header = ("at equal large_fraction", "large_fraction %", "points of accuracy", "p", "")
    return Grid("Against the heuristics\u2019 curves", header, tuple(rows), (note,))


def overlaps(result: TaskResult, patterns: Mapping[str, UsagePatterns]) -> Grid | None:
    """Return a row for every system that sends some of its proposals, if a trained one does."""
    rows, kinds = [], []
    for system in result.systems:
        found = patterns[system.system].overlap if system.system in patterns else None
        if found is None or not 0 < found.sent < found.proposals:
            continue
        numbers = (found.share, found.replaced_inside, found.replaced_outside)
        rows.append((system.system, f"{found.sent:,}", *map(words.percent, numbers)))
        kinds.append(system.kind)
    if SystemKind.ROUTER not in kinds:
        return None
    header = (
        "system", "tokens sent", "entropy would send %", "of these replaced %",
        "of the others replaced %",
    )  # fmt: skip
    note = (
        "On a system\u2019s own path entropy is given as many tokens to send as the system sent: "
        "those of the small model\u2019s highest entropy. Where nearly all are the same, answers "
        "can hardly tell the two apart."
    )
    title = "Would entropy have sent the same tokens?"
    return Grid(title, header, tuple(rows), (note,), tuple(kind.value for kind in kinds))


def partings(found: Sequence[Parting]) -> tuple[Grid, ...]:
    """Return a table for every router: how its answers part from those of each other system."""
    header = (
        "and", "same", "router sent it", "the other sent it", "large wrote both",
        "small wrote both", "one ended",
    )  # fmt: skip
    by_router: dict[str, list[tuple[str, ...]]] = {}
    for parting in found:
        cells = (_outcomes(parting.by[fork]) for fork in Fork)
        by_router.setdefault(parting.system, []).append((parting.other, *cells))
    return tuple(Grid(router, header, tuple(rows)) for router, rows in by_router.items())


def _outcomes(found: Outcomes) -> str:
    if not (found.better or found.worse):
        return f"{found.answers}"
    return f"{found.answers} (+{found.better} \u2212{found.worse})"


def tokens(system: str, patterns: UsagePatterns, texts: Mapping[int, bytes]) -> Grid:
    """Return the proposals that a system sent most often; `texts` are the bytes of token ids."""
    rows = tuple(
        (
            visible(texts.get(token.token_id, b""), token.token_id),
            f"{token.token_id}",
            f"{token.proposed:,}",
            f"{token.sent:,}",
            words.percent(token.sent / token.proposed),
            words.percent(token.replaced / token.sent),
        )
        for token in patterns.tokens[:MOST_TOKENS]
    )
    header = ("proposed token", "id", "proposed", "sent", "sent %", "of these replaced %")
    return Grid(system, header, rows)


def visible(piece: bytes, token_id: int) -> str:
    """Return a token's text with its blanks to be seen; the id of a token without text."""
    text = piece.decode("utf-8", "replace")
    if not text:
        return f"\u27e8{token_id}\u27e9"
    return "".join(_VISIBLE.get(character, character) for character in text)
