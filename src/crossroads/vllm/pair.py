"""A pair whose models are in vLLM servers: what they are, and whether they fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from torch import Tensor

from crossroads.decoding.mixed import MixedModels
from crossroads.errors import EngineError
from crossroads.models.base import CausalLM, KVCache, StepOutput, Want
from crossroads.models.hf_describe import describe
from crossroads.models.hf_tokenizer import HfTokenizer
from crossroads.models.pairs import check_pair
from crossroads.routing.choose import ChosenRouter, choose_router
from crossroads.types import ModelInfo

ENGINE = "vllm"


class ElsewhereLM:
    """A model that is not in this process: it tells what it is, and nothing else."""

    def __init__(self, info: ModelInfo) -> None:
        """Stand for the model."""
        self._info = info

    @property
    def info(self) -> ModelInfo:
        """What the model is."""
        return self._info

    def new_cache(self) -> KVCache:
        """Refuse."""
        self._refuse()

    def fork(self, cache: KVCache, length: int) -> KVCache:
        """Refuse."""
        self._refuse()

    def extend(
        self,
        caches: Sequence[KVCache],
        new_tokens: Sequence[Sequence[int]],
        want: Want = Want(),  # noqa: B008
    ) -> StepOutput:
        """Refuse."""
        self._refuse()

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Refuse."""
        self._refuse()

    def close(self) -> None:
        """Nothing to free."""

    def _refuse(self) -> NoReturn:
        raise EngineError(f"{self._info.name} is in a vLLM server; ask it through the VllmEngine")


@dataclass(frozen=True, slots=True)
class ElsewherePair:
    """Two models that are elsewhere, their tokenizer, and the router that the plugin uses."""

    name: str
    models: MixedModels
    chosen: ChosenRouter

    def within(self, contexts: Sequence[int]) -> ElsewherePair:
        """Return the pair with no longer context than its servers have; 0: one does not say."""
        known = [context for context in contexts if context]

        def cut(model: CausalLM) -> ElsewhereLM:
            length = min([model.info.context_length, *known])
            return ElsewhereLM(replace(model.info, context_length=length))

        models = replace(self.models, small=cut(self.models.small), large=cut(self.models.large))
        return replace(self, models=models)


def describe_pair(
    small: str,
    large: str,
    router: str | None,
    threshold: float | None,
    *,
    context_length: int | None = None,
    max_rows: int = 64,
) -> ElsewherePair:
    """Return the pair of two folders or hub repositories; no weights are read.

    Raises:
        PairError: their tokenizers differ. RouterError: the router is for other models.
        EngineError, WeightsError, ConfigError: a model cannot be described.
    """
    sizes = {"engine": ENGINE, "context_length": context_length, "max_rows": max_rows}
    small_info = describe(small, **sizes)  # type: ignore[arg-type]
    large_info = describe(large, **sizes)  # type: ignore[arg-type]
    tokenizer, other = HfTokenizer.load(small), HfTokenizer.load(large)
    check_pair(tokenizer.pieces(), other.pieces(), small_info.name, large_info.name)
    chosen = choose_router(router, small_info, large_info)
    cut = chosen.threshold if threshold is None else threshold
    models = MixedModels(
        ElsewhereLM(small_info), ElsewhereLM(large_info), chosen.router, tokenizer, cut
    )
    return ElsewherePair(f"{small_info.name}+{large_info.name}", models, chosen)
