"""From the files of a run to the cases that judges look at, one response in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from crossroads.artifacts import load_tensors
from crossroads.dataset import Comparison
from crossroads.errors import DataError
from crossroads.labelling.compare import comparison_path
from crossroads.labelling.continue_ import Continuations
from crossroads.labelling.records import Case, Mismatch, Response, case_id
from crossroads.labelling.respond import Responses
from crossroads.labelling.sentences import SentenceRule, cut
from crossroads.models.base import Tokenizer
from crossroads.types import Problem


def load_comparison(folder: Path, response: Response) -> Comparison:
    """Return the comparison of one response.

    Raises:
        DataError: it is missing, damaged, or of another response.
    """
    path = comparison_path(folder, response.key)
    comparison = Comparison.from_tensors(load_tensors(path, "comparison"), path)
    if tuple(comparison.real_N.tolist()) != response.response_ids:
        raise DataError(f"{path} is not the comparison of response {response.key}; delete it")
    return comparison


def mismatches_of(comparison: Comparison) -> list[Mismatch]:
    """Return the positions where the small model proposes another token, in order."""
    large = comparison.large
    if large is None:
        raise DataError("a comparison without the large model's outputs cannot be judged")
    return [
        Mismatch(
            position=i,
            real_id=int(comparison.real_N[i]),
            small_id=int(comparison.proposed_N[i]),
            logprob_real=float(large.logprob_real_N[i]),
            logprob_small=float(large.logprob_small_N[i]),
            logprob_best=float(large.top_logprobs_NK[i, 0]),
        )
        for i in comparison.mismatch_N.nonzero()[:, 0].tolist()
    ]


@dataclass(frozen=True, slots=True)
class CaseSource:
    """What cases are read from. `continuations` is None where that stage did not run."""

    problems: Mapping[str, Problem]
    responses: Responses
    compare_folder: Path
    tokenizer: Tokenizer
    eos_ids: tuple[int, ...]
    rule: SentenceRule
    continuations: Continuations | None = None

    def __iter__(self) -> Iterator[Case]:
        """Yield every mismatch of every finished response, in order."""
        for response in self.responses.finished():
            yield from self.of(response)

    def of(self, response: Response) -> Iterator[Case]:
        """Yield the mismatches of one response, in order."""
        comparison = load_comparison(self.compare_folder, response)
        for mismatch in mismatches_of(comparison):
            yield self._case(response, mismatch)

    def _case(self, response: Response, mismatch: Mismatch) -> Case:
        before = response.response_ids[: mismatch.position]
        after = response.response_ids[mismatch.position :]
        key = case_id(response.key, mismatch.position)
        return Case(
            problem=self.problems[response.problem_id],
            response=response,
            mismatch=mismatch,
            context=self.tokenizer.decode(before),
            reference=cut(after, self.rule, self.tokenizer, self.eos_ids),
            continuations=() if self.continuations is None else self.continuations.get(key),
        )
