"""What vLLM's servers answer, read: events of a stream, log-probabilities, refusals."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crossroads.errors import RequestError
from crossroads.models.server_pool import ServerFaultError

_REFUSALS = (400, 404, 405, 422)
"""The request is wrong, and would be elsewhere."""


@dataclass(frozen=True, slots=True)
class WireToken:
    """A token that came back, and the values that were reported at its position, by id."""

    token_id: int
    values: Mapping[int, float]


async def events(chunks: AsyncIterator[bytes]) -> AsyncGenerator[dict[str, Any]]:
    """Yield the events of a stream.

    Raises:
        ServerFaultError: it ended without saying that it is complete.
    """
    done = False
    async for line in _lines(chunks):
        if line == b"data: [DONE]":
            done = True
        elif line.startswith(b"data: "):
            yield json.loads(line[6:])
    if not done:
        raise ServerFaultError("the connection ended in the middle of an answer")


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """Yield the lines of an event stream, which end with a newline alone.

    A text may hold other characters that Python, and `aiter_lines`, take for the end of a line:
    U+0085, U+2028 and more; JSON does not escape them.
    """
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r")
    yield rest


def tokens_of(event: Mapping[str, Any]) -> list[WireToken]:
    """Return the tokens of one event, or of an answer that came whole.

    Raises:
        RequestError: it is a refusal, found out once the stream had begun. ServerFaultError: it is
        another error.
    """
    if "error" in event:
        status = event["error"].get("code") if isinstance(event["error"], dict) else None
        raise refused("the server", status, json.dumps(event))
    tokens = []
    for choice in event["choices"]:
        ids = choice.get("token_ids") or []
        logprobs = choice.get("logprobs") or {}
        tops = logprobs.get("top_logprobs") or [None] * len(ids)
        for token_id, top in zip(ids, tops, strict=True):
            values = {int(k.removeprefix("token_id:")): v for k, v in (top or {}).items()}
            tokens.append(WireToken(token_id, values))
    return tokens


def prompt_values(reply: Mapping[str, Any], count: int) -> list[Mapping[int, float]]:
    """Return the log-probabilities by id at the last `count` >= 1 tokens of a prompt."""
    return [
        {int(token_id): value["logprob"] for token_id, value in found.items()}
        for found in reply["choices"][0]["prompt_logprobs"][-count:]
    ]


def numbers_of(reply: Mapping[str, Any]) -> Tensor:
    """Return the numbers [N] of a pooling answer, float32."""
    data = bytearray(base64.b64decode(reply["data"][0]["data"]))
    return torch.frombuffer(data, dtype=torch.float32)


def refused(server: str, status: int | None, text: str) -> Exception:
    """Return what a server's error reply says as an error: a refusal, or that it fails for now."""
    if status not in _REFUSALS:
        return ServerFaultError(f"{status or ''} {_message(text)}".strip())
    try:
        field = json.loads(text)["error"]["param"]
    except (ValueError, LookupError, TypeError):
        field = None
    if field in ("logprobs", "prompt_logprobs"):
        return RequestError(
            f"{server} tells fewer log-probabilities than this takes ({_message(text)}); start it "
            "with a higher --max-logprobs, or ask for fewer"
        )
    return RequestError(f"{server} refuses the request: {_message(text)}")


def _message(text: str) -> str:
    """Return the sentence in an error reply."""
    try:
        value = json.loads(text)
        error = value.get("error", value)
        return str(error.get("message", error) if isinstance(error, dict) else error)[:300]
    except (ValueError, AttributeError):
        return text[:300]
