"""Clients that go, clients that stop reading, queues that are full: nothing of them is left."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import re
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from crossroads.serving.job import Job
from crossroads.serving.service import ServiceOptions
from laws.pairs import scripted_pair
from serving.calls import CHAT, Raw, chat, completion, get, post
from serving.live_server import Live, endless, live

AT_ONCE = 2.0  # seconds; a busy machine's "at once"
LONG = {"max_tokens": 4000}
TEXT = re.compile(rb'"text":("(?:[^"\\]|\\.)*")')
BIG = {"logprobs": True, "top_logprobs": 20, "n": 8, "routing": {"trace": True}, **LONG}


@pytest.fixture(scope="module")
def slow() -> Iterator[Live]:
    """A server whose answers take long."""
    with live(endless(scripted_pair()), seconds_per_token=0.003, queue=300) as server:
        yield server


def soon(fact: Callable[[], bool], seconds: float = AT_ONCE) -> None:
    """Fail unless `fact` becomes true."""
    end = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.005)


def alive(server: Live) -> tuple[int, int]:
    """Return how many caches are taken of the small and of the large model."""
    return server.pair.small.alive, server.pair.large.alive


def tasks(server: Live) -> int:
    """Return how many tasks the server's event loop has."""
    loop = server.server._loop
    assert loop is not None
    return len(asyncio.all_tasks(loop))


def left_behind(server: Live) -> int:
    """Return how many requests are still in memory; the engine's thread may hold its last one."""
    gc.collect()
    jobs = [found for found in gc.get_objects() if type(found) is Job]
    return max(0, sum(job.engine is server.service.engine for job in jobs) - 1)


def ended(server: Live, outcome: str) -> float:
    """Return how many requests ended so, by the metrics."""
    found = metrics(server).items()
    return sum(n for name, n in found if "requests_total{" in name and f'"{outcome}"' in name)


def metrics(server: Live) -> dict[str, float]:
    """Return the metrics' samples: a name with its labels, without the project's prefix."""
    lines = get(server, "/metrics").content.decode().splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name.removeprefix("crossroads_"): float(value) for name, value in samples}


@pytest.fixture(scope="module")
def undisturbed(slow: Live) -> str:
    """What the server answers to OTHER while nothing else happens."""
    text: str = post(slow, completion("OTHER", max_tokens=80)).json["choices"][0]["text"]
    return text


def streamed(received: bytes) -> str:
    """Return the text of a completion's stream, as far as it has come."""
    return "".join(json.loads(text) for text in TEXT.findall(received))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", ["mixed", "small", "large"])
def test_a_client_that_goes_frees_its_row_at_once_and_no_other_notices(
    slow: Live, undisturbed: str, stream: bool, model: str
) -> None:
    with Raw(slow, completion("OTHER", stream=True, **LONG)) as other:
        other.read_until(b"text")
        with Raw(slow, chat("GOING", model=model, stream=stream, **LONG)) as client:
            soon(lambda: slow.service.engine.running == 2)
            if stream:
                client.read_until(b"content")
        soon(lambda: slow.service.engine.running == 1)
        assert alive(slow) == (1, 1)
        so_far = len(other.received)
        while len(streamed(other.received)) < len(undisturbed):
            other.received += other.socket.recv(4096)
        assert len(other.received) > so_far
        assert streamed(other.received)[: len(undisturbed)] == undisturbed
    slow.wait_until_idle()


def test_a_client_that_goes_while_it_waits_frees_its_place() -> None:
    with live(endless(scripted_pair()), seconds_per_token=0.01, rows=1, queue=1) as server:
        with Raw(server, chat(stream=True, **LONG)) as running:
            running.read_until(b"content")
            with Raw(server, chat(**LONG)):
                soon(lambda: server.service.engine.waiting == 1)
            soon(lambda: server.service.engine.waiting == 0)
            assert server.service.engine.running == 1
        server.wait_until_idle()


def test_two_hundred_clients_that_go_leave_nothing(slow: Live) -> None:
    before, cancelled = tasks(slow), ended(slow, "cancelled")
    for number in range(0, 200, 20):
        with ExitStack() as clients:
            for i in range(number, number + 20):
                body = chat("GOING", stream=i % 2 == 0, n=1 + i % 3, **LONG)
                client = clients.enter_context(Raw(slow, body))
                if i % 4 == 0:
                    client.read_until(b"assistant")
    slow.wait_until_idle()
    soon(lambda: tasks(slow) <= before)
    soon(lambda: not slow.server.server_state.connections)
    # One that went before its request was read has begun nothing that could be cancelled.
    assert 50 <= ended(slow, "cancelled") - cancelled <= 200
    assert left_behind(slow) == 0


def test_half_a_request_is_nobodys_error(slow: Live, caplog: pytest.LogCaptureFixture) -> None:
    place = urlsplit(slow.url)
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        "Content-Length: 100\r\n\r\n"
    )
    with caplog.at_level(logging.WARNING):
        for sent in (head[:20], head, head + '{"model": "mi'):
            with socket.create_connection((place.hostname, place.port)) as client:
                client.sendall(sent.encode())
                time.sleep(0.05)
        soon(lambda: not slow.server.server_state.connections)
    assert caplog.text == ""


def test_a_full_queue_says_when_to_come_again_and_then_has_room() -> None:
    with live(endless(scripted_pair()), seconds_per_token=0.005, rows=1, queue=1) as server:
        with Raw(server, chat(stream=True, **LONG)) as running:
            running.read_until(b"content")
            with Raw(server, chat(**LONG)):
                soon(lambda: server.service.engine.waiting == 1)
                for stream in (True, False):
                    reply = post(server, chat(stream=stream))
                    assert (reply.status, reply.error["code"]) == (429, "queue_full")
                    assert reply.error["type"] == "rate_limit_error"
                    assert int(reply.headers["retry-after"]) >= 1
        server.wait_until_idle()
        assert post(server, chat(max_tokens=3)).status == 200


def test_choices_that_do_not_all_fit_are_refused_together() -> None:
    with live(endless(scripted_pair()), seconds_per_token=0.005, rows=2, queue=1) as server:
        assert post(server, chat(n=4, max_tokens=3)).status == 429
        server.wait_until_idle()
        assert post(server, chat(n=3, max_tokens=3)).status == 200


def test_an_answer_that_takes_too_long_is_a_504_and_in_a_stream_an_event() -> None:
    options = ServiceOptions(seconds=0.15)
    with live(endless(scripted_pair()), seconds_per_token=0.01, options=options) as server:
        whole = post(server, chat(**LONG))
        assert (whole.status, whole.error["code"]) == (504, "timeout")
        stream = post(server, chat(stream=True, **LONG))
        assert stream.status == 200
        assert "content" in stream.events[2]["choices"][0]["delta"]
        assert stream.events[-1] == whole.json
        server.wait_until_idle()
        assert ended(server, "timeout") == 2
        assert post(server, chat(max_tokens=2)).status == 200


def test_the_time_in_the_queue_counts() -> None:
    options = ServiceOptions(seconds=0.3)
    with (
        live(endless(scripted_pair()), seconds_per_token=0.01, rows=1, options=options) as server,
        Raw(server, chat(stream=True, **LONG)),
    ):
        soon(lambda: server.service.engine.running == 1)
        with ThreadPoolExecutor(4) as pool:
            replies = list(pool.map(lambda _: post(server, chat(max_tokens=20)), range(4)))
        assert 504 in [reply.status for reply in replies]
        server.wait_until_idle()


def test_a_client_that_reads_nothing_is_dropped_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("crossroads.serving.server._LEAVING", 0.2)
    options = ServiceOptions(patience=0.3)
    with live(endless(scripted_pair()), options=options) as server:
        with Raw(server, chat(stream=True, **BIG), small_buffers=True) as client:
            client.read_until(b"content")
            soon(lambda: server.service.engine.running == 0, 15)
            server.wait_until_idle()
            soon(lambda: not server.server.server_state.connections, 15)
            with pytest.raises((ConnectionError, AssertionError)):
                client.read_until(b"[DONE]")
        assert left_behind(server) == 0
        assert ended(server, "cancelled") == 1


def test_a_client_that_reads_slowly_gets_everything() -> None:
    options = ServiceOptions(patience=5)
    with (
        live(options=options) as server,
        Raw(server, chat(stream=True, **{**BIG, "n": 1}), small_buffers=True) as client,
    ):
        while b"[DONE]" not in client.received:
            client.received += client.socket.recv(20_000)
            time.sleep(0.002)
        body = chat(**{**BIG, "n": 1})
        whole = post(server, body).json["choices"][0]
        said = [x for x in client.received.split(b"\n") if x.startswith(b"data: {")]
        deltas = [choice["delta"] for x in said for choice in json.loads(x[6:])["choices"]]
        assert "".join(d.get("content", "") for d in deltas) == whole["message"]["content"]


def test_a_thousand_idle_connections_slow_nothing_down() -> None:
    with live() as server, ExitStack() as idle:

        def seconds() -> float:
            began = time.perf_counter()
            assert post(server, completion(max_tokens=5)).status == 200
            return time.perf_counter() - began

        alone = statistics.median(seconds() for _ in range(5))
        place = urlsplit(server.url)
        for _ in range(1000):
            idle.enter_context(socket.create_connection((place.hostname, place.port)))
        soon(lambda: len(server.server.server_state.connections) == 1000, 10)
        assert statistics.median(seconds() for _ in range(5)) < 5 * alone + 0.2


def test_after_everything_the_metrics_equal_what_replies_said() -> None:
    bodies = [
        chat("ONE", routing={}),
        chat("TWO", routing={"threshold": 0}),
        completion(["A", "B"], n=2, temperature=1.0, seed=1, routing={"threshold": 0.4}),
        completion("C", stream=True, stream_options={"include_usage": True}, routing={}),
        chat("FOUR", routing={"revise_below": 0.1}),
    ]
    with live() as server:
        replies = [post(server, body) for body in bodies]
        assert post(server, chat(modle=1)).status == 400
        assert post(server, chat(model="mix")).status == 404
        samples = metrics(server)
        assert ended(server, "refused") == 2
    told = [r.events[-2] if r.content.startswith(b"data") else r.json for r in replies]
    mixed = '{model="mixed"}'

    def said(name: str) -> int:
        return sum(int(value["routing"][name]) for value in told)

    assert samples['requests_total{model="mixed",outcome="ok"}'] == len(bodies)
    assert samples['tokens_total{model="mixed",writer="small"}'] == said("small_tokens") > 0
    assert samples['tokens_total{model="mixed",writer="large"}'] == said("large_tokens") > 0
    assert samples["large_calls_total" + mixed] == said("large_calls")
    assert samples["lag_tokens_sum" + mixed] == said("lag_tokens")
    assert samples["discarded_tokens_total" + mixed] == said("discarded_tokens") > 0
