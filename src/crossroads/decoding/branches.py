"""Many continuations of the same texts: branches that share the cache of their stem.

A stem is a text that has been read once; a branch leaves it at some token with another token and
goes on by itself. Branches of several stems run in one batch. Nothing before a branch's own token
is read for it: its cache is a fork of the stem's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from crossroads.decoding.served import write_jobs
from crossroads.errors import EngineError
from crossroads.models.base import CausalLM, KVCache, Want
from crossroads.models.served import Passage, ServedLM
from crossroads.sampling import SamplingParams, row_generator, sample
from crossroads.types import Role


class Stop(Protocol):
    """Decides where a branch ends."""

    def add(self, token_id: int) -> bool:
        """Take the branch's next token; return whether the branch ends."""


@dataclass(frozen=True, slots=True)
class Branch:
    """A text that leaves its stem before token `at` and goes on with `first`.

    `stop` hears of every token, `first` included.
    """

    id: str
    at: int
    first: int
    stop: Stop
    sampling: SamplingParams = SamplingParams()  # noqa: RUF009  frozen


@dataclass(frozen=True, slots=True)
class Stem:
    """A text and the branches that leave it, at least one; each at token 1 or later."""

    token_ids: Sequence[int]
    branches: Sequence[Branch]


@dataclass(slots=True)
class _Row:
    branch: Branch
    cache: KVCache
    generator: np.random.Generator
    tokens: list[int] = field(default_factory=list)


def grow(
    model: CausalLM, role: Role, stems: Iterable[Stem], *, max_rows: int
) -> Iterator[tuple[Branch, tuple[int, ...]]]:
    """Yield each branch with its tokens, `first` included, as branches end.

    A branch ends where its `stop` says so or where the context is full. Stems are taken one at a
    time, when there is room for their branches; at most `max_rows` caches are alive, the stem's
    own included. `role` chooses the random streams. A model behind servers writes each branch by
    itself, in one request, which is closed where the branch ends.

    Raises:
        EngineError: fewer than two rows.
    """
    rows = min(max_rows, model.info.max_rows)
    if rows < 2:
        raise EngineError(
            f"branches need at least 2 rows at once, {model.info.name} may use {rows}; raise rows"
        )
    if isinstance(model, ServedLM):
        yield from _grow_served(model, role, stems, rows - 1)
        return
    crown = _Crown(model, role, iter(stems))
    try:
        while True:
            yield from crown.fill(rows - 1)
            if not crown.rows:
                return
            yield from crown.step()
    finally:
        crown.close()


class _Crown:
    """The rows that grow, and the stem that the next ones leave."""

    def __init__(self, model: CausalLM, role: Role, stems: Iterator[Stem]) -> None:
        self._model = model
        self._role = role
        self._stems = stems
        self._stem: KVCache | None = None
        self._waiting: deque[Branch] = deque()
        self.rows: list[_Row] = []

    def fill(self, most: int) -> Iterator[tuple[Branch, tuple[int, ...]]]:
        """Start branches until `most` of them grow; yield those that end with their first token."""
        while len(self.rows) < most and (self._waiting or self._next_stem()):
            branch = self._waiting.popleft()
            full = branch.at + 1 >= self._model.info.context_length
            if branch.stop.add(branch.first) or full:
                yield branch, (branch.first,)
            else:
                assert self._stem is not None
                cache = self._model.fork(self._stem, branch.at)
                generator = row_generator(branch.sampling.seed, self._role)
                self.rows.append(_Row(branch, cache, generator, [branch.first]))
            if not self._waiting:
                self._drop_stem()

    def step(self) -> Iterator[tuple[Branch, tuple[int, ...]]]:
        """Write one token in every row and yield the branches that end with it."""
        want = Want(logits=any(not row.branch.sampling.greedy for row in self.rows))
        caches = [row.cache for row in self.rows]
        output = self._model.extend(caches, [row.tokens[-1:] for row in self.rows], want)
        going = []
        ended = []
        for i, row in enumerate(self.rows):
            logits_V = None if output.logits_NV is None else output.logits_NV[i]
            best = int(output.top_ids_NK[i, 0])
            token = sample(best, logits_V, row.branch.sampling, row.generator)
            row.tokens.append(token)
            full = row.cache.length + 1 >= self._model.info.context_length
            if row.branch.stop.add(token) or full:
                row.cache.release()
                ended.append(row)
            else:
                going.append(row)
        self.rows = going
        for row in ended:
            yield row.branch, tuple(row.tokens)

    def close(self) -> None:
        """Release every cache."""
        self._drop_stem()
        for row in self.rows:
            row.cache.release()
        self.rows = []

    def _next_stem(self) -> bool:
        stem = next(self._stems, None)
        if stem is None:
            return False
        self._stem = self._model.new_cache()
        # Only as far as the last branch leaves; and if that is one place, the rest is not read.
        self._model.extend([self._stem], [stem.token_ids[: max(b.at for b in stem.branches)]])
        self._waiting.extend(stem.branches)
        return True

    def _drop_stem(self) -> None:
        if self._stem is not None:
            self._stem.release()
        self._stem = None


def _grow_served(
    model: ServedLM, role: Role, stems: Iterable[Stem], most: int
) -> Iterator[tuple[Branch, tuple[int, ...]]]:
    """Yield each branch with its tokens; see `grow`."""
    at_once: list[Branch] = []  # those that end with their first token
    jobs = _jobs(model.info.context_length, role, stems, at_once)
    for job in write_jobs(model, jobs, most):
        yield from ((branch, (branch.first,)) for branch in at_once)
        at_once.clear()
        yield job.branch, tuple(job.tokens)
    yield from ((branch, (branch.first,)) for branch in at_once)


def _jobs(room: int, role: Role, stems: Iterable[Stem], at_once: list[Branch]) -> Iterator[_Job]:
    for stem in stems:
        for branch in stem.branches:
            left = room - branch.at - 1
            if branch.stop.add(branch.first) or left <= 0:
                at_once.append(branch)
                continue
            prefix = (*stem.token_ids[: branch.at], branch.first)
            passage = Passage(
                prefix, left, role, branch.sampling, len(prefix), row=tuple(stem.token_ids)
            )
            yield _Job(branch, passage, [branch.first])


@dataclass(slots=True)
class _Job:
    branch: Branch
    passage: Passage
    tokens: list[int]

    def add(self, token_id: int) -> bool:
        self.tokens.append(token_id)
        full = len(self.tokens) > self.passage.max_tokens
        return self.branch.stop.add(token_id) or full
