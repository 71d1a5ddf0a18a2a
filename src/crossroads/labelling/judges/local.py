"""A language model on this machine as the judge.

Shapes: B rows, V vocabulary, 2 the answers "0" and "1".
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from crossroads.errors import ConfigError, EngineError
from crossroads.labelling.judges.base import JudgeContext, Judgement, Verdict, failed
from crossroads.labelling.judges.prompt import PROMPT_VERSION, messages
from crossroads.labelling.records import Case
from crossroads.models.base import CausalLM, Tokenizer, Want
from crossroads.models.pairs import LoadedModel, load_model

_CONTEXT_LENGTH = 4096  # of a model loaded for judging; a prompt takes about a quarter of it


class LocalLLMJudge:
    """Divergent if the model gives "1" at least `bound` of what it gives "0" and "1" together.

    The model is asked what the llm judge asks, and is not made to write: the logits of the two
    answers right after the prompt are compared. That suits instruction-tuned models; one that
    thinks before it answers is asked in the middle of a thought. With several continuations the
    mean of their probabilities counts.
    """

    name = "local"
    needs_continuations = True

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        *,
        bound: float = 0.5,
        max_rows: int = 16,
    ) -> None:
        """Ask `model`, which stays the caller's to close.

        Raises:
            ConfigError: the bound is out of range, or no row may run.
            EngineError: the tokenizer has no single token for an answer.
        """
        if not 0 < bound < 1:
            raise ConfigError(f"the local judge's bound must be between 0 and 1, got {bound}")
        if max_rows < 1:
            raise ConfigError(f"the local judge needs at least one row, got max_rows={max_rows}")
        self._model = model
        self._tokenizer = tokenizer
        self._bound = bound
        self._answer_ids = tuple(_single_id(tokenizer, answer) for answer in ("0", "1"))
        # One of the model's rows holds what the others share.
        self._rows = max(1, min(max_rows, model.info.max_rows - 1))
        self._free: weakref.finalize[..., LocalLLMJudge] | None = None

    @classmethod
    def of(
        cls, context: JudgeContext, *, weights: str | None = None, bound: float = 0.5
    ) -> LocalLLMJudge:
        """Return a judge on the pair's large model, or on `weights`, a model's name or path.

        Effects: `weights` are loaded; they are freed by `close`, or when the judge is forgotten.

        Raises:
            ConfigError: neither a pair nor weights, a large model behind a server, or a bound out
            of range.
            PairError, WeightsError, EngineError: the weights cannot be loaded.
        """
        if weights is None:
            if context.pair is None:
                raise ConfigError(
                    "the local judge has no pair to take its model from; add weights="
                )
            pair = context.pair
            if pair.large.info.most_top is not None:
                raise ConfigError(
                    "the local judge reads whole distributions, which the server of "
                    f"{pair.large.info.name} does not tell; add weights="
                )
            return cls(pair.large, pair.tokenizer, bound=bound, max_rows=context.max_rows)
        loaded = load_model(
            str(weights), context_length=_CONTEXT_LENGTH, max_rows=context.max_rows + 1
        )
        return cls.owning(loaded, bound=bound, max_rows=context.max_rows)

    @classmethod
    def owning(
        cls, loaded: LoadedModel, *, bound: float = 0.5, max_rows: int = 16
    ) -> LocalLLMJudge:
        """Return a judge that frees `loaded` when it is closed, forgotten, or cannot be made."""
        try:
            judge = cls(loaded.model, loaded.tokenizer, bound=bound, max_rows=max_rows)
        except BaseException:
            loaded.close()
            raise
        judge._free = weakref.finalize(judge, loaded.close)
        return judge

    @property
    def settings(self) -> Mapping[str, Any]:
        """The bound, the prompt's version, and which weights were asked."""
        info = self._model.info
        return {
            "model": info.name,
            "fingerprint": info.fingerprint,
            "bound": self._bound,
            "prompt": PROMPT_VERSION,
        }

    def close(self) -> None:
        """Free a model that was loaded for this judge; another's is left alone."""
        if self._free is not None:
            self._free()

    def judge(self, cases: Iterable[Case]) -> Iterator[Judgement]:
        """Yield one judgement per case, as soon as the last of its rows was read."""
        reader = _Reader(self._model)
        try:
            waiting: list[_Row] = []
            for case in cases:
                prompts = self._prompts(case)
                if isinstance(prompts, str):
                    yield failed(case, prompts)
                    continue
                asked = _Asked(case)
                waiting += [_Row(asked, prompt) for prompt in prompts]
                while len(waiting) >= self._rows:
                    batch, waiting = waiting[: self._rows], waiting[self._rows :]
                    yield from self._read(reader, batch)
            if waiting:
                yield from self._read(reader, waiting)
        finally:
            reader.release()

    def _prompts(self, case: Case) -> list[list[int]] | str:
        """Return one prompt per continuation, or why the case cannot be asked about."""
        if not case.continuations:
            return "no continuation to compare the reference with"
        prompts = [self._tokenizer.render(messages(case, span)) for span in case.continuations]
        longest, room = max(map(len, prompts)), self._model.info.context_length
        if longest > room:
            return f"the prompt has {longest} tokens, the model's context {room}"
        return prompts

    def _read(self, reader: _Reader, rows: Sequence[_Row]) -> Iterator[Judgement]:
        """Yield the judgements that these rows complete."""
        logits_BV = reader.logits([row.prompt for row in rows])
        probabilities = torch.softmax(logits_BV[:, self._answer_ids], dim=1)[:, 1].tolist()
        for row, probability in zip(rows, probabilities, strict=True):
            asked = row.asked
            asked.probabilities.append(probability)
            if len(asked.probabilities) == len(asked.case.continuations):
                yield Judgement(asked.case.id, self._verdict(asked.probabilities))

    def _verdict(self, probabilities: Sequence[float]) -> Verdict:
        mean = sum(probabilities) / len(probabilities)
        if not math.isfinite(mean):
            return Verdict(None, None, "the model put out numbers that are not finite")
        return Verdict(mean >= self._bound, mean, f"P(1) = {mean:.3f}")


@dataclass(slots=True)
class _Asked:
    """A case on its way, with the answers so far."""

    case: Case
    probabilities: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Row:
    asked: _Asked
    prompt: list[int]


class _Reader:
    """Reads prompts that begin alike: the shared part once, and again only where it changes."""

    def __init__(self, model: CausalLM) -> None:
        """Take one of the model's rows."""
        self._model = model
        self._shared = model.new_cache()
        self._held: list[int] = []

    def logits(self, prompts: Sequence[list[int]]) -> Tensor:
        """Return the logits [B, V] that follow each prompt."""
        # The last token of every prompt is left to read: its outputs are what is wanted.
        length = min(_common_length(prompts), min(map(len, prompts)) - 1)
        self._hold(prompts[0][:length])
        rests = [prompt[length:] for prompt in prompts]
        if len(prompts) == 1:  # a model may have this one row only
            self._held = prompts[0]
            return _whole(self._model, [self._shared], rests)
        forks = []
        try:
            for _ in prompts:
                forks.append(self._model.fork(self._shared, length))
            return _whole(self._model, forks, rests)
        finally:
            for fork in forks:
                fork.release()

    def _hold(self, tokens: list[int]) -> None:
        """Make the shared row hold exactly `tokens`, reading only what is new."""
        kept = _common_length([self._held, tokens])
        self._shared.crop(kept)
        if rest := tokens[kept:]:
            self._model.extend([self._shared], [rest])
        self._held = tokens

    def release(self) -> None:
        """Give the row back."""
        self._shared.release()


def _whole(model: CausalLM, caches: Sequence[Any], tokens: Sequence[Sequence[int]]) -> Tensor:
    logits_BV = model.extend(caches, tokens, Want(logits=True)).logits_NV
    assert logits_BV is not None
    return logits_BV


def _common_length(rows: Sequence[list[int]]) -> int:
    """Return how many first tokens all rows share."""
    # Whatever the smallest and the largest row share, all rows between them share too.
    first, last = min(rows), max(rows)
    for i, (a, b) in enumerate(zip(first, last, strict=False)):
        if a != b:
            return i
    return min(len(first), len(last))


def _single_id(tokenizer: Tokenizer, answer: str) -> int:
    ids = tokenizer.encode(answer)
    if len(ids) != 1:
        raise EngineError(
            f"the tokenizer writes {answer!r} as {len(ids)} tokens, and the local judge compares "
            "single tokens; give it another model with weights=, or use the llm judge"
        )
    return ids[0]
