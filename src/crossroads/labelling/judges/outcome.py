"""Divergent = the answer's success changes: what a user really pays for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from crossroads.artifacts import canonical_hash
from crossroads.decoding.branches import Branch, Stem, grow
from crossroads.decoding.served import drawn_by
from crossroads.errors import ConfigError
from crossroads.grading import grade
from crossroads.labelling.judges.base import Judgement, Verdict, failed
from crossroads.labelling.records import Case
from crossroads.models.pairs import Pair
from crossroads.sampling import SamplingParams
from crossroads.types import Role


@dataclass(frozen=True, slots=True)
class OutcomeJudge:
    """Continues each mismatch to the end of the answer and grades it.

    The large model goes on from the prefix and the small model's token, `samples` times. A sample
    differs if it is graded otherwise than the response itself: wrong instead of right, or right
    instead of wrong; an answer that hits `max_tokens` is not right. Divergent if at least half of
    the samples differ; their share is the probability.

    By far the dearest judge: a whole answer per mismatch and sample. At temperature 0 it says what
    greedy decoding would have come to.
    """

    pair: Pair = field(repr=False)
    max_rows: int
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512
    seed: int = 0
    name: str = "outcome"
    needs_continuations: bool = False

    def __post_init__(self) -> None:
        """Refuse what would waste a run.

        Raises:
            ConfigError: names the setting.
        """
        if self.samples < 1 or self.max_tokens < 1:
            raise ConfigError("the outcome judge's samples and max_tokens must be at least 1")
        if self.samples > 1 and self.temperature == 0:
            raise ConfigError(
                f"the outcome judge's {self.samples} greedy samples would all be the same; "
                "give a temperature above 0"
            )

    @property
    def settings(self) -> Mapping[str, Any]:
        """How answers are sampled, and by which model."""
        return {
            "large": self.pair.large.info.fingerprint,
            "samples": self.samples,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            **drawn_by(self.pair.large, SamplingParams(temperature=self.temperature)),
        }

    def judge(self, cases: Iterable[Case]) -> Iterator[Judgement]:
        """Yield one judgement per case, as the last of its samples ends."""
        refused: list[Judgement] = []
        samples: dict[str, list[_Sample]] = defaultdict(list)
        stems = self._stems(cases, refused)
        for branch, tokens in grow(self.pair.large, Role.LARGE, stems, max_rows=self.max_rows):
            yield from refused
            refused.clear()
            assert isinstance(branch.stop, _ToTheEnd)
            case = branch.stop.case
            samples[case.id].append(self._grade(case, tokens, branch.stop.ended))
            if len(samples[case.id]) == self.samples:
                yield _judgement(case, samples.pop(case.id))
        yield from refused

    def _stems(self, cases: Iterable[Case], refused: list[Judgement]) -> Iterator[Stem]:
        for _, group in groupby(cases, key=lambda case: case.response.key):
            branches = []
            for case in group:
                if case.problem.answer is None:
                    refused.append(failed(case, "the problem has no answer to grade against"))
                else:
                    branches += [self._branch(case, number) for number in range(self.samples)]
                    response = case.response
            if branches:
                yield Stem([*response.prompt_ids, *response.response_ids], branches)

    def _branch(self, case: Case, number: int) -> Branch:
        response, mismatch = case.response, case.mismatch
        digest = canonical_hash([self.seed, case.id, number])
        return Branch(
            id=f"{case.id}/{number}",
            at=len(response.prompt_ids) + mismatch.position,
            first=mismatch.small_id,
            stop=_ToTheEnd(
                case, frozenset(self.pair.large.info.eos_ids), self.max_tokens - mismatch.position
            ),
            sampling=SamplingParams(
                temperature=self.temperature, top_p=self.top_p, seed=int(digest[:8], 16)
            ),
        )

    def _grade(self, case: Case, tokens: tuple[int, ...], ended: bool) -> _Sample:
        gold = case.problem.answer
        assert gold is not None
        before = case.response.response_ids[: case.mismatch.position]
        text = self.pair.tokenizer.decode([*before, *tokens])
        correct = ended and grade(text, gold).correct
        return _Sample(correct, correct != grade(case.response.text, gold).correct, ended)


@dataclass(frozen=True, slots=True)
class _Sample:
    correct: bool
    differs: bool
    ended: bool


@dataclass(slots=True)
class _ToTheEnd:
    """Ends a branch at an eos, or when the whole answer has its limit of tokens."""

    case: Case
    eos_ids: frozenset[int]
    left: int
    ended: bool = False

    def add(self, token_id: int) -> bool:
        self.left -= 1
        self.ended = token_id in self.eos_ids
        return self.ended or self.left <= 0


def _judgement(case: Case, samples: list[_Sample]) -> Judgement:
    share = sum(sample.differs for sample in samples) / len(samples)
    right = sum(sample.correct for sample in samples)
    cut = sum(not sample.ended for sample in samples)
    reason = f"{right} of {len(samples)} right, {share:.0%} otherwise than the response"
    if cut:
        reason += f", {cut} cut at the limit"
    return Judgement(case.id, Verdict(share >= 0.5, share, reason))
