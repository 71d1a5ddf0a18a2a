"""Engines that fail and servers that are told to stop: every request ends, and says how."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from crossroads.errors import EngineError
from crossroads.models.pairs import Pair
from laws.pairs import scripted_pair
from serving.calls import Raw, chat, events, get, post, post_all
from serving.live_server import Failing, Live, endless, live

SECRET = "/opt/weights/secret.gguf: decode returned -3"
BAD = 34  # the token id of "B": where a prompt begins with it, a model fails
LONG = {"max_tokens": 4000}


def failing_pair(error: Exception, *, large: bool = False) -> Pair:
    """Return a pair of which one model fails at prompts with a B, a few tokens later."""
    pair = scripted_pair()

    def bad(row: Sequence[int]) -> bool:
        return row[0] == BAD and len(row) > 8

    if large:
        return Pair(pair.name, pair.small, Failing(pair.large, error, bad), pair.tokenizer)
    return Pair(pair.name, Failing(pair.small, error, bad), pair.large, pair.tokenizer)


def body_of(raw: bytes) -> bytes:
    """Return a chunked reply's body."""
    rest, body = raw.partition(b"\r\n\r\n")[2], b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return body


@pytest.mark.parametrize("large", [False, True])
def test_a_row_that_fails_is_a_503_or_an_event_and_no_other_request_notices(large: bool) -> None:
    good = [chat(text, max_tokens=40) for text in ("ONE", "TWO", "THREE", "FOUR")]
    bad = [chat("BAD"), chat("BAD", stream=True), chat("BAD", n=2, seed=3, temperature=0.5)]
    with live(failing_pair(EngineError(SECRET), large=large)) as server:
        undisturbed = [post(server, body).json["choices"] for body in good]
        replies = post_all(server, [*good, *bad, *good])
        assert [r.json["choices"] for r in replies[:4] + replies[-4:]] == 2 * undisturbed
        whole, stream, several = replies[4:7]
        assert (whole.status, whole.error["code"]) == (503, "engine_failed")
        assert several.status == 503
        assert stream.status == 200
        assert stream.events[-1] == whole.json
        assert not any(b"secret" in reply.content for reply in replies)
        server.wait_until_idle()
        assert get(server, "/health").status == 200


def test_an_engine_that_dies_ends_every_request_with_an_error() -> None:
    pair = endless(failing_pair(RuntimeError(SECRET)))
    with live(pair, seconds_per_token=0.002) as server, ThreadPoolExecutor(3) as pool:
        with Raw(server, chat(stream=True, **LONG)) as stream:
            stream.read_until(b"content")
            whole = pool.submit(post, server, chat(**LONG))
            killer = post(server, chat("BAD"))
            assert (killer.status, whole.result().status) == (503, 503)
            stream.read_until(b"0\r\n\r\n")
            assert list(events(body_of(stream.received))[-1]) == ["error"]
        for reply in (
            killer,
            whole.result(),
            post(server, chat()),
            post(server, chat(stream=True)),
        ):
            assert reply.status == 503
            assert reply.error["type"] == "server_error"
            assert b"secret" not in reply.content
        assert get(server, "/health").status == 503
        assert (pair.small.alive, pair.large.alive) == (0, 0)


def finished(server: Live, seconds: float) -> bool:
    """Whether the server ends in time."""
    server.thread.join(seconds)
    return not server.thread.is_alive()


def wait_for_work(server: Live, answers: int) -> None:
    """Return once so many answers are under way."""
    engine = server.service.engine
    while engine.running + engine.waiting < answers:
        time.sleep(0.002)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_lets_answers_end_and_then_ends(sig: int) -> None:
    bodies = [chat(text, max_tokens=40, stream=True) for text in ("ONE", "TWO", "THREE")]
    with live(endless(scripted_pair()), seconds_per_token=0.005, rows=2) as server:
        before = [texts(reply.events) for reply in post_all(server, bodies)]
        with ThreadPoolExecutor(3) as pool:
            running = [pool.submit(post, server, body) for body in bodies]
            wait_for_work(server, len(bodies))
            server.server.handle_exit(sig, None)
            found = [future.result().events for future in running]
        assert [texts(value) for value in found] == before
        assert all(value[-1] == "[DONE]" for value in found)
        assert ends(server, 3)
        with pytest.raises(OSError, match="refused"):
            get(server, "/health")


def test_while_it_ends_new_requests_get_a_503() -> None:
    with live(endless(scripted_pair()), seconds_per_token=0.005) as server:
        loop = server.server._loop
        assert loop is not None
        with Raw(server, chat(stream=True, max_tokens=100)) as running:
            running.read_until(b"content")
            draining = asyncio.run_coroutine_threadsafe(server.service.engine.drain(10), loop)
            while server.service.engine.closed is None:
                time.sleep(0.002)
            for stream in (False, True):
                refused = post(server, chat(stream=stream))
                assert (refused.status, refused.error["code"]) == (503, "shutting_down")
            assert get(server, "/health").status == 503
            running.read_until(b"[DONE]")
        assert draining.result(10) == 0


def test_without_time_to_end_answers_are_cut_off_with_an_error() -> None:
    pair = endless(scripted_pair())
    with live(pair, seconds_per_token=0.005, rows=2, shutdown_seconds=0) as server:
        with ThreadPoolExecutor(2) as pool:
            stream = pool.submit(post, server, chat(stream=True, **LONG))
            wait_for_work(server, 1)
            whole = pool.submit(post, server, chat(n=2, **LONG))
            wait_for_work(server, 3)
            time.sleep(0.1)
            server.server.handle_exit(signal.SIGTERM, None)
            assert whole.result().status == 503
            assert stream.result().events[-1] == whole.result().json
        assert whole.result().error["code"] == "shutting_down"
        assert ends(server, 3)
        assert (pair.small.alive, pair.large.alive) == (0, 0)


def test_a_second_signal_waits_for_nobody() -> None:
    pair = endless(scripted_pair())
    with live(pair, seconds_per_token=0.005, shutdown_seconds=60) as server:
        with Raw(server, chat(stream=True, **LONG)) as running:
            running.read_until(b"content")
            server.server.handle_exit(signal.SIGTERM, None)
            time.sleep(0.3)
            assert not ends(server, 0.3)
            server.server.handle_exit(signal.SIGTERM, None)
            assert ends(server, 3)
        assert (pair.small.alive, pair.large.alive) == (0, 0)


def test_a_client_that_reads_nothing_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("crossroads.serving.server._LEAVING", 0.2)
    big = {"logprobs": True, "top_logprobs": 20, "n": 8, "routing": {"trace": True}, **LONG}
    with (
        live(endless(scripted_pair()), shutdown_seconds=0) as server,
        Raw(server, chat(stream=True, **big), small_buffers=True) as client,
    ):
        client.read_until(b"content")
        time.sleep(0.3)
        server.server.handle_exit(signal.SIGTERM, None)
        assert ends(server, 5)
        assert not server.server.server_state.connections


def texts(values: Sequence[Any]) -> str:
    """Return the text of a stream's events."""
    deltas = [value["choices"][0]["delta"] for value in values[:-1]]
    return "".join(delta.get("content", "") for delta in deltas)


def ends(server: Live, seconds: float) -> bool:
    """Whether the server ends in so many seconds."""
    server.thread.join(seconds)
    return not server.thread.is_alive()
