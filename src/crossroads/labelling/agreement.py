"""Do judges agree? Pairwise, on the mismatches that both could judge; and where they do not.

Agreement is no accuracy: two judges may be wrong together. Where they differ, one of them is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from crossroads.artifacts import canonical_hash, load_tensors, read_json
from crossroads.dataset import Comparison
from crossroads.errors import DataError
from crossroads.labelling.compare import comparison_path
from crossroads.labelling.judges.base import Verdict
from crossroads.labelling.stored import (
    JudgeVerdict,
    MismatchReader,
    RunFiles,
    reason_kind,
)
from crossroads.statistics import Interval, ratio_interval

_REASONS = 3
"""Of a judge's failures, how many kinds are named."""


@dataclass(frozen=True, slots=True)
class PairCounts:
    """How two judges judged the same mismatches; divergent is the positive verdict."""

    both_divergent: int
    only_first: int
    only_second: int
    both_neutral: int

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool]) -> PairCounts:
        """Count verdicts on the same mismatches, in the same order."""
        cells = Counter(zip(first, second, strict=True))
        return cls(cells[True, True], cells[True, False], cells[False, True], cells[False, False])

    @property
    def total(self) -> int:
        """Mismatches that both judged."""
        return self.both_divergent + self.only_first + self.only_second + self.both_neutral

    @property
    def agreement(self) -> float | None:
        """Share of the mismatches with the same verdict; None without any."""
        return (self.both_divergent + self.both_neutral) / self.total if self.total else None

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa, `(p_o - p_e) / (1 - p_e)` (Cohen 1960, eq. 1).

        p_o is the agreement, p_e what two judges with these shares of divergent verdicts would
        reach if they judged independently. None where that is 1, since then nothing is left to
        agree upon: both gave one and the same verdict on everything. None without any mismatch.
        """
        total = self.total
        first = self.both_divergent + self.only_first
        second = self.both_divergent + self.only_second
        # Counts, not shares: whether the denominator is 0 must not be a matter of rounding.
        by_chance = first * second + (total - first) * (total - second)
        if total * total == by_chance:
            return None
        same = self.both_divergent + self.both_neutral
        return (total * same - by_chance) / (total * total - by_chance)


@dataclass(frozen=True, slots=True)
class JudgeSummary:
    """One judge's whole record. `reasons` are its most frequent kinds of failure, with counts."""

    name: str
    settings: Mapping[str, Any]
    ok: int
    failed: int
    divergent: float | None
    interval: Interval | None
    reasons: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One mismatch on which two judges differ, as text; tokens that are not known are empty."""

    problem_id: str
    position: int
    context: str
    real: str
    small: str
    reference: str
    continuations: tuple[str, ...]
    verdicts: tuple[JudgeVerdict, JudgeVerdict]


@dataclass(frozen=True, slots=True)
class PairAgreement:
    """Two judges on the mismatches that both judged. `interval` is the agreement's."""

    first: str
    second: str
    counts: PairCounts
    interval: Interval | None
    disagreements: tuple[Disagreement, ...]


@dataclass(frozen=True, slots=True)
class AgreementReport:
    """All judges of a run, one by one and in pairs; `sample` limits the mismatches of a pair."""

    sample: int | None
    seed: int
    judges: tuple[JudgeSummary, ...]
    pairs: tuple[PairAgreement, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, with what follows from the counts."""
        value = asdict(self)
        for plain, pair in zip(value["pairs"], self.pairs, strict=True):
            plain["total"] = pair.counts.total
            plain["agreement"] = pair.counts.agreement
            plain["kappa"] = pair.counts.kappa
        return value


def agreement(
    folder: Path, sample: int | None = None, seed: int = 0, *, examples: int = 3
) -> AgreementReport:
    """Return how far the judges of the run in `folder` agree, with some of their disagreements.

    The run need not be finished. Of more than `sample` mismatches that a pair judged, a random
    part is taken; every pair takes the same ones where it can, and a larger sample contains a
    smaller one. Intervals are 95 % bootstrap intervals over problems.

    Raises:
        DataError: fewer than two judges have verdicts there, or a file is damaged.
    """
    files = RunFiles(folder)
    verdicts = {judge: files.verdicts(judge) for judge in files.judges}
    judged = [judge for judge in verdicts if verdicts[judge]]
    if len(judged) < 2:
        raise DataError(
            f"agreement needs the verdicts of two judges and {folder} has those of "
            f"{judged[0] if judged else 'none'}; run `crossroads label {folder} ... "
            "--stage judge --judge OTHER`"
        )
    pairs = [
        _pair(first, second, verdicts, _Draw(sample, seed), examples)
        for first, second in combinations(judged, 2)
    ]
    texts = _Examples.of(files, {case for pair in pairs for case in pair.examples})
    return AgreementReport(
        sample,
        seed,
        tuple(_judge(name, files.judges[name], verdicts[name], seed) for name in judged),
        tuple(_with_texts(pair, texts, verdicts) for pair in pairs),
    )


@dataclass(frozen=True, slots=True)
class _Draw:
    """A random order that depends on the cases alone, not on which others there are."""

    sample: int | None
    seed: int

    def order(self, cases: Collection[str]) -> list[str]:
        return sorted(cases, key=lambda case: canonical_hash([self.seed, case]))

    def take(self, cases: Collection[str]) -> list[str]:
        if self.sample is None or len(cases) <= self.sample:
            return sorted(cases)
        return self.order(cases)[: self.sample]


@dataclass(frozen=True, slots=True)
class _Pair:
    first: str
    second: str
    counts: PairCounts
    interval: Interval | None
    examples: tuple[str, ...]


def _pair(
    first: str,
    second: str,
    verdicts: Mapping[str, Mapping[str, Verdict]],
    draw: _Draw,
    examples: int,
) -> _Pair:
    mine, theirs = (_decided(verdicts[name]) for name in (first, second))
    cases = draw.take(mine.keys() & theirs.keys())
    same = {case: mine[case] == theirs[case] for case in cases}
    differ = draw.order([case for case in cases if not same[case]])
    return _Pair(
        first,
        second,
        PairCounts.of([mine[case] for case in cases], [theirs[case] for case in cases]),
        _interval(same, draw.seed),
        tuple(differ[:examples]),
    )


def _decided(verdicts: Mapping[str, Verdict]) -> dict[str, bool]:
    return {
        case: verdict.divergent
        for case, verdict in verdicts.items()
        if verdict.divergent is not None
    }


def _interval(found: Mapping[str, bool], seed: int) -> Interval | None:
    """Return the interval of the share that is true, over problems; None without any case."""
    if not found:
        return None
    hits: Counter[str] = Counter()
    cases: Counter[str] = Counter()
    for case, hit in found.items():
        problem = _Place.of(case).problem_id
        hits[problem] += hit
        cases[problem] += 1
    return ratio_interval([hits[problem] for problem in cases], list(cases.values()), seed)


def _judge(name: str, folder: Path, verdicts: Mapping[str, Verdict], seed: int) -> JudgeSummary:
    decided = _decided(verdicts)
    reasons = Counter(
        reason_kind(verdict.reason) for verdict in verdicts.values() if verdict.divergent is None
    )
    config = folder / "config.json"
    settings = read_json(config, "judge settings") if config.exists() else {}
    return JudgeSummary(
        name=name,
        settings={key: value for key, value in settings.items() if key != "judge"},
        ok=len(decided),
        failed=len(verdicts) - len(decided),
        divergent=sum(decided.values()) / len(decided) if decided else None,
        interval=_interval(decided, seed),
        reasons=tuple(reasons.most_common(_REASONS)),
    )


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a case is: `case_id` and `response_key`, read backwards."""

    key: str
    problem_id: str
    position: int

    @classmethod
    def of(cls, case: str) -> _Place:
        key, _, position = case.rpartition("@")
        return cls(key, key.rpartition("#")[0], int(position))


@dataclass(frozen=True, slots=True)
class _Examples:
    """The texts around some cases. One response's comparison is read at a time."""

    reader: MismatchReader
    tokens: Mapping[str, tuple[Sequence[int], Sequence[int]]]

    @classmethod
    def of(cls, files: RunFiles, cases: Collection[str]) -> _Examples:
        keys = {_Place.of(case).key for case in cases}
        return cls(MismatchReader.of(files, keys), dict(_tokens(files.folder, keys)))

    def disagreement(self, case: str, verdicts: tuple[JudgeVerdict, JudgeVerdict]) -> Disagreement:
        place = _Place.of(case)
        if place.key not in self.tokens:
            return Disagreement(
                place.problem_id, place.position, "", "", "", "",
                self.reader.continuations.get(case, ()), verdicts,
            )  # fmt: skip
        real_ids, small_ids = self.tokens[place.key]
        view = self.reader.read(place.key, real_ids, place.position)
        return Disagreement(
            problem_id=place.problem_id,
            position=place.position,
            context=view.context,
            real=self.reader.texts.shown(real_ids[place.position]),
            small=self.reader.texts.shown(small_ids[place.position]),
            reference=view.reference,
            continuations=view.continuations,
            verdicts=verdicts,
        )


def _tokens(
    folder: Path, keys: Collection[str]
) -> Iterator[tuple[str, tuple[Sequence[int], Sequence[int]]]]:
    """Yield the real and the proposed ids of the responses that have a comparison."""
    for key in sorted(keys):
        path = comparison_path(folder / "compare", key)
        if path.exists():
            comparison = Comparison.from_tensors(load_tensors(path, "comparison"), path)
            yield key, (comparison.real_N.tolist(), comparison.proposed_N.tolist())


def _with_texts(
    pair: _Pair, texts: _Examples, verdicts: Mapping[str, Mapping[str, Verdict]]
) -> PairAgreement:
    found = [
        texts.disagreement(
            case,
            (
                JudgeVerdict(pair.first, verdicts[pair.first][case]),
                JudgeVerdict(pair.second, verdicts[pair.second][case]),
            ),
        )
        for case in pair.examples
    ]
    return PairAgreement(pair.first, pair.second, pair.counts, pair.interval, tuple(found))
