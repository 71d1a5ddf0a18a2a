"""The labelled dataset: what labelling writes, training reads, and nothing else agrees on.

A folder: `dataset.json` (written last: its presence means the dataset is whole), one
`compare/*.safetensors` per problem, `labels.safetensors`, `embeddings.safetensors`.

Shapes: N positions, K stored top entries, H hidden size, E embedding size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossroads.artifacts import load_tensors, read_json, sha256_file
from crossroads.errors import DataError
from crossroads.models.base import StepOutput
from crossroads.routing.checkpoint import SmallModelId
from crossroads.routing.features import FeatureInputs, compute
from crossroads.types import Label, Split

FORMAT = 1
CARD, LABELS, EMBEDDINGS = "dataset.json", "labels.safetensors", "embeddings.safetensors"
UNJUDGED = 255
"""Label of a mismatch whose judge failed; such positions are in no split."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both models on one response; N positions, one per response token.

    real_N: the large model's token; `step.top_ids_NK[:, 0]` is the small model's proposal for it.
    position_N: index of that token in its row, prompt included.
    large_logprob_*: the large model's log-probability (nats) of the real token, of the small
    model's proposal, and of its own likeliest token.
    """

    step: StepOutput
    real_N: Tensor
    position_N: Tensor
    large_logprob_real_N: Tensor
    large_logprob_small_N: Tensor
    large_logprob_best_N: Tensor

    @property
    def proposed_N(self) -> Tensor:
        """The small model's proposals, its likeliest tokens."""
        return self.step.top_ids_NK[:, 0]

    def to_tensors(self) -> dict[str, Tensor]:
        """Return what is stored: hidden states in half precision, ids in 32 bits."""
        hidden_NH = self.step.hidden_NH
        if hidden_NH is None:
            raise ValueError("a comparison needs hidden states")
        return {
            "top_ids": self.step.top_ids_NK.to(torch.int32),
            "top_logits": self.step.top_logits_NK.float(),
            "logsumexp": self.step.logsumexp_N.float(),
            "entropy": self.step.entropy_N.float(),
            "hidden": hidden_NH.to(torch.float16),
            "real": self.real_N.to(torch.int32),
            "position": self.position_N.to(torch.int32),
            "large_logprob_real": self.large_logprob_real_N.float(),
            "large_logprob_small": self.large_logprob_small_N.float(),
            "large_logprob_best": self.large_logprob_best_N.float(),
        }

    @classmethod
    def from_tensors(cls, stored: Mapping[str, Tensor], source: Path) -> Comparison:
        """Return what `to_tensors` stored.

        Raises:
            DataError: a column is missing or columns differ in length.
        """
        try:
            columns = {name: stored[name] for name in _COLUMNS}
        except KeyError as error:
            raise DataError(f"{source} has no column {error.args[0]!r}; label again") from error
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"the columns of {source} differ in length: {lengths}; label again")
        step = StepOutput(
            row_lengths=(lengths["real"],),
            top_ids_NK=columns["top_ids"].long(),
            top_logits_NK=columns["top_logits"],
            logsumexp_N=columns["logsumexp"],
            entropy_N=columns["entropy"],
            hidden_NH=columns["hidden"],
        )
        return cls(
            step=step,
            real_N=columns["real"].long(),
            position_N=columns["position"].long(),
            large_logprob_real_N=columns["large_logprob_real"],
            large_logprob_small_N=columns["large_logprob_small"],
            large_logprob_best_N=columns["large_logprob_best"],
        )


_COLUMNS = (
    "top_ids", "top_logits", "logsumexp", "entropy", "hidden", "real", "position",
    "large_logprob_real", "large_logprob_small", "large_logprob_best",
)  # fmt: skip


class EmbeddingTable:
    """Input-embedding rows of the tokens that occur in a dataset; stands in for the model."""

    def __init__(self, ids_M: Tensor, rows_ME: Tensor) -> None:
        """Take ascending ids [M] and their rows [M, E]."""
        self.ids_M = ids_M
        self.rows_ME = rows_ME

    def __call__(self, token_ids: Sequence[int]) -> Tensor:
        """Return the rows [N, E], float32.

        Raises:
            DataError: an id that the dataset never proposes.
        """
        wanted_N = torch.tensor(list(token_ids), dtype=self.ids_M.dtype)
        at_N = torch.searchsorted(self.ids_M, wanted_N).clamp_max(len(self.ids_M) - 1)
        if not torch.equal(self.ids_M[at_N], wanted_N):
            raise DataError("the dataset holds no embedding of one of its tokens; label again")
        return self.rows_ME[at_N].float()


@dataclass(frozen=True, slots=True)
class Positions:
    """Labelled positions of some problems, one after the other.

    label_N: values of types.Label. problem_N: index into `problem_ids`: the cluster of a position.
    """

    step: StepOutput
    proposed_N: Tensor
    position_N: Tensor
    label_N: Tensor
    problem_N: Tensor
    problem_ids: tuple[str, ...]
    embed: EmbeddingTable

    def __len__(self) -> int:
        """Number of positions."""
        return len(self.label_N)

    @property
    def divergent_N(self) -> Tensor:
        """Whether each position is divergent, bool."""
        return self.label_N == Label.DIVERGENT

    @property
    def mismatch_N(self) -> Tensor:
        """Whether each position is a mismatch, bool."""
        return self.label_N != Label.IDENTICAL

    def features(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the named router inputs, computed as decoding computes them."""
        inputs = FeatureInputs(self.step, self.proposed_N, self.position_N, self.embed)
        return compute(names, inputs)


@dataclass(frozen=True, slots=True)
class LabelledDataset:
    """A whole labelled dataset; `card` is dataset.json."""

    folder: Path
    card: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> LabelledDataset:
        """Return the dataset in `folder`.

        Raises:
            DataError: none there, unfinished, of another format, or altered.
        """
        if not (folder / CARD).exists():
            raise DataError(
                f"no finished dataset at {folder} (no {CARD}); run `crossroads label` to its end"
            )
        card = read_json(folder / CARD, "dataset card")
        if card.get("format") != FORMAT:
            raise DataError(
                f"{folder / CARD} has format {card.get('format')!r}, this version reads {FORMAT}"
            )
        dataset = cls(folder, card)
        dataset._check_files()
        return dataset

    def _check_files(self) -> None:
        for name, expected in self.card["sha256"].items():
            path = self.folder / name
            if not path.exists() or sha256_file(path) != expected:
                raise DataError(f"{path} is missing or was altered after labelling; label again")

    @property
    def small(self) -> SmallModelId:
        """The small model whose outputs are stored."""
        return SmallModelId(**self.card["small"])

    def split(self, split: Split) -> Positions:
        """Return the judged positions of one split.

        Raises:
            DataError: the split has no position.
        """
        chosen = [p for p in self.card["problems"] if p["split"] == split]
        labels = load_tensors(self.folder / LABELS, "labels")["label"]
        embeddings = load_tensors(self.folder / EMBEDDINGS, "embeddings")
        comparisons, kept = [], []
        for problem in chosen:
            path = self.folder / problem["file"]
            comparison = Comparison.from_tensors(load_tensors(path, "comparison"), path)
            label_n = labels[problem["start"] : problem["start"] + problem["positions"]]
            if len(label_n) != len(comparison.real_N):
                raise DataError(f"{path} and {LABELS} differ in length; label again")
            comparisons.append(comparison)
            kept.append(label_n)
        if not comparisons:
            raise DataError(f"the dataset {self.folder} has no problem in its {split} split")
        return _join(
            comparisons,
            kept,
            tuple(p["id"] for p in chosen),
            EmbeddingTable(embeddings["ids"], embeddings["rows"]),
        )


def _join(
    comparisons: Sequence[Comparison],
    labels: Sequence[Tensor],
    problem_ids: tuple[str, ...],
    embed: EmbeddingTable,
) -> Positions:
    """Return the judged positions of several problems as one."""
    keep = [label_n != UNJUDGED for label_n in labels]
    steps = [comparison.step for comparison in comparisons]

    def cat(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([t[k] for t, k in zip(tensors, keep, strict=True)])

    step = StepOutput(
        row_lengths=tuple(int(k.sum()) for k in keep),
        top_ids_NK=cat([s.top_ids_NK for s in steps]),
        top_logits_NK=cat([s.top_logits_NK for s in steps]),
        logsumexp_N=cat([s.logsumexp_N for s in steps]),
        entropy_N=cat([s.entropy_N for s in steps]),
        hidden_NH=cat([s.hidden_NH for s in steps if s.hidden_NH is not None]),
    )
    return Positions(
        step=step,
        proposed_N=cat([c.proposed_N for c in comparisons]),
        position_N=cat([c.position_N for c in comparisons]),
        label_N=cat(labels),
        problem_N=torch.repeat_interleave(
            torch.arange(len(keep)), torch.tensor([int(k.sum()) for k in keep])
        ),
        problem_ids=problem_ids,
        embed=embed,
    )
