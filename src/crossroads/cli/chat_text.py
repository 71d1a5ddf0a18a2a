"""What a chat shows of itself: its turns in numbers, an answer's scores, what a threshold means."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from crossroads.cli.answer import visible
from crossroads.cli.conversation import MIXED, Conversation, Turn
from crossroads.decoding.text_stream import TextStream
from crossroads.models.base import Tokenizer
from crossroads.types import Role, TokenRecord, Usage

_BINS = 10
_BAR = 40  # characters of the fullest bin
_LISTED = 10  # of the highest scores
_LOWEST, _USUAL = 1e-6, 1e-5  # where the axis begins: at least, and without a calibration
_HEAT = ("", "black on color(229)", "black on color(222)", "black on color(215)",
         "white on color(160)")  # fmt: skip
_WRITTEN = "bold underline"


@dataclass(frozen=True, slots=True)
class ScoreAxis:
    """A logarithmic axis over scores: a trained router's lie close to 0, and differ there."""

    floor: float

    @classmethod
    def of(cls, calibration: Mapping[str, Any]) -> ScoreAxis:
        """Return the axis that begins at the power of ten below a router's calibration scores."""
        quantiles = calibration.get("score_quantiles")
        least = min(max(quantiles[0], _LOWEST), 0.1) if quantiles else _USUAL
        return cls(10.0 ** math.floor(math.log10(least) + 1e-9))

    def bin(self, score: float, bins: int) -> int:
        """Return in which of so many equal stretches of the axis a score lies."""
        if score <= self.floor:
            return 0
        return min(bins - 1, int(bins * (1 - math.log(score) / math.log(self.floor))))

    def lower(self, index: int, bins: int) -> float:
        """Return the lowest score of a stretch; the first one's is 0."""
        return float(self.floor ** (1 - index / bins)) if index else 0.0


def promise(calibration: Mapping[str, Any], threshold: float, own: float) -> str:
    """Return in a sentence what a router's calibration says of a threshold."""
    if threshold <= 0:
        return "the large model writes every token"
    if threshold > 1:
        return "the small model writes every token"
    point, quantiles = calibration.get("point"), calibration.get("score_quantiles")
    if threshold == own and point:
        rate, recall = (
            f"{name} {100 * point[name]:.1f} %{_interval(calibration.get(name))}"
            for name in ("positive_rate", "recall")
        )
        return f"on calibration tokens {rate}, {recall} of the divergent ones"
    if not quantiles:
        return "this router has no calibration to promise anything"
    # Quantiles at every percent: what lies between two of them is known to a percent.
    below = bisect.bisect_left(quantiles, threshold)
    ends = {0: 1.0, len(quantiles): 0.0}
    share = ends[below] if below in ends else 1 - (below - 0.5) / (len(quantiles) - 1)
    return f"on calibration tokens positive_rate about {100 * share:.0f} %"


def _interval(value: Mapping[str, float] | None) -> str:
    return f" [{100 * value['low']:.1f}, {100 * value['high']:.1f}]" if value else ""


def total_usage(turns: Sequence[Turn]) -> Usage:
    """Return the counts of all answers together."""
    return sum((turn.trace.usage for turn in turns), Usage())


def threshold_lines(conversation: Conversation) -> Iterator[str]:
    """Yield which threshold holds, what calibration promises there, and what came of it here."""
    settings, chosen = conversation.settings, conversation.chosen
    value = conversation.threshold
    own = ", the router's own" if value == chosen.threshold else ""
    yield f"threshold {value:g}{own}: tokens whose score reaches it are the large model's"
    calibration = {} if chosen.card is None else chosen.card.calibration
    yield promise(calibration, value, chosen.threshold)
    usage = total_usage([turn for turn in conversation.turns if turn.model == MIXED])
    if usage.generated_tokens:
        yield (
            f"here large_fraction {usage.large_fraction:.3f} of {usage.generated_tokens} generated "
            "tokens, at the thresholds that they had"
        )
    if settings.model != MIXED:
        yield f"it means nothing to {settings.model}, which answers alone; see /model"


def stats_parts(conversation: Conversation) -> Iterator[RenderableType]:
    """Yield the counts of every turn and of all, and how the scores are distributed."""
    turns = conversation.turns
    yield _stats_table(turns)
    yield Text(
        "asked, discarded: calls of the large model, and small tokens that it took back\n"
        "first: seconds to the first token, in all their mean"
    )
    scores = [r.score for turn in turns for r in turn.trace.records if r.score is not None]
    if scores:
        yield _histogram(scores, axis_of(conversation))


def axis_of(conversation: Conversation) -> ScoreAxis:
    """Return the axis for the scores of a conversation's router."""
    card = conversation.chosen.card
    return ScoreAxis.of({} if card is None else card.calibration)


def _stats_table(turns: Sequence[Turn]) -> Table:
    table = Table(box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("turn", no_wrap=True)
    table.add_column("model", no_wrap=True)
    for column in ("small", "large", "large_\nfraction", "asked", "dis-\ncarded", "tokens\n/s",
                   "first\ns"):  # fmt: skip
        table.add_column(column, justify="right", no_wrap=True)
    for number, turn in enumerate(turns, start=1):
        table.add_row(str(number), turn.model, *_cells(turn.trace.usage, turn.seconds, turn.first))
    table.add_section()
    firsts = [turn.first for turn in turns]
    seconds = sum(turn.seconds for turn in turns)
    table.add_row("all", "", *_cells(total_usage(turns), seconds, sum(firsts) / len(firsts)))
    return table


def _cells(usage: Usage, seconds: float, first: float) -> list[str]:
    return [
        str(usage.small_tokens),
        str(usage.large_tokens),
        f"{usage.large_fraction:.3f}",
        str(usage.large_calls),
        str(usage.discarded_tokens),
        f"{usage.generated_tokens / seconds:.1f}" if seconds > 0 else "\u2013",
        f"{first:.2f}",
    ]


def _histogram(scores: Sequence[float], axis: ScoreAxis) -> Text:
    counts = [0] * _BINS
    for score in scores:
        counts[axis.bin(score, _BINS)] += 1
    lines = [f"\nscores of {len(scores)} tokens"]
    for index, count in enumerate(counts):
        bar = "\u2588" * math.ceil(_BAR * count / max(counts))
        lines.append(f"  from {axis.lower(index, _BINS):<8.2g} {count:>6} {bar}")
    return Text("\n".join(lines))


def scores_parts(
    turn: Turn, tokenizer: Tokenizer, axis: ScoreAxis, stop: Sequence[str], *, coloured: bool
) -> Iterator[RenderableType]:
    """Yield an answer coloured by score, with a legend; without colours its highest scores."""
    scored = [record for record in turn.trace.records if record.score is not None]
    if not scored:
        yield Text(f"the answer has no scores: {turn.model} wrote it alone")
        return
    texts = _token_texts(turn.trace.records, tokenizer, stop)
    if not coloured:
        yield _highest(scored, texts, tokenizer)
        return
    heat = Text()
    for record, text in zip(turn.trace.records, texts, strict=True):
        heat.append(visible(text), style=_style(record, axis))
    yield heat
    legend = Text("\nscore from ")
    for index, style in enumerate(_HEAT):
        legend.append(f" {axis.lower(index, len(_HEAT)):.2g} ", style=style)
    legend.append("; ")
    legend.append("the large model wrote it", style=_WRITTEN)
    yield legend


def _style(record: TokenRecord, axis: ScoreAxis) -> str:
    heat = "" if record.score is None else _HEAT[axis.bin(record.score, len(_HEAT))]
    return f"{heat} {_WRITTEN}".strip() if record.writer is Role.LARGE else heat


def _token_texts(
    records: Sequence[TokenRecord], tokenizer: Tokenizer, stop: Sequence[str]
) -> list[str]:
    """Return what each token added to the text, as it was streamed."""
    texts = [""] * len(records)
    stream = TextStream(tokenizer, stop)
    pieces = [piece for record in records for piece in stream.add(record.token_id)]
    for piece in (*pieces, *stream.end()):
        texts[piece.token] += piece.text
    return texts


def _highest(scored: Sequence[TokenRecord], texts: Sequence[str], tokenizer: Tokenizer) -> Table:
    table = Table(box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("score", "token no."):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("writer", "token", "instead of"):
        table.add_column(column)
    for record in sorted(scored, key=lambda record: -(record.score or 0.0))[:_LISTED]:
        proposed = record.proposed_id
        replaced = proposed is not None and proposed != record.token_id
        table.add_row(
            f"{record.score:.3g}",
            str(record.position + 1),
            record.writer,
            Text(_quoted(texts[record.position])),
            Text(
                _quoted(tokenizer.decode([proposed])) if replaced and proposed is not None else ""
            ),
        )
    return table


def _quoted(text: str) -> str:
    """Return a token's text in one line, with its ends to be seen."""
    return f"'{visible(text.replace(chr(10), chr(0x21B5)))}'"
