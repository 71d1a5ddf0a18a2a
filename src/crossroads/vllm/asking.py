"""What is asked of a vLLM server, and what its answer means: with our plugin, and without."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from crossroads.decoding.mixed import MixedModels
from crossroads.decoding.request import Request
from crossroads.errors import EngineError, RequestError
from crossroads.models import remote_drawing
from crossroads.models.base import MOST_TOP
from crossroads.models.remote_client import VllmClient
from crossroads.models.remote_drawing import ordered, plain
from crossroads.models.remote_wire import Order, ReservedIds, Step, read_step, reserve
from crossroads.models.vllm_replies import WireToken
from crossroads.routing.policy import policy_text
from crossroads.vllm.row import Answer


def check_served(request: Request, *, large_has_plugin: bool) -> None:
    """Refuse what two servers cannot do together.

    Raises:
        RequestError: names the field.
    """
    policy_text(request.policy)
    if request.lossless and not request.sampling.greedy:
        raise RequestError(
            "lossless sampling needs the distribution that the small model drew from, which a vLLM "
            "server does not tell; send temperature 0, or leave lossless out"
        )
    if large_has_plugin:
        return
    if request.sampling.needs_logits:
        raise RequestError(
            "the large model's server draws by its own random numbers and counts penalties its "
            "own way; install the plugin there too, or send temperature 0 and no penalties"
        )
    if _tops_to_judge(request.revise_below) > MOST_TOP:
        raise RequestError(
            f"the large model's server tells the {MOST_TOP} likeliest tokens, too few to see a "
            f"probability below {1 / MOST_TOP:g}; install the plugin there too, or send a "
            f"revise_below of at least that, got {request.revise_below:g}"
        )


def _tops_to_judge(below: float) -> int:
    """Return of how many tokens a probability below this shows; see `decoding.revision.top_k`."""
    return math.floor(1 / below) if below > 0 else 0


@dataclass(frozen=True, slots=True)
class Asking:
    """How one model is asked for a row's next tokens.

    order: what the row asks for, as it stands when a server is asked (an answer that breaks off is
    asked for again). plugin: whether it is ours that answers. stop: ids at which the server ends.
    """

    order: Callable[[], Order]
    request: Request
    reserved: ReservedIds
    plugin: bool
    stop: tuple[int, ...] = ()

    def options(self, came: int) -> Mapping[str, Any]:
        """Return the fields of vLLM's completion request, once so many tokens have come."""
        order = self.order()
        if self.plugin:
            return ordered(order, list(self.stop))(0)
        told = self.request.logprobs
        if order.judged:
            told = max(told or 0, _tops_to_judge(self.request.revise_below))
        return {**plain(order.sampling, list(self.stop))(came), "logprobs": told}

    def step(self, token: WireToken) -> Step:
        """Return what the plugin tells with a token.

        Raises:
            EngineError: it was not the plugin that answered.
        """
        return read_step(token.token_id, token.values, self.reserved)

    def answer(self, token: WireToken) -> Answer:
        """Return a token as what a model would write.

        Raises:
            EngineError: the server tells something else than what was asked for.
        """
        if self.plugin:
            step = self.step(token)
            return Answer(step.proposed_id, step.logprobs)
        if any(value > 1e-3 for value in token.values.values()):
            raise EngineError(
                "a server without the plugin tells logits instead of log-probabilities; start it "
                "with --logprobs-mode raw_logprobs"
            )
        return Answer(token.token_id, token.values)


async def has_plugin(client: VllmClient, models: MixedModels) -> bool:
    """Return whether a model's servers draw by our orders; see `remote_drawing.has_plugin`.

    Raises:
        EngineError: one does not answer.
    """
    reserved = reserve(models.tokenizer, models.small.info.vocab_size)
    return await remote_drawing.has_plugin(client, reserved)
