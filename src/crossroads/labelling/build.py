"""Step 5: verdicts to labels, with splits by problem, base rates and provenance."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossroads.artifacts import pin_config, read_json, save_tensors, sha256_file, write_json
from crossroads.dataset import (
    CARD,
    EMBEDDINGS,
    FORMAT,
    LABELS,
    SHOWN_ALTERNATIVES,
    TOKENS,
    UNJUDGED,
    Comparison,
    Labels,
    ResponseRow,
)
from crossroads.decoding.served import SERVER
from crossroads.errors import DataError
from crossroads.labelling.cases import load_comparison
from crossroads.labelling.compare import comparison_path
from crossroads.labelling.judges.base import Verdict
from crossroads.labelling.records import Response, case_id
from crossroads.labelling.respond import Responses
from crossroads.labelling.verdicts import Verdicts, combine
from crossroads.models.base import Tokenizer
from crossroads.models.pairs import Pair
from crossroads.provenance import provenance
from crossroads.rates import base_rates
from crossroads.routing.checkpoint import SmallModelId
from crossroads.splits import SplitShares, assign_splits
from crossroads.types import Label, Split


@dataclass(frozen=True, slots=True)
class BuildConfig:
    """How verdicts become a dataset. `combine` matters with several judges: any, all or vote.

    `groups` names, for each problem that is a duplicate of another, the group that must stay in
    one split. `screening` is what was found out about the problems beforehand, for the card.
    `rebuild` replaces the labels that the folder holds; responses and verdicts stay.
    """

    shares: SplitShares = SplitShares()  # noqa: RUF009  frozen
    seed: int = 0
    combine: str = "vote"
    groups: Mapping[str, str] = field(default_factory=dict)
    screening: Mapping[str, Any] = field(default_factory=dict)
    rebuild: bool = False


@dataclass(frozen=True, slots=True)
class JudgeRecord:
    """A judge by name and settings, and its verdicts."""

    name: str
    settings: Mapping[str, Any]
    verdicts: Verdicts

    def to_json(self) -> dict[str, Any]:
        """Return what the card says of it."""
        return {"name": self.name, **self.settings}


def build(
    pair: Pair,
    responses: Responses,
    judges: Sequence[JudgeRecord],
    folder: Path,
    config: BuildConfig = BuildConfig(),
) -> Path:
    """Write the dataset `folder`: labels, embeddings and, last, the card; return the folder.

    Effects: one response's comparison is in memory at a time, labels for all.

    Raises:
        DataError: no finished response, no judge, or too few problems for three splits.
        ConfigError: the folder holds labels of other judges or splits.
    """
    if not judges:
        raise DataError("there is no judge; labels need at least one")
    if not responses.finished_keys:
        raise DataError(
            f"none of the {len(responses.unfinished_keys)} responses ended within the token limit; "
            "raise max tokens"
        )
    pinned = {
        "judges": [judge.to_json() for judge in judges],
        "combine": config.combine,
        "shares": asdict(config.shares),
        "seed": config.seed,
        "groups": dict(config.groups),
    }
    if config.rebuild:
        for name in (CARD, "build.json"):  # the card first: without it there is no dataset
            (folder / name).unlink(missing_ok=True)
    pin_config(folder / "build.json", pinned, "labels")
    if (folder / CARD).exists():
        return folder
    domain_of = {r.problem_id: r.domain for r in responses.finished()}
    splits = assign_splits(domain_of, config.shares, config.seed, config.groups)
    labeller = _Labeller(judges, config.combine, splits, folder)
    rows = list(labeller.rows(responses))
    labels = Labels(torch.cat(labeller.labels), torch.cat(labeller.probabilities))
    stored = {"label": labels.label_N, "probability": labels.probability_N.to(torch.float16)}
    save_tensors(folder / LABELS, stored, {})
    ids_M = torch.tensor(sorted(labeller.proposed))
    rows_ME = pair.small.embed(ids_M.tolist()).to(torch.float16)
    save_tensors(folder / EMBEDDINGS, {"ids": ids_M, "rows": rows_ME}, {})
    write_json(folder / TOKENS, _texts(pair.tokenizer, labeller.shown))
    card = {
        "format": FORMAT,
        "pair": pair.name,
        "small": asdict(SmallModelId.of(pair.small.info)),
        "large": {"name": pair.large.info.name, "fingerprint": pair.large.info.fingerprint},
        "judges": [judge.to_json() for judge in judges],
        "combine": config.combine if len(judges) > 1 else None,
        "drawn_by_server": _drawn_by_server(folder),
        "unfinished": responses.unfinished_keys,
        "failures": _failures(responses, labeller),
        "screening": dict(config.screening),
        "base_rates": {name: asdict(rates) for name, rates in base_rates(rows, labels).items()},
        "responses": [asdict(row) for row in rows],
        "sha256": {
            name: sha256_file(folder / name)
            for name in (LABELS, EMBEDDINGS, TOKENS, *(row.file for row in rows))
        },
        "provenance": provenance(seed=config.seed),
    }
    write_json(folder / CARD, card)
    return folder


class _Labeller:
    """Collects labels, and counts them by split and domain, response by response."""

    def __init__(
        self,
        judges: Sequence[JudgeRecord],
        combination: str,
        splits: Mapping[str, Split],
        folder: Path,
    ) -> None:
        self._judges = judges
        self._combination = combination
        self._splits = splits
        self._folder = folder
        self.labels: list[Tensor] = []
        self.probabilities: list[Tensor] = []
        self.proposed: set[int] = set()
        self.shown: set[int] = set()
        self.failed: list[tuple[str, str]] = []

    def rows(self, responses: Responses) -> Iterator[ResponseRow]:
        """Label every finished response and yield what the card says of it."""
        start = 0
        for response in responses.finished():
            comparison = load_comparison(self._folder / "compare", response)
            label_N = self._label(response, comparison)
            row = ResponseRow(
                problem_id=response.problem_id,
                sample=response.sample,
                domain=response.domain,
                split=self._splits[response.problem_id],
                file=comparison_path(Path("compare"), response.key).as_posix(),
                start=start,
                positions=len(label_N),
            )
            start += row.positions
            yield row

    def _label(self, response: Response, comparison: Comparison) -> Tensor:
        """Return one response's labels [N]; keep them, and its probabilities."""
        label_N = torch.full((len(comparison.real_N),), int(Label.IDENTICAL), dtype=torch.uint8)
        probability_N = torch.zeros(len(label_N))
        for position in comparison.mismatch_N.nonzero()[:, 0].tolist():
            verdict = self._verdict(case_id(response.key, position))
            label_N[position] = _label_of(verdict)
            unknown = verdict.divergent is None or verdict.probability is None
            probability_N[position] = math.nan if unknown else float(verdict.probability or 0.0)
        self.labels.append(label_N)
        self.probabilities.append(probability_N)
        self.proposed.update(comparison.proposed_N.tolist())
        self.shown.update(_shown(comparison))
        return label_N

    def _verdict(self, case: str) -> Verdict:
        verdict = combine(self._combination, [judge.verdicts.get(case) for judge in self._judges])
        if verdict.divergent is None:
            self.failed.append((case, verdict.reason))
        return verdict


def _shown(comparison: Comparison) -> Iterator[int]:
    """Yield the ids that a page about this response may show."""
    yield from comparison.real_N.tolist()
    yield from comparison.step.top_ids_NK[:, :SHOWN_ALTERNATIVES].flatten().tolist()
    if comparison.large is not None:
        yield from comparison.large.top_ids_NK[:, :SHOWN_ALTERNATIVES].flatten().tolist()


def _texts(tokenizer: Tokenizer, ids: Collection[int]) -> dict[str, str]:
    pieces = dict(enumerate(tokenizer.pieces()))  # a vocabulary may be longer: padding
    return {str(i): (pieces.get(i) or b"").decode("utf-8", errors="replace") for i in sorted(ids)}


def _label_of(verdict: Verdict) -> int:
    if verdict.divergent is None:
        return UNJUDGED
    return int(Label.DIVERGENT if verdict.divergent else Label.NEUTRAL)


def _drawn_by_server(folder: Path) -> list[str]:
    """Return the stages whose tokens a server drew by its own random numbers."""
    pinned = {stage: folder / stage / "config.json" for stage in ("respond", "continue")}
    return [
        stage
        for stage, path in pinned.items()
        if path.exists() and read_json(path, stage).get("drawn_by") == SERVER
    ]


def _failures(responses: Responses, labeller: _Labeller) -> list[dict[str, str]]:
    """Return what was left out, and why."""
    unanswered = [asdict(failure) for failure in responses.failures]
    unjudged = [
        {"stage": "judge", "key": case, "reason": reason} for case, reason in labeller.failed
    ]
    return unanswered + unjudged
