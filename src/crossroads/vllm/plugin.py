"""Entry point `vllm.general_plugins`: called in every process of a vLLM server before it loads.

Nothing happens unless CROSSROADS_ROUTER says which router is to be used.
"""

from __future__ import annotations

import os

from crossroads.models.vllm_server import ROUTER


def register() -> None:
    """Keep hidden states, where a router will read them."""
    if os.environ.get(ROUTER):
        from crossroads.vllm.architectures import register_all  # noqa: PLC0415

        register_all()
