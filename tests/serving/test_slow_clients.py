"""Clients that send little by little, or nothing, hold no connection for long."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from types import SimpleNamespace
from unittest.mock import Mock
from urllib.parse import urlsplit

import pytest

pytest.importorskip("uvicorn", reason="the serve extra is not installed")
from uvicorn.protocols.http.h11_impl import H11Protocol

from crossroads.serving.app import Safety
from crossroads.serving.safety import LOOPBACK_HOSTS
from crossroads.serving.server import Server
from laws.pairs import scripted_pair
from serving.calls import chat, post
from serving.live_server import Live, endless, live

HURRIED = Safety(hosts=LOOPBACK_HOSTS, body_seconds=0.3)


def connected(server: Live) -> socket.socket:
    place = urlsplit(server.url)
    return socket.create_connection((place.hostname, place.port), timeout=30)


def head(server: Live, length: int) -> bytes:
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {urlsplit(server.url).netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def read_to_end(client: socket.socket) -> bytes:
    """Return what comes until the server closes the connection."""
    found = b""
    while part := client.recv(65536):
        found += part
    return found


def reply(client: socket.socket) -> bytes:
    """Return a whole reply; the connection stays open."""
    found = b""
    while True:
        part = client.recv(65536)
        assert part, f"the connection was closed after {found!r}"
        found += part
        top, end, body = found.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", top)
        if end and length is not None and len(body) >= int(length[1]):
            return found


def test_a_body_that_does_not_come_is_a_408_and_nobody_else_notices() -> None:
    with live(safety=HURRIED) as server, connected(server) as client:
        client.sendall(head(server, 100) + b'{"model"')
        assert post(server, chat(max_tokens=3)).status == 200
        top, _, body = read_to_end(client).partition(b"\r\n\r\n")
        assert top.startswith(b"HTTP/1.1 408 ")
        assert json.loads(body)["error"]["code"] == "body_too_slow"
        assert b"after 0.3 s" in body


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_may_take_longer_than_the_question(stream: bool) -> None:
    pair = endless(scripted_pair())
    with live(pair, seconds_per_token=0.02, safety=HURRIED) as server:
        answer = post(server, chat(max_tokens=40, stream=stream, routing={"threshold": 1.5}))
        assert answer.status == 200
        if stream:
            assert answer.events[-1] == "[DONE]"


def test_connections_without_a_request_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossroads.serving.server._SILENT", 0.5)
    body = json.dumps(chat(max_tokens=2)).encode()
    with (
        live() as server,
        connected(server) as silent,
        connected(server) as half,
        connected(server) as second,
        connected(server) as idle,
    ):
        half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: ")
        for client in (second, idle):
            client.sendall(head(server, len(body)) + body)
            assert reply(client).startswith(b"HTTP/1.1 200 ")
        second.sendall(b"POST ")
        for client in (silent, half, second):
            with contextlib.suppress(ConnectionResetError):
                assert read_to_end(client) == b""
        # Between two requests a connection has a longer time.
        idle.sendall(head(server, len(body)) + body)
        assert reply(idle).startswith(b"HTTP/1.1 200 ")


def test_work_is_not_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossroads.serving.server._SILENT", 0.2)
    pair = endless(scripted_pair())
    with live(pair, seconds_per_token=0.02) as server:
        began = time.monotonic()
        answer = post(server, chat(max_tokens=40, routing={"threshold": 1.5}))
        assert answer.status == 200
        assert time.monotonic() - began > 0.4


def test_each_request_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at the connections may find one between the halves of a request every time."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(
        "crossroads.serving.server.time", SimpleNamespace(monotonic=lambda: clock.now)
    )
    server = Server(Mock(), Mock(), shutdown_seconds=1)
    connection = Mock(H11Protocol, cycle=None, transport=Mock(), timeout_keep_alive_task=None)
    server.server_state.connections = {connection}

    def aborted_after(seconds: float) -> bool:
        clock.now += seconds
        server._drop_silent()
        return connection.transport.abort.called

    assert not aborted_after(0)
    for _ in range(5):
        assert not aborted_after(50)
        connection.cycle = Mock(response_complete=True)
        assert not aborted_after(0.1)
    assert aborted_after(60)
