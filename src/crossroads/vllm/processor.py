"""Entry point `vllm.logits_processors`: draws the small model's proposal and asks the router.

It runs where vLLM would choose the next tokens, once per step for the whole batch. A row that
brings an order (`wire.Order`) leaves with the token that the row is to have: the proposal, or
the hand-over id where its score reaches the row's threshold. Rows without one are left alone.

Drawing here, from the same function and the same random numbers as every other loop of Crossroads,
makes sampled rows equal to the in-process loop's, too, and lets the router see the drawn token.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from crossroads.errors import RouterError
from crossroads.models.vllm_server import ROUTER
from crossroads.routing.checkpoint import load_router, router_by_name
from crossroads.routing.features import needs_embedding, needs_hidden, needs_history
from crossroads.routing.routers.base import Router
from crossroads.routing.routers.heuristics import HEURISTICS
from crossroads.vllm.architectures import hidden_of
from crossroads.vllm.deciding import OrderedRow, decide, ordered_row, read_order, say


class RouterProcessor(LogitsProcessor):
    """Routes the rows that ask for it."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse an order that makes no sense; the server answers 400."""
        read_order(sampling_params.extra_args)

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        """Load the router, if there is to be one.

        Raises:
            RouterError: it belongs to another model, or reads what vLLM cannot give it.
        """
        del device, is_pin_memory
        self._rows: dict[int, OrderedRow] = {}
        self._vocab_size: int = vllm_config.model_config.get_vocab_size()
        name = os.environ.get(ROUTER)
        self._router = None if not name else _load(name, vllm_config)

    def is_argmax_invariant(self) -> bool:
        """Return False: it decides the token."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the rows that come, go and change places."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._rows.pop(index, None)
        for index, params, prompt, output in batch_update.added:
            self._rows.pop(index, None)
            row = ordered_row(params.extra_args, prompt or (), output)
            # Left alone, the row answers without our numbers, and whoever asked sees that.
            if row is not None and row.order.largest_id < self._vocab_size:
                self._rows[index] = row
        for first, second, kind in batch_update.moved:
            moved, other = self._rows.pop(first, None), self._rows.pop(second, None)
            if moved is not None:
                self._rows[second] = moved
            if kind is MoveDirectionality.SWAP and other is not None:
                self._rows[first] = other

    def apply(self, logits: Tensor) -> Tensor:
        """Decide the rows' next tokens, in place."""
        indices = sorted(index for index in self._rows if index < logits.shape[0])
        if not indices or self._router is None:
            return logits
        rows = [self._rows[index] for index in indices]
        hidden_RH = None
        if needs_hidden(self._router.inputs):
            hidden_NH = hidden_of(logits)
            if hidden_NH is None:
                raise RouterError("this architecture's hidden states could not be kept")
            hidden_RH = hidden_NH[indices].float().cpu()
        steps = decide(rows, logits[indices].cpu(), hidden_RH, self._router)
        say(rows, steps, [logits[index] for index in indices])
        return logits


def _load(name: str, vllm_config: VllmConfig) -> Router:
    model: Any = vllm_config.model_config
    if name in HEURISTICS:
        return router_by_name(name, model.get_vocab_size())
    loaded = load_router(Path(name))
    router, expected = loaded.router, loaded.card.small
    found = (model.get_hidden_size(), model.get_vocab_size())
    if (expected.hidden_size, expected.vocab_size) != found:
        raise RouterError(
            f"the router in {name} was trained for {expected.name} (hidden size "
            f"{expected.hidden_size}, vocabulary {expected.vocab_size}), but this server has a "
            f"model of hidden size {found[0]} and vocabulary {found[1]}"
        )
    for needs, what in ((needs_history, "the row's last tokens"), (needs_embedding, "embeddings")):
        if needs(router.inputs):
            raise RouterError(
                f"the router in {name} reads {what}, which the vLLM plugin cannot give it; train "
                "one without that input, or use the transformers engine"
            )
    return router
