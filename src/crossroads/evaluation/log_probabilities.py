"""The log-probability of a given text under one model.

Shapes: N positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from crossroads.errors import RequestError
from crossroads.models.base import CausalLM, Want

CHUNK = 128
"""Scored positions per call: each holds a distribution over the whole vocabulary."""


class Scorer:
    """Reads given texts with one model and one cache; what a text shares with the last is kept.

    Texts in sorted order share most: the choices of one question its prompt, the questions of one
    task their examples.
    """

    def __init__(self, model: CausalLM) -> None:
        """Take a cache of `model`."""
        self._model = model
        self._cache = model.new_cache()
        self._read: Sequence[int] = ()

    def score(self, ids: Sequence[int], start: int) -> tuple[float, bool]:
        """Return log P(ids[start:] | ids[:start]) in nats, and whether greedy decoding writes it.

        `start` is at least 1.
        """
        if start >= len(ids):
            return 0.0, True
        first = start - 1  # the position whose output is about ids[start]
        at = min(_shared(self._read, ids), first)
        self._cache.crop(at)
        self._read = ids[:-1]
        total, greedy = 0.0, True
        while at < len(ids) - 1:
            end = min(max(at, first) + CHUNK, len(ids) - 1)
            count = end - max(at, first)
            want = Want((count,), logits=True)
            output = self._model.extend([self._cache], [ids[at:end]], want)
            assert output.logits_NV is not None
            next_N = torch.tensor(ids[end - count + 1 : end + 1])
            logits_N = output.logits_NV.gather(1, next_N[:, None])[:, 0]
            total += float((logits_N - output.logsumexp_N).double().sum())
            greedy &= bool((output.top_ids_NK[:, 0] == next_N).all())
            at = end
        return total, greedy

    def close(self) -> None:
        """Give the cache back."""
        self._cache.release()


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many ids two rows begin with in common."""
    differ = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differ, min(len(a), len(b)))


def log_probabilities(
    model: CausalLM, rows: Sequence[tuple[Sequence[int], int]]
) -> Iterator[tuple[int, tuple[float, bool]]]:
    """Yield (number of the row, its `Scorer.score`) of rows (ids, start), in an order of its own.

    Raises:
        RequestError: a row that the model's context does not hold; nothing was read then.
    """
    room = model.info.context_length + 1  # the last token is predicted and never read
    longest = max((len(ids) for ids, _ in rows), default=0)
    if longest > room:
        raise RequestError(
            f"a text of {longest} tokens does not fit {model.info.name}'s context of "
            f"{model.info.context_length}; load with a larger context"
        )
    scorer = Scorer(model)
    try:
        for number in sorted(range(len(rows)), key=lambda i: tuple(rows[i][0])):
            yield number, scorer.score(*rows[number])
    finally:
        scorer.close()
