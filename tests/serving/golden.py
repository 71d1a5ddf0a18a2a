"""Transcripts of small streams, byte for byte.

`PYTHONPATH=tests python tests/serving/golden.py` writes them anew. Each has one choice, as nothing
says which of several comes first. What differs between two runs stands as a constant: ids and
times. Other numbers are rounded, as machines differ in their last digits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossroads.errors import EngineError
from crossroads.models.pairs import Pair
from laws.pairs import scripted_pair
from serving.calls import chat, completion, post
from serving.live_server import Failing, Live, live

FOLDER = Path(__file__).parent / "golden"
DIGITS = 3
_CONSTANT = (
    (re.compile(rb'"id":"(chatcmpl|cmpl)-[0-9a-f]{32}"'), rb'"id":"\1-0"'),
    (re.compile(rb'"created":\d+'), b'"created":0'),
    (re.compile(rb'"seconds":[\d.e-]+'), b'"seconds":0'),
)
_FLOAT = re.compile(rb"(?<=[:,\[])-?\d+\.\d+(?:e-?\d+)?")

STREAMS: dict[str, dict[str, Any]] = {
    "chat": chat(max_tokens=4, stream_options={"include_usage": True}),
    "chat_to_its_end": chat("QUESTION"),
    "chat_with_trace": chat(max_tokens=3, logprobs=True, routing={"trace": True}),
    "completion": completion(max_tokens=3, logprobs=1, stream_options={"include_usage": True}),
    "error": chat("BAD", stream_options={"include_usage": True}),
}


def server_pair() -> Pair:
    """Return a pair of which the small model fails after two tokens where a prompt is BAD."""
    pair = scripted_pair()
    bad = pair.tokenizer.encode("BAD")

    def fails(row: Sequence[int]) -> bool:
        return list(row[:3]) == bad and len(row) > 4

    small = Failing(pair.small, EngineError("decode returned -3"), fails)
    return Pair(pair.name, small, pair.large, pair.tokenizer)


def transcript(server: Live, name: str) -> bytes:
    """Return what the server streams, without what differs from run to run."""
    content = post(server, {**STREAMS[name], "stream": True}).content
    for pattern, constant in _CONSTANT:
        content = pattern.sub(constant, content)
    return _FLOAT.sub(lambda found: b"%.*f" % (DIGITS, float(found[0])), content)


def path(name: str) -> Path:
    """Return where a transcript is kept."""
    return FOLDER / f"{name}.txt"


def write() -> None:
    """Write all of them."""
    with live(server_pair()) as server:
        for name in STREAMS:
            path(name).write_bytes(transcript(server, name))


if __name__ == "__main__":
    write()
