"""A client made of sockets: it says exactly what a test wants said, and goes when it wants to."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

from serving.live_server import Live

SECONDS = 20.0  # no call lasts as long unless something hangs

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply that was read to its end; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.content)

    @property
    def error(self) -> dict[str, Any]:
        """What `error` says; fails unless it has OpenAI's shape, and the right media type."""
        assert self.headers["content-type"] == "application/json"
        value = self.json
        assert list(value) == ["error"]
        assert list(value["error"]) == ["message", "type", "param", "code"]
        assert isinstance(value["error"]["message"], str)
        return dict(value["error"])

    @property
    def events(self) -> list[Any]:
        """The events of a stream; "[DONE]" is a text."""
        return events(self.content)


def chat(text: str = "HELLO", **fields: Any) -> dict[str, Any]:
    """Return the body of a chat."""
    return {"model": "mixed", "messages": [{"role": "user", "content": text}], **fields}


def completion(prompt: Any = "HELLO", **fields: Any) -> dict[str, Any]:
    """Return the body of a completion."""
    return {"model": "mixed", "prompt": prompt, **fields}


def events(content: bytes) -> list[Any]:
    """Return what a stream says; fails unless it is server-sent events and nothing else."""
    assert content.endswith(b"\n\n") or not content
    found: list[Any] = []
    for block in content.decode().split("\n\n")[:-1]:
        assert block.startswith("data: ")
        assert "\n" not in block
        said = block.removeprefix("data: ")
        found.append(said if said == "[DONE]" else json.loads(said))
    return found


@contextmanager
def connection(server: Live) -> Iterator[HTTPConnection]:
    """Keep a connection open for the length of a block."""
    place = urlsplit(server.url)
    assert place.hostname is not None
    kept = HTTPConnection(place.hostname, place.port, timeout=SECONDS)
    try:
        yield kept
    finally:
        kept.close()


def say(
    kept: HTTPConnection,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Return the reply to a request on a connection that stays open."""
    kept.request(method, path, body, dict(headers or {}))
    found = kept.getresponse()
    named = {name.lower(): value for name, value in found.getheaders()}
    return Reply(found.status, named, found.read())


def call(
    server: Live,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Return the reply to a request on a connection of its own."""
    with connection(server) as kept:
        return say(kept, method, path, body, headers)


def get(server: Live, path: str, **headers: str) -> Reply:
    """Return the reply to a GET."""
    return call(server, "GET", path, headers=headers)


def post(server: Live, body: Mapping[str, Any], **headers: str) -> Reply:
    """Return the reply to a chat or, if the body has a prompt, to a completion."""
    told = {"Content-Type": "application/json", **headers}
    return call(server, "POST", path_of(body), json.dumps(body).encode(), told)


def choices(server: Live, body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the choices of a reply, without how long each token took."""
    found: list[dict[str, Any]] = post(server, body).json["choices"]
    for choice in found:
        for token in choice.get("trace", []):
            del token["seconds"]
    return found


def ids(choice: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the ids of a choice that was asked for with its trace."""
    return tuple(token["token_id"] for token in choice["trace"])


def path_of(body: Mapping[str, Any]) -> str:
    """Return where a body belongs."""
    return COMPLETIONS if "prompt" in body else CHAT


def post_all(server: Live, bodies: Sequence[Mapping[str, Any]]) -> list[Reply]:
    """Return the replies to requests that are all made at once."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: post(server, body), bodies))


class Raw:
    """A socket that has sent a request and may read its reply, or not."""

    def __init__(self, server: Live, body: Mapping[str, Any], *, small_buffers: bool = False):
        """Connect and send; small_buffers: what is not read holds the server up soon."""
        place = urlsplit(server.url)
        assert place.hostname is not None
        assert place.port is not None
        self.socket = socket.socket()
        if small_buffers:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        self.socket.settimeout(SECONDS)
        self.socket.connect((place.hostname, place.port))
        content = json.dumps(body).encode()
        head = (
            f"POST {path_of(body)} HTTP/1.1\r\nHost: {place.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        self.socket.sendall(head.encode() + content)
        self.received = b""

    def read_until(self, mark: bytes) -> bytes:
        """Read on until `mark` has come; return all that has; fails if the stream ends before."""
        while mark not in self.received:
            part = self.socket.recv(65536)
            assert part, f"the stream ended without {mark!r}: {self.received[-300:]!r}"
            self.received += part
        return self.received

    def read_to_end(self) -> bytes:
        """Read until the server closes the connection; return all that came."""
        while part := self.socket.recv(65536):
            self.received += part
        return self.received

    def close(self) -> None:
        """Go away at once."""
        self.socket.close()

    def __enter__(self) -> Raw:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Go away at once."""
        self.close()
