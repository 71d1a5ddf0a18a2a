"""Step 3: what the large model would write after the small model's token, to a sentence's end.

For every mismatch the large model continues from the response's prefix and the small model's
token. The prefix is read once per response; its mismatches fork from it and grow side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from crossroads.artifacts import (
    IndexedLog,
    canonical_hash,
    ensure_writable,
    load_tensors,
    pin_config,
)
from crossroads.dataset import Comparison
from crossroads.decoding.branches import Branch, Stem, grow
from crossroads.decoding.served import drawn_by
from crossroads.errors import ConfigError
from crossroads.labelling.compare import comparison_path
from crossroads.labelling.records import Response, Span, case_id
from crossroads.labelling.respond import Responses
from crossroads.labelling.sentences import Cutter, SentenceRule
from crossroads.models.base import CausalLM, Tokenizer
from crossroads.sampling import SamplingParams
from crossroads.types import Progress, Role


@dataclass(frozen=True, slots=True)
class ContinueConfig:
    """What the continuations depend on; `samples` of each, greedy at temperature 0."""

    rule: SentenceRule = SentenceRule()  # noqa: RUF009  frozen
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what would waste a run.

        Raises:
            ConfigError: names the setting.
        """
        if self.samples < 1:
            raise ConfigError("samples must be at least 1")
        if self.samples > 1 and self.temperature == 0:
            raise ConfigError(
                f"{self.samples} greedy continuations of a mismatch would all be the same; "
                "give a temperature above 0"
            )


class Continuations:
    """The continuations of a run, on disk, by mismatch."""

    def __init__(self, folder: Path, samples: int) -> None:
        """Read what `continue_all` wrote to `folder`."""
        self._log = IndexedLog(folder / "continuations.jsonl")
        self._samples = samples

    def __contains__(self, key: object) -> bool:
        """Return whether sample `key` (from `sample_key`) is there."""
        return key in self._log

    def get(self, case: str) -> tuple[Span, ...]:
        """Return every sample of one mismatch; nothing if one is missing."""
        keys = [sample_key(case, number) for number in range(self._samples)]
        if any(key not in self._log for key in keys):
            return ()
        records = [self._log.get(key) for key in keys]
        return tuple(Span(tuple(r["token_ids"]), r["text"], r["complete"]) for r in records)

    def append(self, key: str, span: Span) -> None:
        """Add one sample."""
        self._log.append({"key": key, **asdict(span)})


def sample_key(case: str, number: int) -> str:
    """Return the name of one sample of a mismatch's continuation."""
    return f"{case}/{number}"


def continue_all(
    large: CausalLM,
    tokenizer: Tokenizer,
    responses: Responses,
    compare_folder: Path,
    folder: Path,
    progress: Progress,
    config: ContinueConfig = ContinueConfig(),
    *,
    max_rows: int = 16,
) -> Continuations:
    """Return the large model's continuations of every mismatch of every finished response.

    Effects: every continuation is added to a log in `folder` as it ends; those already there are
    not grown again.

    Raises:
        ConfigError: the folder holds continuations by another model or other settings.
    """
    ensure_writable(folder)
    pinned = {
        "large": large.info.fingerprint,
        **asdict(config),
        **drawn_by(large, SamplingParams(temperature=config.temperature)),
    }
    pin_config(folder / "config.json", pinned, "continuations")
    found = Continuations(folder, config.samples)
    planner = _Planner(large, tokenizer, found, config)
    progress.start("large model continues", len(responses.finished_keys), "responses")
    stems = _stems(planner, responses, compare_folder, progress)
    for branch, _ in grow(large, Role.LARGE, stems, max_rows=max_rows):
        assert isinstance(branch.stop, Cutter)
        found.append(branch.id, branch.stop.span())
    progress.finish()
    return found


def _stems(
    planner: _Planner, responses: Responses, compare_folder: Path, progress: Progress
) -> Iterator[Stem]:
    for response in responses.finished():
        path = comparison_path(compare_folder, response.key)
        comparison = Comparison.from_tensors(load_tensors(path, "comparison"), path)
        branches = planner.branches(response, comparison)
        if branches:
            yield Stem([*response.prompt_ids, *response.response_ids], branches)
        progress.advance()


@dataclass(frozen=True, slots=True)
class _Planner:
    large: CausalLM
    tokenizer: Tokenizer
    found: Continuations
    config: ContinueConfig

    def branches(self, response: Response, comparison: Comparison) -> list[Branch]:
        """Return what is still to grow from one response."""
        branches = []
        for position in comparison.mismatch_N.nonzero()[:, 0].tolist():
            for number in range(self.config.samples):
                key = sample_key(case_id(response.key, position), number)
                if key not in self.found:
                    at = len(response.prompt_ids) + position
                    small_id = int(comparison.proposed_N[position])
                    branches.append(Branch(key, at, small_id, self._cutter(), self._sampling(key)))
        return branches

    def _cutter(self) -> Cutter:
        return Cutter(self.config.rule, self.tokenizer, self.large.info.eos_ids)

    def _sampling(self, key: str) -> SamplingParams:
        digest = canonical_hash([self.config.seed, key])
        return SamplingParams(
            temperature=self.config.temperature, top_p=self.config.top_p, seed=int(digest[:8], 16)
        )
