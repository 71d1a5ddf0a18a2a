"""How a vLLM server is told to draw: by our orders where it has the plugin, else by itself.

With the plugin the tokens are those that the same model would draw in the process, seed for seed.
Without it they are greedy, or drawn by the server's own random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from crossroads.errors import EngineError
from crossroads.models.remote_client import VllmClient
from crossroads.models.remote_wire import NEVER, Order, ReservedIds, read_step
from crossroads.sampling import SamplingParams
from crossroads.types import Role

Options = Callable[[int], Mapping[str, Any]]
"""Fields of a completion request, once so many of its tokens have come."""


def ordered(order: Order, stop: list[int]) -> Options:
    """Return the options of a server with the plugin. stop: ids after which it is to end."""
    return lambda came: {
        **_TAKE_WHAT_IS_THERE,
        "logprobs": order.reported,
        "stop_token_ids": stop,
        "vllm_xargs": replace(order, drawn=order.drawn + came).to_xargs(),
    }


_TAKE_WHAT_IS_THERE = {
    "temperature": 0,
    # Said, because a server takes what is not said from the model's generation_config.json, and
    # applies penalties to the plugin's row.
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
}
"""The plugin draws and penalises."""


def plain(params: SamplingParams, stop: list[int]) -> Options:
    """Return the options of a server that draws by itself. stop: as in `ordered`."""
    return lambda came: {
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k or -1,
        "min_p": params.min_p,
        "seed": (params.seed + came) % 2**63,
        "frequency_penalty": params.frequency_penalty,
        "presence_penalty": params.presence_penalty,
        "repetition_penalty": params.repetition_penalty,
        "stop_token_ids": stop,
    }


async def has_plugin(client: VllmClient, reserved: ReservedIds) -> bool:
    """Return whether all of the servers draw by our orders: each is asked for one token.

    Raises:
        EngineError: one does not answer.
    """
    order = Order(Role.SMALL, NEVER, SamplingParams(), 0, 1, reserved)
    for server in client.apart():
        try:
            if not await _obeys(server, order):
                return False
        finally:
            await server.close()
    return True


async def _obeys(client: VllmClient, order: Order) -> bool:
    # A server may compile for minutes at its first request for log-probabilities.
    asked = client.write([1], 1, ordered(order, []), seconds=client.patience.text)
    async with aclosing(asked) as tokens:
        async for token in tokens:
            try:
                read_step(token.token_id, token.values, order.reserved)
            except EngineError:
                return False
            return True
    return False
