"""A labelled dataset of random but valid numbers, written without any model.

Not named `datasets`: pytest puts test folders on the path, and that is a package's name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from crossroads.artifacts import save_tensors, sha256_file, write_json
from crossroads.dataset import (
    CARD,
    EMBEDDINGS,
    FORMAT,
    LABELS,
    UNJUDGED,
    Comparison,
    LabelledDataset,
    LargeOutputs,
    ResponseRow,
)
from crossroads.models.base import Want, summarise
from crossroads.routing.checkpoint import SmallModelId
from crossroads.types import Label, Split

VOCAB, HIDDEN, TOP_K, LARGE_TOP_K = 200, 12, 100, 20


def random_comparison(
    positions: int, prompt_length: int, generator: torch.Generator, vocab: int = VOCAB
) -> Comparison:
    """Return outputs of two models that agree on about 7 of 10 tokens."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    large_NV = 3 * normal(positions, vocab)
    small_NV = 0.8 * large_NV + normal(positions, vocab)
    want = Want(top_k=min(TOP_K, vocab), hidden=True)
    step = summarise(small_NV, (positions,), want, normal(positions, HIDDEN))
    large = summarise(large_NV, (positions,), Want(top_k=LARGE_TOP_K))
    real_N = large.top_ids_NK[:, 0]
    logprob_NV = large_NV.log_softmax(dim=1)
    return Comparison(
        step=step,
        real_N=real_N,
        position_N=torch.arange(positions) + prompt_length,
        large=LargeOutputs(
            logprob_real_N=logprob_NV.gather(1, real_N[:, None])[:, 0],
            logprob_small_N=logprob_NV.gather(1, step.top_ids_NK[:, :1])[:, 0],
            top_ids_NK=large.top_ids_NK,
            top_logprobs_NK=large.top_logits_NK - large.logsumexp_N[:, None],
        ),
    )


def random_labels(
    comparison: Comparison, generator: torch.Generator, unjudged: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return labels that fit the mismatches, and probabilities; a share of them is unjudged."""
    chance_N = torch.rand(len(comparison.real_N), generator=generator)
    label_N = torch.where(chance_N < 0.4, int(Label.DIVERGENT), int(Label.NEUTRAL))
    label_N = torch.where(chance_N > 1 - unjudged, UNJUDGED, label_N)
    label_N = torch.where(comparison.mismatch_N, label_N, int(Label.IDENTICAL)).to(torch.uint8)
    probability_N = torch.where(comparison.mismatch_N, 1 - chance_N, 0.0)
    return label_N, torch.where(label_N == UNJUDGED, torch.nan, probability_N).half()


def write_dataset(
    folder: Path,
    *,
    problems: int = 10,
    samples: int = 1,
    positions: tuple[int, int] = (5, 30),
    prompt_length: int = 4,
    unjudged: float = 0.1,
    seed: int = 0,
    vocab: int = VOCAB,
    domains: tuple[str, ...] = ("sums", "words"),
    change: Callable[[int, Comparison], Comparison] = lambda _, comparison: comparison,
) -> LabelledDataset:
    """Write a dataset and return it opened.

    `positions` bounds the lengths of the responses, the upper one excluded. `change` replaces the
    comparison of a response, by its number, after its labels were drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    splits = [*Split, Split.TRAIN]
    rows, labels, probabilities, proposed, start = [], [], [], [], 0
    for number in range(problems * samples):
        problem, sample = divmod(number, samples)
        length = int(torch.randint(*positions, (1,), generator=generator))
        drawn = random_comparison(length, prompt_length + problem % 3, generator, vocab)
        label_N, probability_N = random_labels(drawn, generator, unjudged)
        comparison = change(number, drawn)
        file = f"compare/{number}.safetensors"
        save_tensors(folder / file, comparison.to_tensors(), {})
        domain, split = domains[problem % len(domains)], splits[problem % len(splits)]
        rows.append(ResponseRow(f"p{problem}", sample, domain, split, file, start, length))
        labels.append(label_N)
        probabilities.append(probability_N)
        proposed.append(comparison.proposed_N)
        start += length
    save_tensors(
        folder / LABELS,
        {"label": torch.cat(labels), "probability": torch.cat(probabilities)},
        {},
    )
    ids_M = torch.unique(torch.cat(proposed))
    rows_ME = torch.randn(len(ids_M), HIDDEN, generator=generator).half()
    save_tensors(folder / EMBEDDINGS, {"ids": ids_M, "rows": rows_ME}, {})
    write_card(folder, rows, vocab)
    return LabelledDataset.open(folder)


def write_card(folder: Path, rows: list[ResponseRow], vocab: int = VOCAB) -> None:
    """Write the card over what is in the folder."""
    files = [LABELS, EMBEDDINGS, *(row.file for row in rows)]
    card = {
        "format": FORMAT,
        "pair": "random",
        "small": asdict(SmallModelId("tiny-small", "scripted", "f" * 64, HIDDEN, vocab)),
        "large": {"name": "tiny-large", "fingerprint": "e" * 64},
        "judges": [{"name": "drawn", "seed": 0}],
        "combine": None,
        "responses": [asdict(row) for row in rows],
        "base_rates": {},
        "sha256": {file: sha256_file(folder / file) for file in files},
        "provenance": {"command": "crossroads label out", "commit": "0" * 40},
    }
    write_json(folder / CARD, card)


def with_step(comparison: Comparison, **changes: torch.Tensor) -> Comparison:
    """Return a comparison with changed outputs of the small model."""
    return replace(comparison, step=replace(comparison.step, **changes))
