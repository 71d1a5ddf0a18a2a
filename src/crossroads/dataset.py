"""The labelled dataset: what labelling writes, training reads, and nothing else agrees on.

A folder: `dataset.json` (written last: its presence means the dataset is whole), one
`compare/*.safetensors` per response, `labels.safetensors`, `embeddings.safetensors`. What
labelling keeps beside them (responses, continuations, verdicts) is not needed to train.

Shapes: N positions, K stored top entries, H hidden size, E embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossroads.artifacts import load_tensors, read_json, sha256_file
from crossroads.errors import DataError
from crossroads.models.base import StepOutput
from crossroads.routing.checkpoint import SmallModelId
from crossroads.routing.features import (
    FeatureInputs,
    compute,
    stored_logprobs,
    with_logprobs,
)
from crossroads.routing.history import look_back
from crossroads.types import Label, Split

FORMAT = 2
CARD, LABELS, EMBEDDINGS = "dataset.json", "labels.safetensors", "embeddings.safetensors"
TOKENS = "tokens.json"
"""The texts of the ids that occur, for people; a dataset from elsewhere may lack it."""
SHOWN_ALTERNATIVES = 5
"""Of each model's likeliest tokens, how many have their text in TOKENS."""
UNJUDGED = 255
"""Label of a mismatch whose judge failed; such positions are in no split."""


@dataclass(frozen=True, slots=True)
class LargeOutputs:
    """The large model's own distribution at N positions, log-probabilities in nats.

    logprob_real_N, logprob_small_N: of the token that the response has there, and of the small
    model's proposal. top_ids_NK, top_logprobs_NK: its likeliest tokens, descending.
    """

    logprob_real_N: Tensor
    logprob_small_N: Tensor
    top_ids_NK: Tensor
    top_logprobs_NK: Tensor


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both models on one response; N positions, one per response token.

    real_N: the response's token; `step.top_ids_NK[:, 0]` is the small model's proposal for it.
    position_N: index of that token in its row, prompt included.
    large: None in data that came from elsewhere without it.
    """

    step: StepOutput
    real_N: Tensor
    position_N: Tensor
    large: LargeOutputs | None

    @property
    def proposed_N(self) -> Tensor:
        """The small model's proposals, its likeliest tokens."""
        return self.step.top_ids_NK[:, 0]

    def features(
        self, names: Sequence[str], embed: Callable[[Sequence[int]], Tensor] | None
    ) -> dict[str, Tensor]:
        """Return the named router inputs, computed as decoding computes them."""
        history_NJ2 = look_back(self.step, self.real_N)
        inputs = FeatureInputs(self.step, self.proposed_N, self.position_N, embed, history_NJ2)
        return compute(names, inputs)

    @property
    def mismatch_N(self) -> Tensor:
        """Where the small model proposes another token than the response has, bool."""
        return self.proposed_N != self.real_N

    def to_tensors(self) -> dict[str, Tensor]:
        """Return what is stored: hidden states and log-probabilities in half precision."""
        hidden_NH = self.step.hidden_NH
        if hidden_NH is None:
            raise ValueError("a comparison needs hidden states")
        stored = {
            "top_ids": self.step.top_ids_NK.to(torch.int32),
            "top_logprobs": stored_logprobs(self.step),
            "logsumexp": self.step.logsumexp_N.float(),
            "entropy": self.step.entropy_N.float(),
            "hidden": hidden_NH.to(torch.float16),
            "real": self.real_N.to(torch.int32),
            "position": self.position_N.to(torch.int32),
        }
        if self.large is not None:
            stored |= {
                "large_logprob_real": self.large.logprob_real_N.float(),
                "large_logprob_small": self.large.logprob_small_N.float(),
                "large_top_ids": self.large.top_ids_NK.to(torch.int32),
                "large_top_logprobs": self.large.top_logprobs_NK.to(torch.float16),
            }
        return stored

    @classmethod
    def from_tensors(cls, stored: Mapping[str, Tensor], source: Path) -> Comparison:
        """Return what `to_tensors` stored.

        Raises:
            DataError: a column is missing or columns differ in length.
        """
        with_large = any(name in stored for name in _LARGE_COLUMNS)
        names = (*_COLUMNS, *_LARGE_COLUMNS) if with_large else _COLUMNS
        try:
            columns = {name: stored[name] for name in names}
        except KeyError as error:
            raise DataError(f"{source} has no column {error.args[0]!r}; label again") from error
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"the columns of {source} differ in length: {lengths}; label again")
        step = StepOutput(
            row_lengths=(lengths["real"],),
            top_ids_NK=columns["top_ids"].long(),
            top_logits_NK=columns["top_logprobs"],
            logsumexp_N=columns["logsumexp"],
            entropy_N=columns["entropy"],
            hidden_NH=columns["hidden"],
        )
        return cls(
            step=with_logprobs(step, columns["top_logprobs"]),
            real_N=columns["real"].long(),
            position_N=columns["position"].long(),
            large=_large(columns) if with_large else None,
        )


def _large(columns: Mapping[str, Tensor]) -> LargeOutputs:
    return LargeOutputs(
        logprob_real_N=columns["large_logprob_real"],
        logprob_small_N=columns["large_logprob_small"],
        top_ids_NK=columns["large_top_ids"].long(),
        top_logprobs_NK=columns["large_top_logprobs"].float(),
    )


_COLUMNS = ("top_ids", "top_logprobs", "logsumexp", "entropy", "hidden", "real", "position")
_LARGE_COLUMNS = (
    "large_logprob_real", "large_logprob_small", "large_top_ids", "large_top_logprobs",
)  # fmt: skip


class EmbeddingTable:
    """Input-embedding rows of the tokens that occur in a dataset; stands in for the model."""

    def __init__(self, ids_M: Tensor, rows_ME: Tensor) -> None:
        """Take ascending ids [M] and their rows [M, E]."""
        self.ids_M = ids_M
        self.rows_ME = rows_ME

    @classmethod
    def joined(cls, tables: Sequence[EmbeddingTable]) -> EmbeddingTable:
        """Return one table of several of the same model."""
        if len(tables) == 1:
            return tables[0]
        ids_M, at_M = torch.unique(torch.cat([t.ids_M for t in tables]), return_inverse=True)
        rows_ME = torch.cat([t.rows_ME for t in tables])
        joined_ME = rows_ME.new_empty((len(ids_M), rows_ME.shape[1]))
        joined_ME[at_M] = rows_ME
        return cls(ids_M, joined_ME)

    def __call__(self, token_ids: Sequence[int]) -> Tensor:
        """Return the rows [N, E], float32.

        Raises:
            DataError: an id that the dataset never proposes, or a dataset without embeddings.
        """
        wanted_N = torch.tensor(list(token_ids), dtype=self.ids_M.dtype)
        if not len(self.ids_M) and len(wanted_N):
            raise DataError(
                "the dataset holds no token embeddings; choose router inputs other than "
                "token_embedding, or import the data again with its small model"
            )
        at_N = torch.searchsorted(self.ids_M, wanted_N).clamp_max(len(self.ids_M) - 1)
        if not torch.equal(self.ids_M[at_N], wanted_N):
            raise DataError("the dataset holds no embedding of one of its tokens; label again")
        return self.rows_ME[at_N].float()


@dataclass(frozen=True, slots=True)
class Positions:
    """Labelled positions of some problems, one after the other.

    label_N: values of types.Label. probability_N: the judge's probability of divergence, 0 where
    the tokens are identical, nan where the judge has none. problem_N: index into `problem_ids`:
    the cluster of a position. history_NJ2: as routing.history defines it.
    """

    step: StepOutput
    proposed_N: Tensor
    position_N: Tensor
    label_N: Tensor
    probability_N: Tensor
    problem_N: Tensor
    problem_ids: tuple[str, ...]
    embed: EmbeddingTable
    history_NJ2: Tensor

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
        inputs = FeatureInputs(
            self.step, self.proposed_N, self.position_N, self.embed, self.history_NJ2
        )
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

    @property
    def responses(self) -> Sequence[ResponseRow]:
        """What the dataset is made of, in the order of its positions."""
        return [
            ResponseRow(**{**row, "split": Split(row["split"])}) for row in self.card["responses"]
        ]

    def labels(self) -> Labels:
        """Return the labels of every position, in the order of `responses`."""
        stored = load_tensors(self.folder / LABELS, "labels")
        return Labels(stored["label"], stored["probability"].float())

    def embeddings(self) -> EmbeddingTable:
        """Return the embeddings of the tokens that the small model proposes."""
        stored = load_tensors(self.folder / EMBEDDINGS, "embeddings")
        return EmbeddingTable(stored["ids"], stored["rows"])

    def comparison(self, row: ResponseRow) -> Comparison:
        """Return one response's comparison.

        Raises:
            DataError: its file is damaged, or has another length than the card says.
        """
        path = self.folder / row.file
        comparison = Comparison.from_tensors(load_tensors(path, "comparison"), path)
        if len(comparison.real_N) != row.positions:
            raise DataError(
                f"{path} has {len(comparison.real_N)} positions where {CARD} says "
                f"{row.positions}; label again"
            )
        return comparison

    def split(self, split: Split) -> Positions:
        """Return the judged positions of one split.

        Raises:
            DataError: the split has no position.
        """
        labels = self.labels()
        chosen = [row for row in self.responses if row.split == split]
        if not chosen:
            raise DataError(f"the dataset {self.folder} has no problem in its {split} split")
        return _join(
            [self.comparison(row) for row in chosen],
            [labels.of(row) for row in chosen],
            [row.problem_id for row in chosen],
            self.embeddings(),
        )


@dataclass(frozen=True, slots=True)
class ResponseRow:
    """One response of a dataset: positions `start` to `start + positions` of its labels."""

    problem_id: str
    sample: int
    domain: str
    split: Split
    file: str
    start: int
    positions: int


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of N positions: values of types.Label or UNJUDGED, and the judge's probabilities."""

    label_N: Tensor
    probability_N: Tensor

    def of(self, row: ResponseRow) -> Labels:
        """Return the labels of one response.

        Raises:
            DataError: there are fewer labels than positions.
        """
        part = slice(row.start, row.start + row.positions)
        if len(self.label_N[part]) != row.positions:
            raise DataError(f"{LABELS} is shorter than the dataset; label again")
        return Labels(self.label_N[part], self.probability_N[part])


def _join(
    comparisons: Sequence[Comparison],
    labels: Sequence[Labels],
    problem_of: Sequence[str],
    embed: EmbeddingTable,
) -> Positions:
    """Return the judged positions of several responses as one."""
    keep = [part.label_N != UNJUDGED for part in labels]
    steps = [comparison.step for comparison in comparisons]
    problem_ids = tuple(dict.fromkeys(problem_of))
    number_of = {problem_id: number for number, problem_id in enumerate(problem_ids)}

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
        label_N=cat([part.label_N for part in labels]),
        probability_N=cat([part.probability_N for part in labels]),
        problem_N=torch.repeat_interleave(
            torch.tensor([number_of[problem_id] for problem_id in problem_of]),
            torch.tensor([int(k.sum()) for k in keep]),
        ),
        problem_ids=problem_ids,
        embed=embed,
        history_NJ2=cat([look_back(c.step, c.real_N) for c in comparisons]),
    )
