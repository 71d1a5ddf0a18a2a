"""From R2R's column format to a labelled dataset that training reads.

What R2R's format does not hold stays unknown: the large model's outputs and, without the small
model itself, its input embeddings. The sum and the entropy over the whole vocabulary are computed
over the stored top entries, so both come out too small; the card names them under `approximate`.
Shapes: T rows of a sequence, N positions, K stored top entries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossroads.artifacts import canonical_hash, save_tensors, sha256_file, write_json
from crossroads.dataset import (
    CARD,
    EMBEDDINGS,
    FORMAT,
    LABELS,
    UNJUDGED,
    Comparison,
    Labels,
    ResponseRow,
)
from crossroads.errors import ConfigError, DataError
from crossroads.exchange.audit import AuditReport, audit_r2r
from crossroads.exchange.folders import atomic_folder, is_filled
from crossroads.exchange.r2r_columns import NOT_JUDGED
from crossroads.exchange.r2r_laws import LARGEST_HALF, r2r_findings
from crossroads.exchange.r2r_source import R2RSource, SequenceRows, open_r2r
from crossroads.models.base import CausalLM, StepOutput
from crossroads.provenance import provenance
from crossroads.rates import base_rates
from crossroads.routing.checkpoint import SmallModelId
from crossroads.splits import SplitShares, assign_splits
from crossroads.types import Label, Progress, SilentProgress, Split

APPROXIMATE = ("logsumexp", "entropy")
_UNKNOWN = "unknown (not recorded in R2R's format)"


@dataclass(frozen=True, slots=True)
class _Answer:
    """One imported sequence: what is compared, and its labels."""

    comparison: Comparison
    labels: Labels
    misaligned: int


@dataclass(slots=True)
class _Written:
    """What grows while sequences are written: a few numbers for each, never their outputs."""

    rows: list[ResponseRow] = field(default_factory=list)
    split_of: dict[str, str | None] = field(default_factory=dict)
    label_parts: list[Labels] = field(default_factory=list)
    proposed: set[int] = field(default_factory=set)
    samples: Counter[str] = field(default_factory=Counter)
    largest_id: int = 0
    misaligned: int = 0
    unscored_sequences: int = 0


def import_r2r(
    source: Path,
    out: Path,
    *,
    small: CausalLM | str = "unknown",
    seed: int = 0,
    shares: SplitShares = SplitShares(),  # noqa: B008  frozen
    allow_misaligned: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write the R2R data at `source` as the labelled dataset `out` and return `out`.

    The data is audited first. `small` is the model that the outputs are of, or only its name; a
    name leaves the embeddings out, and routers trained on the result fit no loaded model. Splits
    are the source's `split` column, else drawn by problem with `seed` and `shares`; without a
    `problem_id` column, every sequence counts as a problem. With `allow_misaligned`, positions
    that violate a law become unjudged instead of ending the import.

    Effects: `out` appears whole or not at all.

    Raises:
        DataError: the audit fails; nothing is scored; the small model is another one.
        ConfigError: `out` is not empty or cannot be written.
        EngineError: a package that reads the source is not installed.
    """
    if is_filled(out):
        raise ConfigError(f"{out} is not empty; give another folder for the imported dataset")
    opened = open_r2r(source)
    _check_model(opened, small)
    progress = progress or SilentProgress()
    report = audit_r2r(opened, progress)
    if not report.ok and not allow_misaligned:
        raise DataError(
            f"{report.summary}; fix the data, or import with --allow-misaligned to leave such "
            "positions unjudged"
        )
    with atomic_folder(out) as folder:
        written = _write_sequences(opened, folder, progress)
        _finish(folder, written, opened, report, small, seed, shares)
    return out


def _check_model(source: R2RSource, small: CausalLM | str) -> None:
    if not isinstance(small, str) and small.info.hidden_size != source.hidden_size:
        raise DataError(
            f"{source.path} has hidden states of size {source.hidden_size}, {small.info.name} has "
            f"{small.info.hidden_size}; give the small model that the data was made with"
        )


def _write_sequences(source: R2RSource, folder: Path, progress: Progress) -> _Written:
    """Write a comparison for every sequence with scored rows."""
    written = _Written()
    start = 0
    progress.start("import", source.rows, "rows")
    for number, rows in enumerate(source.sequences()):
        progress.advance(len(rows))
        answer = _answer(rows)
        if answer is None:
            written.unscored_sequences += 1
            continue
        # Numbered, since a damaged source may have two runs of one sequence.
        file = f"compare/{canonical_hash([number, rows.name])[:16]}.safetensors"
        save_tensors(folder / file, answer.comparison.to_tensors(), {"sequence": rows.name})
        row = _response_row(rows, written, file, start, len(answer.labels.label_N))
        _record(written, row, rows, answer)
        start += row.positions
    progress.finish()
    if not written.rows:
        raise DataError(f"no row of {source.path} is scored (mask 1); there is nothing to import")
    return written


def _response_row(
    rows: SequenceRows, written: _Written, file: str, start: int, positions: int
) -> ResponseRow:
    problem_id = rows.name if rows.problem_id is None else rows.problem_id
    sample = written.samples[problem_id] if rows.sample is None else rows.sample
    written.samples[problem_id] += 1
    # The split is put in when all problems are known.
    return ResponseRow(
        problem_id=problem_id,
        sample=sample,
        domain=rows.domain or "default",
        split=Split.TRAIN,
        file=file,
        start=start,
        positions=positions,
    )


def _record(written: _Written, row: ResponseRow, rows: SequenceRows, answer: _Answer) -> None:
    before = written.split_of.setdefault(row.problem_id, rows.split)
    if before != rows.split:
        raise DataError(
            f"problem {row.problem_id!r} is in the splits {before} and {rows.split}; "
            "a problem must be in one"
        )
    comparison = answer.comparison
    written.rows.append(row)
    written.label_parts.append(answer.labels)
    written.proposed.update(torch.unique(comparison.proposed_N).tolist())
    largest = max(int(comparison.real_N.max()), int(comparison.step.top_ids_NK.max()))
    written.largest_id = max(written.largest_id, largest)
    written.misaligned += answer.misaligned


# One sequence


def _answer(rows: SequenceRows) -> _Answer | None:
    """Return the N predictions from the first scored row on; None without one.

    The last row's prediction is about a token that the source does not have.
    """
    scored = np.flatnonzero(rows.read_T[:-1])
    if not len(scored):
        return None
    part = slice(int(scored[0]), len(rows) - 1)
    wrong_N = _wrong(rows)[part]
    unusable_N = wrong_N | (rows.divergent_T[part] == NOT_JUDGED) | (rows.mask_T[part] != 1)
    label_N = np.where(
        rows.divergent_T[part] == 1,
        Label.DIVERGENT,
        np.where(rows.mismatch_T[part] == 1, Label.NEUTRAL, Label.IDENTICAL),
    )
    label_N = np.where(unusable_N, UNJUDGED, label_N).astype(np.uint8)
    return _Answer(
        _comparison(rows, part),
        Labels(torch.from_numpy(label_N), torch.from_numpy(_probability(rows, part, label_N))),
        int(wrong_N.sum()),
    )


def _wrong(rows: SequenceRows) -> np.ndarray:
    """Return the rows that violate a law, and those whose next row is not theirs."""
    found = r2r_findings(rows)
    wrong_T = np.any([finding.wrong_T for finding in found.values()], axis=0)
    wrong_T[:-1] |= found["token_id"].wrong_T[1:]
    if rows.again:
        wrong_T[:] = True
    result: np.ndarray = wrong_T
    return result


def _probability(rows: SequenceRows, part: slice, label_N: np.ndarray) -> np.ndarray:
    if rows.probability_T is not None:
        return rows.probability_T[part]
    return np.where(label_N == Label.IDENTICAL, 0.0, np.nan).astype(np.float32)


def _comparison(rows: SequenceRows, part: slice) -> Comparison:
    # Only rows that the audit has counted hold other than finite numbers; they are unjudged.
    logits_NK = torch.from_numpy(np.nan_to_num(rows.logits_TK[part], posinf=0.0, neginf=0.0))
    hidden_NH = np.nan_to_num(rows.hidden_TH[part]).clip(-LARGEST_HALF, LARGEST_HALF)
    ids_NK = _proposal_first(rows.indices_TK[part], rows.small_T[part])
    logsumexp_N = torch.logsumexp(logits_NK, dim=1)
    logprob_NK = logits_NK - logsumexp_N[:, None]
    step = StepOutput(
        row_lengths=(len(ids_NK),),
        top_ids_NK=torch.from_numpy(ids_NK),
        top_logits_NK=logits_NK,
        logsumexp_N=logsumexp_N,
        entropy_N=-(logprob_NK.exp() * logprob_NK).sum(dim=1),
        hidden_NH=torch.from_numpy(hidden_NH),
    )
    return Comparison(
        step=step,
        real_N=torch.from_numpy(rows.real_T[part.start + 1 : part.stop + 1].copy()),
        position_N=torch.from_numpy(rows.token_T[part] + 1),
        large=None,
    )


def _proposal_first(ids_NK: np.ndarray, small_N: np.ndarray) -> np.ndarray:
    """Return ids with the proposal in front; it may stand behind tokens of the same logit."""
    is_small_NK = ids_NK == small_N[:, None]
    found_N = np.flatnonzero(is_small_NK.any(axis=1))
    at_N = is_small_NK.argmax(axis=1)[found_N]
    ids_NK = ids_NK.copy()
    ids_NK[found_N, at_N] = ids_NK[found_N, 0]
    ids_NK[found_N, 0] = small_N[found_N]
    return ids_NK


# The dataset's own files


def _finish(
    folder: Path,
    written: _Written,
    source: R2RSource,
    report: AuditReport,
    small: CausalLM | str,
    seed: int,
    shares: SplitShares,
) -> None:
    """Write labels, embeddings and, last, the card."""
    labels = Labels(
        torch.cat([part.label_N for part in written.label_parts]),
        torch.cat([part.probability_N for part in written.label_parts]),
    )
    save_tensors(
        folder / LABELS,
        {"label": labels.label_N, "probability": labels.probability_N.to(torch.float16)},
        {},
    )
    save_tensors(folder / EMBEDDINGS, _embeddings(written, source, small), {})
    rows = _with_splits(written, seed, shares)
    card: dict[str, Any] = {
        "format": FORMAT,
        "pair": "imported",
        "small": asdict(_small_id(written, source, small)),
        "large": {"name": "unknown", "fingerprint": _UNKNOWN},
        "judges": [{"name": "imported", "source": source.path.name}],
        "combine": None,
        "base_rates": {name: asdict(rates) for name, rates in base_rates(rows, labels).items()},
        "approximate": list(APPROXIMATE),
        "import": {
            "rows": report.rows,
            "sequences": report.sequences,
            "unscored_sequences": written.unscored_sequences,
            "misaligned_positions": written.misaligned,
            "violations": {check.name: check.violations for check in report.checks},
        },
        "responses": [asdict(row) for row in rows],
        "sha256": {file: sha256_file(folder / file) for file in _files(rows)},
        "provenance": provenance(seed=seed),
    }
    write_json(folder / CARD, card)


def _files(rows: Sequence[ResponseRow]) -> Iterator[str]:
    yield from (LABELS, EMBEDDINGS)
    yield from (row.file for row in rows)


def _with_splits(written: _Written, seed: int, shares: SplitShares) -> list[ResponseRow]:
    """Return the rows in the source's splits, else in drawn ones."""
    if any(split is None for split in written.split_of.values()):
        domains = {row.problem_id: row.domain for row in written.rows}
        split_of = assign_splits(domains, shares, seed)
    else:
        split_of = {problem: _split(str(name)) for problem, name in written.split_of.items()}
    return [
        ResponseRow(**{**asdict(row), "split": split_of[row.problem_id]}) for row in written.rows
    ]


def _split(name: str) -> Split:
    if name not in set(Split):
        raise DataError(f"column 'split' has {name!r}; known splits: {', '.join(Split)}")
    return Split(name)


def _embeddings(written: _Written, source: R2RSource, small: CausalLM | str) -> dict[str, Tensor]:
    """Return the table of the proposed tokens; an empty one where only the model's name is known.

    Raises:
        DataError: a token that the model does not have.
    """
    if isinstance(small, str):
        rows_ME = torch.zeros(0, source.hidden_size, dtype=torch.float16)
        return {"ids": torch.zeros(0, dtype=torch.int64), "rows": rows_ME}
    if written.largest_id >= small.info.vocab_size:
        raise DataError(
            f"{source.path} has token {written.largest_id}, {small.info.name} has "
            f"{small.info.vocab_size} tokens; give the small model that the data was made with"
        )
    ids_M = torch.tensor(sorted(token for token in written.proposed if token >= 0))
    return {"ids": ids_M, "rows": small.embed(ids_M.tolist()).to(torch.float16)}


def _small_id(written: _Written, source: R2RSource, small: CausalLM | str) -> SmallModelId:
    if not isinstance(small, str):
        return SmallModelId.of(small.info)
    # The vocabulary is at least that large, and heuristics need a size.
    return SmallModelId(small, "unknown", _UNKNOWN, source.hidden_size, written.largest_id + 1)
