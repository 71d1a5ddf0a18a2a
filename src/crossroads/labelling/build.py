"""The labelling line: respond, compare, judge, build. Resumable at every problem."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from crossroads.artifacts import (
    canonical_hash,
    ensure_writable,
    load_tensors,
    pin_config,
    save_tensors,
    sha256_file,
    write_json,
)
from crossroads.dataset import CARD, EMBEDDINGS, FORMAT, LABELS, UNJUDGED, Comparison
from crossroads.errors import DataError
from crossroads.labelling.compare import compare
from crossroads.labelling.judges.base import Judge, Mismatch
from crossroads.labelling.respond import Response, respond
from crossroads.models.pairs import Pair
from crossroads.provenance import provenance
from crossroads.routing.checkpoint import SmallModelId
from crossroads.splits import SplitShares, assign_splits
from crossroads.types import FinishReason, Label, Problem, Progress, Split


@dataclass(frozen=True, slots=True)
class LabelConfig:
    """Everything that the labels depend on, beside the pair, the problems and the judge."""

    max_tokens: int = 512
    max_rows: int = 8
    shares: SplitShares = SplitShares()  # noqa: RUF009  frozen
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Labelled:
    response: Response
    file: str
    comparison: Comparison
    label_N: torch.Tensor


def label(
    pair: Pair,
    problems: Sequence[Problem],
    judge: Judge,
    folder: Path,
    progress: Progress,
    config: LabelConfig = LabelConfig(),
) -> Path:
    """Label `problems` into the dataset `folder` and return the folder.

    Effects: finished responses and comparisons stay in the folder; running it again does only
    what is missing, and a finished dataset is returned as it is.

    Raises:
        DataError: duplicate ids, no problem, no finished response.
        ConfigError: the folder holds a run of other problems, models or settings.
    """
    _check_problems(problems)
    ensure_writable(folder)
    pin_config(folder / "config.json", _config(pair, problems, judge, config), "the labels")
    if (folder / CARD).exists():
        return folder
    responses = respond(
        pair.large,
        pair.tokenizer,
        problems,
        folder / "responses.jsonl",
        progress,
        max_tokens=config.max_tokens,
        max_rows=config.max_rows,
    )
    finished = [r for r in responses if r.finish_reason is not FinishReason.LENGTH]
    if not finished:
        raise DataError(
            f"none of {len(responses)} responses ended within {config.max_tokens} tokens; "
            "raise max tokens"
        )
    files = _compare_all(pair, finished, folder, progress)
    labelled = [_judge(response, folder, file, judge) for response, file in files]
    _build(pair, labelled, responses, judge, folder, config)
    return folder


def _check_problems(problems: Sequence[Problem]) -> None:
    if not problems:
        raise DataError("there is no problem to label")
    twice = [problem_id for problem_id, n in Counter(p.id for p in problems).items() if n > 1]
    if twice:
        raise DataError(f"problem id {twice[0]!r} occurs more than once; ids must be unique")


def _config(
    pair: Pair, problems: Sequence[Problem], judge: Judge, config: LabelConfig
) -> dict[str, Any]:
    return {
        "small": pair.small.info.fingerprint,
        "large": pair.large.info.fingerprint,
        "problems": canonical_hash([asdict(problem) for problem in problems]),
        "judge": {"name": judge.name, **judge.settings},
        "max_tokens": config.max_tokens,
        "shares": asdict(config.shares),
        "seed": config.seed,
    }


def _compare_all(
    pair: Pair, responses: Sequence[Response], folder: Path, progress: Progress
) -> list[tuple[Response, str]]:
    """Return each response with its comparison's file, written now or by an earlier run."""
    progress.start("both models compare", sum(len(r.response_ids) for r in responses), "tokens")
    files = []
    for response in responses:
        file = f"compare/{canonical_hash(response.problem_id)[:16]}.safetensors"
        if not (folder / file).exists():
            comparison = compare(pair.small, pair.large, response.prompt_ids, response.response_ids)
            metadata = {"problem_id": response.problem_id}
            save_tensors(folder / file, comparison.to_tensors(), metadata)
        files.append((response, file))
        progress.advance(len(response.response_ids))
    progress.finish()
    return files


def _judge(response: Response, folder: Path, file: str, judge: Judge) -> _Labelled:
    """Return the labels [N] of one response."""
    comparison = Comparison.from_tensors(load_tensors(folder / file, "comparison"), folder / file)
    differs_N = comparison.proposed_N != comparison.real_N
    mismatches = [
        Mismatch(
            problem_id=response.problem_id,
            position=int(i),
            real_id=int(comparison.real_N[i]),
            small_id=int(comparison.proposed_N[i]),
            logprob_real=float(comparison.large_logprob_real_N[i]),
            logprob_small=float(comparison.large_logprob_small_N[i]),
            logprob_best=float(comparison.large_logprob_best_N[i]),
        )
        for i in differs_N.nonzero()[:, 0]
    ]
    label_N = torch.full(differs_N.shape, int(Label.IDENTICAL), dtype=torch.uint8)
    for mismatch, verdict in zip(mismatches, judge.judge(mismatches), strict=True):
        if verdict.divergent is None:
            label_N[mismatch.position] = UNJUDGED
        else:
            found = Label.DIVERGENT if verdict.divergent else Label.NEUTRAL
            label_N[mismatch.position] = int(found)
    return _Labelled(response, file, comparison, label_N)


def _build(
    pair: Pair,
    labelled: Sequence[_Labelled],
    responses: Sequence[Response],
    judge: Judge,
    folder: Path,
    config: LabelConfig,
) -> None:
    """Write labels, embeddings and, last, the card."""
    save_tensors(folder / LABELS, {"label": torch.cat([x.label_N for x in labelled])}, {})
    ids_M = torch.unique(torch.cat([x.comparison.proposed_N for x in labelled]))
    rows_ME = pair.small.embed(ids_M.tolist()).to(torch.float16)
    save_tensors(folder / EMBEDDINGS, {"ids": ids_M, "rows": rows_ME}, {})
    split_of = assign_splits(
        {x.response.problem_id: x.response.domain for x in labelled}, config.shares, config.seed
    )
    files = [LABELS, EMBEDDINGS, *(x.file for x in labelled)]
    card = {
        "format": FORMAT,
        "pair": pair.name,
        "small": asdict(SmallModelId.of(pair.small.info)),
        "large": {"name": pair.large.info.name, "fingerprint": pair.large.info.fingerprint},
        "judge": {"name": judge.name, **judge.settings},
        "unfinished_responses": len(responses) - len(labelled),
        "base_rates": base_rates(labelled, split_of),
        "problems": _problem_rows(labelled, split_of),
        "sha256": {file: sha256_file(folder / file) for file in files},
        "provenance": provenance(seed=config.seed),
    }
    write_json(folder / CARD, card)


def _problem_rows(
    labelled: Sequence[_Labelled], split_of: Mapping[str, Split]
) -> list[dict[str, Any]]:
    rows, start = [], 0
    for item in labelled:
        rows.append(
            {
                "id": item.response.problem_id,
                "domain": item.response.domain,
                "split": split_of[item.response.problem_id],
                "file": item.file,
                "start": start,
                "positions": len(item.label_N),
            }
        )
        start += len(item.label_N)
    return rows


def base_rates(
    labelled: Sequence[_Labelled], split_of: Mapping[str, Split]
) -> dict[str, dict[str, float]]:
    """Return positions and the shares of each label, for all problems and per split."""
    groups: dict[str, list[torch.Tensor]] = defaultdict(list)
    for item in labelled:
        groups["all"].append(item.label_N)
        groups[split_of[item.response.problem_id]].append(item.label_N)
    rates = {}
    for name, parts in groups.items():
        label_N = torch.cat(parts)
        judged = int((label_N != UNJUDGED).sum())
        rates[name] = {
            "positions": len(label_N),
            "unjudged": len(label_N) - judged,
            **{
                kind.name.lower(): float((label_N == kind).sum()) / max(judged, 1) for kind in Label
            },
        }
    return rates
