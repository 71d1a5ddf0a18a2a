"""A dataset for people to look at: tokens with their texts, both models, every verdict.

Shapes: N positions of one response, K stored top entries.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from crossroads.dataset import (
    SHOWN_ALTERNATIVES,
    UNJUDGED,
    Comparison,
    LabelledDataset,
    Labels,
    ResponseRow,
)
from crossroads.errors import DataError
from crossroads.labelling.records import response_key
from crossroads.labelling.stored import (
    JudgeVerdict,
    MismatchReader,
    MismatchView,
    RunFiles,
    TokenTexts,
    reason_kind,
)
from crossroads.rates import R2R_BASE_RATES
from crossroads.types import Label, Message, Problem

UNJUDGED_NAME = "unjudged"
LABEL_NAMES: Mapping[int, str] = {
    **{int(kind): kind.name.lower() for kind in Label},
    UNJUDGED: UNJUDGED_NAME,
}


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that a model thought likely."""

    text: str
    probability: float


@dataclass(frozen=True, slots=True)
class TokenView:
    """One token of a response; `position` is its index there.

    `label` is a name of LABEL_NAMES; `probability` the label's own, None where the judges have
    none. `small` and `large` are the models' likeliest tokens. `large` is empty, and the large
    model's probabilities of the real and the small token are None, where they are not stored.
    """

    position: int
    text: str
    label: str
    probability: float | None
    proposal: str
    entropy: float
    small: tuple[Alternative, ...]
    large: tuple[Alternative, ...]
    p_large_real: float | None
    p_large_small: float | None
    mismatch: MismatchView | None


@dataclass(frozen=True, slots=True)
class ResponseView:
    """One response; `problem` is None where the dataset does not hold the problems."""

    row: ResponseRow
    problem: Problem | None
    tokens: tuple[TokenView, ...]

    @property
    def messages(self) -> tuple[Message, ...]:
        """What was asked, as far as it is known."""
        return () if self.problem is None else self.problem.messages

    @property
    def mismatches(self) -> list[TokenView]:
        """The tokens where the small model proposes another one."""
        return [token for token in self.tokens if token.mismatch is not None]

    @property
    def counts(self) -> Counter[str]:
        """How many tokens have which label."""
        return Counter(token.label for token in self.tokens)


@dataclass(frozen=True, slots=True)
class RateRow:
    """Label shares of a group; `positions` and `unjudged` are None for published shares."""

    group: str
    positions: int | None
    unjudged: int | None
    identical: float
    neutral: float
    divergent: float


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Failures of one stage for one reason; numbers in the reason are left out."""

    stage: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """What a dataset is made of. `missing` says in sentences what cannot be shown."""

    pair: str
    small: str
    large: str
    judges: tuple[str, ...]
    combine: str | None
    problems: int
    responses: int
    positions: int
    unfinished: int
    rates: tuple[RateRow, ...]
    failures: tuple[FailureGroup, ...]
    missing: tuple[str, ...]


class DatasetView:
    """A finished dataset, to be looked at response by response."""

    def __init__(self, folder: Path) -> None:
        """Open the dataset in `folder`.

        Raises:
            DataError: none there, unfinished, of another format, or altered.
        """
        self._dataset = LabelledDataset.open(folder)
        self._files = RunFiles(folder)
        self._labels = self._dataset.labels()
        self.rows: Sequence[ResponseRow] = self._dataset.responses

    def summary(self) -> DatasetSummary:
        """Return what the dataset is made of."""
        card = self._dataset.card
        large = card.get("large") or {}
        return DatasetSummary(
            pair=card.get("pair") or "unknown",
            small=self._dataset.small.name,
            large=large.get("name") or "unknown",
            judges=tuple(_judge_text(judge) for judge in card.get("judges", [])),
            combine=card.get("combine"),
            problems=len({row.problem_id for row in self.rows}),
            responses=len(self.rows),
            positions=sum(row.positions for row in self.rows),
            unfinished=len(card.get("unfinished", [])),
            rates=_rates(card.get("base_rates", {})),
            failures=_failure_groups(card.get("failures", [])),
            missing=self._files.missing(),
        )

    def first_divergent(self) -> ResponseRow:
        """Return the first response with a divergent token; without any, the first one."""
        for row in self.rows:
            if bool((self._labels.of(row).label_N == Label.DIVERGENT).any()):
                return row
        return self.rows[0]

    def find(self, problem_id: str, sample: int = 0) -> ResponseRow:
        """Return one response.

        Raises:
            DataError: the dataset has no such problem (names the nearest one), or no such sample.
        """
        samples = [row for row in self.rows if row.problem_id == problem_id]
        if not samples:
            known = list(dict.fromkeys(row.problem_id for row in self.rows))
            near = difflib.get_close_matches(problem_id, known, n=1, cutoff=0)
            raise DataError(
                f"the dataset has no response to a problem {problem_id!r}; the nearest of its "
                f"{len(known)} ids is {near[0]!r}"
            )
        for row in samples:
            if row.sample == sample:
                return row
        there = ", ".join(str(row.sample) for row in samples)
        raise DataError(f"problem {problem_id!r} has no sample {sample}; it has {there}")

    def responses(self, rows: Sequence[ResponseRow]) -> list[ResponseView]:
        """Return the responses `rows`, with every token."""
        keys = {response_key(row.problem_id, row.sample) for row in rows}
        reader = MismatchReader.of(self._files, keys)
        return [self._response(row, reader) for row in rows]

    def _response(self, row: ResponseRow, reader: MismatchReader) -> ResponseView:
        comparison = self._dataset.comparison(row)
        tokens = _tokens(row, comparison, self._labels.of(row), reader)
        return ResponseView(row, self._files.problems.get(row.problem_id), tuple(tokens))


def _tokens(
    row: ResponseRow, comparison: Comparison, labels: Labels, reader: MismatchReader
) -> Iterator[TokenView]:
    key = response_key(row.problem_id, row.sample)
    real_ids = comparison.real_N.tolist()
    mismatch = comparison.mismatch_N.tolist()
    step, large = comparison.step, comparison.large
    small_NK = _alternatives(
        step.top_ids_NK, step.top_logits_NK - step.logsumexp_N[:, None], reader.texts
    )
    large_NK = None
    if large is not None:
        large_NK = _alternatives(large.top_ids_NK, large.top_logprobs_NK, reader.texts)
    for i, real_id in enumerate(real_ids):
        probability = float(labels.probability_N[i])
        yield TokenView(
            position=i,
            text=reader.texts.shown(real_id),
            label=LABEL_NAMES[int(labels.label_N[i])],
            probability=None if math.isnan(probability) else probability,
            proposal=small_NK[i][0].text,
            entropy=float(step.entropy_N[i]),
            small=small_NK[i],
            large=() if large_NK is None else large_NK[i],
            p_large_real=None if large is None else math.exp(large.logprob_real_N[i]),
            p_large_small=None if large is None else math.exp(large.logprob_small_N[i]),
            mismatch=reader.read(key, real_ids, i) if mismatch[i] else None,
        )


def _alternatives(
    ids_NK: Tensor, logprobs_NK: Tensor, texts: TokenTexts
) -> list[tuple[Alternative, ...]]:
    shown = slice(SHOWN_ALTERNATIVES)
    # Half precision may round a log-probability of nearly 0 up.
    probabilities_NK = logprobs_NK[:, shown].exp().clamp_max(1.0)
    return [
        tuple(Alternative(texts.shown(i), p) for i, p in zip(ids, probabilities, strict=True))
        for ids, probabilities in zip(
            ids_NK[:, shown].tolist(), probabilities_NK.tolist(), strict=True
        )
    ]


def _judge_text(judge: Mapping[str, Any]) -> str:
    settings = [f"{name} {value}" for name, value in judge.items() if name != "name"]
    return f"{judge['name']} ({', '.join(settings)})" if settings else str(judge["name"])


def _rates(base_rates: Mapping[str, Mapping[str, float]]) -> tuple[RateRow, ...]:
    """Return the card's base rates: all, the splits, the domains; then what R2R published."""
    order = {"all": 0, "split train": 1, "split calibration": 2, "split test": 3}
    groups = sorted(base_rates, key=lambda group: (order.get(group, 4), group))
    rows = [
        RateRow(
            group,
            int(base_rates[group]["positions"]),
            int(base_rates[group]["unjudged"]),
            *(base_rates[group][kind.name.lower()] for kind in Label),
        )
        for group in groups
    ]
    return (*rows, RateRow("R2R, as published", None, None, **R2R_BASE_RATES))


def _failure_groups(failures: Sequence[Mapping[str, str]]) -> tuple[FailureGroup, ...]:
    counts = Counter((failure["stage"], reason_kind(failure["reason"])) for failure in failures)
    return tuple(FailureGroup(*kind, count) for kind, count in counts.most_common())


def rate_cells(row: RateRow) -> list[str]:
    """Return the row as text, shares in percent: positions, the three shares, unjudged."""
    return [
        "\u2013" if row.positions is None else f"{row.positions:,}",
        *(f"{100 * share:.1f}" for share in (row.identical, row.neutral, row.divergent)),
        "\u2013" if row.unjudged is None else str(row.unjudged),
    ]


def percent(probability: float | None) -> str:
    """Return a probability in percent, with more digits where it is small."""
    if probability is None:
        return "\u2013"
    return f"{100 * probability:.0f} %" if probability >= 0.095 else f"{100 * probability:.1g} %"


def verdict_text(found: JudgeVerdict) -> str:
    """Return a verdict in a word, with the judge's probability where it has one."""
    probability = found.verdict.probability
    return found.word if probability is None else f"{found.word} (p {probability:.2f})"
