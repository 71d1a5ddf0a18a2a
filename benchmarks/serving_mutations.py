"""Wrong requests by the thousand: seeded mutations of valid bodies, as JSON or as bytes."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

# A server need not read to the end what is beyond its limit, and asyncio's streams then lose the
# refusal that it has sent.
_MOST_BYTES = 3 * 2**20

Container = dict[str, Any] | list[Any]

VALID: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "/v1/chat/completions",
        {
            "model": "mixed",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
            ],
            "max_tokens": 4,
            "temperature": 0.7,
            "top_p": 0.9,
            "seed": 7,
            "stop": ["x", "yz"],
            "n": 2,
            "stream": True,
            "stream_options": {"include_usage": True},
            "logprobs": True,
            "top_logprobs": 2,
            "routing": {"threshold": 0.5, "max_large_fraction": 0.5, "trace": True},
        },
    ),
    (
        "/v1/chat/completions",
        {
            "model": "small",
            "messages": [{"role": "user", "content": "Hello", "name": "x"}],
            "max_completion_tokens": 4,
            "frequency_penalty": 0.5,
            "metadata": {"a": "b"},
            "user": "u",
        },
    ),
    (
        "/v1/completions",
        {
            "model": "large",
            "prompt": ["one", "two"],
            "max_tokens": 4,
            "top_k": 5,
            "min_p": 0.05,
            "stop": "q",
            "logprobs": 3,
            "repetition_penalty": 1.1,
        },
    ),
    ("/v1/completions", {"model": "mixed", "prompt": [[1, 2, 3], [4]], "max_tokens": 4, "n": 2}),
)

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 9, 1.5, -0.0, 1e308, float("nan"), float("inf"), 2**31, 2**63,
    2**64, -(2**63) - 1, 10**50, "", " ", "0", "mixed", "\x00", "\ud800", "\u2028", "é" * 50,
    "x" * 20_000, [], {}, [[]], [None], [0], ["a"], {"a": 1}, {"": None}, [1, "a"], "<|im_end|>",
)  # fmt: skip


def mutated(generator: random.Random) -> tuple[str, bytes]:
    """Return a path and a body that was valid before one to three mutations."""
    path, valid = generator.choice(VALID)
    body = copy.deepcopy(valid)
    for _ in range(generator.randint(1, 3)):
        if body:
            generator.choice(_OF_JSON)(body, generator)
    content = json.dumps(body).encode()
    if generator.random() < 0.3:
        content = generator.choice(_OF_BYTES)(content, generator)
    return path, content[:_MOST_BYTES]


def _place(value: Container, generator: random.Random) -> tuple[Any, Any]:
    """Return a container somewhere inside, not empty, and one of its keys."""
    places: list[tuple[Any, Any]] = []

    def walk(container: Container) -> None:
        for key in container if isinstance(container, dict) else range(len(container)):
            places.append((container, key))
            inner = container[key]  # type: ignore[index]
            if isinstance(inner, dict | list):
                walk(inner)

    walk(value)
    return generator.choice(places)


def _replace(body: Container, generator: random.Random) -> None:
    container, key = _place(body, generator)
    container[key] = copy.deepcopy(generator.choice(ODD_VALUES))


def _remove(body: Container, generator: random.Random) -> None:
    container, key = _place(body, generator)
    del container[key]


def _wrap(body: Container, generator: random.Random) -> None:
    container, key = _place(body, generator)
    for _ in range(generator.choice((1, 2, 40, 250))):
        container[key] = [container[key]] if generator.random() < 0.5 else {"a": container[key]}


def _add(body: Container, generator: random.Random) -> None:
    container, _ = _place(body, generator)
    value = copy.deepcopy(generator.choice(ODD_VALUES))
    if isinstance(container, list):
        container.append(value)
    else:
        names = ("tools", "echo", "logit_bias", "best_of", "response_format", "a.b", "\n", "trace")
        container[generator.choice(names)] = value


def _repeat(body: Container, generator: random.Random) -> None:
    container, _ = _place(body, generator)
    if isinstance(container, list):
        container *= generator.choice((2, 10, 600))


_OF_JSON: tuple[Callable[[Container, random.Random], None], ...] = (
    _replace, _replace, _replace, _remove, _wrap, _add, _repeat,
)  # fmt: skip


def _flip(content: bytes, generator: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(generator.randint(1, 4)):
        changed[generator.randrange(len(changed))] = generator.randrange(256)
    return bytes(changed)


def _cut(content: bytes, generator: random.Random) -> bytes:
    return content[: generator.randrange(len(content))]


def _twice(content: bytes, generator: random.Random) -> bytes:
    return content + content[: generator.randrange(len(content))]


def _same_key(content: bytes, generator: random.Random) -> bytes:
    name = generator.choice((b'"model"', b'"max_tokens"', b'"a"'))
    return b"{" + name + b": 1, " + content[1:]


def _other_encoding(content: bytes, generator: random.Random) -> bytes:
    return content.decode().encode(generator.choice(("utf-16", "utf-32-le", "utf-8-sig")))


def _deep(content: bytes, generator: random.Random) -> bytes:
    # Deeper than Python's own parser can go.
    return content[:-1] + b', "a": ' + b"[" * generator.choice((500, 100_000))


_OF_BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip, _flip, _cut, _twice, _same_key, _other_encoding, _deep,
)  # fmt: skip
