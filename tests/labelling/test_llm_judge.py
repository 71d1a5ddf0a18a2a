"""The judge behind an endpoint, against a server on this machine."""

from __future__ import annotations

import gc
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from crossroads.errors import ConfigError, DataError, EngineError
from crossroads.labelling.judges import JudgeContext, judge_by_name, parse_judge
from crossroads.labelling.judges.base import Verdict
from crossroads.labelling.judges.prompt import PROMPT_VERSION, messages
from crossroads.labelling.records import Case
from labelling.cases import case, cases, span
from loopback import closed_port

pytest.importorskip("openai", reason="needs the judges extra")

from crossroads.labelling.judges.llm import LLMJudge

KEY = "sk-a-secret-of-the-user"
Answer = tuple[int, Any]


class Endpoint:
    """An OpenAI-style server; `answer` maps a request's body to a status and a reply."""

    def __init__(self, answer: Callable[[dict[str, Any]], Answer]) -> None:
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.headers: dict[str, str] = {}
        self.lock = threading.Lock()
        self.flying = self.peak = 0
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # connections stay open, so that they can be leaked
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                endpoint.serve(self)

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            request_queue_size = 64  # with the default of 5, connections at once wait for seconds

            def handle_error(self, *_: object) -> None:
                pass  # a judge that was closed hangs up in the middle

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self.lock:
            self.bodies.append(body)
            self.keys.append(handler.headers["authorization"])
            self.flying += 1
            self.peak = max(self.peak, self.flying)
        try:
            status, reply = (
                self.answer(body) if handler.path == "/v1/chat/completions" else (404, "")
            )
        finally:
            with self.lock:
                self.flying -= 1
        data = (reply if isinstance(reply, str) else json.dumps(reply)).encode()
        handler.send_response(status)
        handler.send_header("content-type", "application/json")
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def __enter__(self) -> Endpoint:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def completion(text: Any, top: dict[str, float] | None = None) -> Answer:
    """Return a reply; `top` are the probabilities at the token that is the digit."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}}
    choice["finish_reason"] = "stop"
    if top is not None:
        entries = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in top.items()]
        digit = next(c for c in text if c in "01")
        before = {"token": " ", "logprob": 0.0, "bytes": None, "top_logprobs": []}
        chosen = {"token": digit, "logprob": 0.0, "bytes": None, "top_logprobs": entries}
        choice["logprobs"] = {"content": [before, chosen]}
    return 200, {"id": "x", "object": "chat.completion", "created": 1, "model": "m",
                 "choices": [choice]}  # fmt: skip


def says(text: Any, top: dict[str, float] | None = None) -> Endpoint:
    return Endpoint(lambda _: completion(text, top))


def refuses(status: int, message: str = "no") -> Endpoint:
    return Endpoint(lambda _: (status, {"error": {"message": message}}))


def asked(body: dict[str, Any]) -> str:
    text: str = body["messages"][1]["content"]
    return text


def judge(endpoint: Endpoint, **settings: Any) -> LLMJudge:
    return LLMJudge(url=endpoint.url, model="m", **{"backoff": 0.001, **settings})


def verdicts(judge: LLMJudge, some: list[Case]) -> list[Verdict]:
    """Return the verdicts in the order of the cases."""
    found = {j.case_id: j.verdict for j in judge.judge(some)}
    return [found[one.id] for one in some]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep the machine's proxies and keys out, and see that no thread is left over."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    yield
    assert not [t for t in threading.enumerate() if t.name == "llm-judge"]


@pytest.fixture
def collected(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Find what nobody closed: connections warn, a warning is an error, and tasks are logged."""
    yield
    gc.collect()
    assert not [*caplog.get_records("call"), *caplog.get_records("teardown")]


@pytest.mark.parametrize(("text", "divergent"), [("1", True), ("0", False), (" **1**.\n", True)])
def test_the_digit_is_the_verdict(text: str, divergent: bool) -> None:
    with says(text) as endpoint:
        [verdict] = verdicts(judge(endpoint), [case()])
    assert verdict == Verdict(divergent, None, text.strip(" *.\n"))


def test_each_case_gets_its_own_verdict() -> None:
    def odd(body: dict[str, Any]) -> Answer:
        number = int(asked(body).split("Line ")[1].split(":")[0])
        time.sleep(0.002 * (7 - number % 7))
        return completion(str(number % 2))

    some = cases(30)
    with Endpoint(odd) as endpoint:
        found = verdicts(judge(endpoint), some)
    assert [v.divergent for v in found] == [i % 2 == 1 for i in range(30)]
    assert len(endpoint.bodies) == 30


def test_the_request_holds_the_question_and_both_texts() -> None:
    with says("1") as endpoint:
        verdicts(judge(endpoint), [case(question="How many?", context="We count:")])
    [body] = endpoint.bodies
    assert (body["model"], body["temperature"], body["logprobs"]) == ("m", 0, True)
    text = asked(body)
    assert all(t in text for t in ("How many?", "We count:", "⟦12,⟧ which", "⟦twelve,⟧ which"))
    assert "response_format" not in body


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        ({"1": 0.6, "0": 0.2, "x": 0.2}, 0.75),
        ({"1": 0.4, " 1": 0.2, "0": 0.2}, 0.75),
        ({"1": 0.9, "x": 0.1}, 1.0),
        ({"x": 0.9}, None),
        ({}, None),
    ],
)
def test_the_probability_is_that_of_one_among_the_two_digits(
    top: dict[str, float], expected: float | None
) -> None:
    with says("1", top) as endpoint:
        [verdict] = verdicts(judge(endpoint), [case()])
    assert verdict.divergent
    assert verdict.probability == (expected and pytest.approx(expected))


def test_several_continuations_are_averaged() -> None:
    def answer(body: dict[str, Any]) -> Answer:
        if "⟦sure⟧" in asked(body):
            return completion("1", {"1": 0.9, "0": 0.1})
        return completion("0", {"1": 0.15, "0": 0.85})

    some = [case(continuations=(" sure", " no")), case(4, continuations=(" sure", " no", " yes"))]
    with Endpoint(answer) as endpoint:
        found = verdicts(judge(endpoint), some)
    assert [v.divergent for v in found] == [True, False]
    assert [v.probability for v in found] == [pytest.approx(0.525), pytest.approx(0.4)]


def test_without_logprobs_the_digits_of_several_continuations_are_averaged() -> None:
    with Endpoint(lambda body: completion("1" if "⟦b⟧" in asked(body) else "0")) as endpoint:
        [verdict] = verdicts(judge(endpoint), [case(continuations=("a", "b", "c"))])
    assert verdict == Verdict(False, pytest.approx(1 / 3), "mean of 3")


def test_requests_overlap_up_to_the_bound_and_cases_are_taken_as_needed() -> None:
    taken = 0

    def counted() -> Iterator[Case]:
        nonlocal taken
        for one in cases(24):
            taken += 1
            yield one

    gate = threading.Barrier(4)

    def answer(_: dict[str, Any]) -> Answer:
        gate.wait(timeout=10)  # only four at once get through
        return completion("0")

    with Endpoint(answer) as endpoint:
        stream = judge(endpoint, concurrency=4).judge(counted())
        next(stream)
        assert taken == 4
        assert len(list(stream)) == 23
    assert endpoint.peak == 4


def test_a_slow_source_of_cases_does_not_hold_judgements_back() -> None:
    release = threading.Event()

    def slow() -> Iterator[Case]:
        yield case(0, context="first")
        time.sleep(0.3)
        yield case(1, context="second")
        assert release.wait(timeout=10), "the first judgement was held back"
        yield case(2, context="third")

    with says("0") as endpoint:
        stream = judge(endpoint).judge(slow())
        assert next(stream).case_id == case(0).id
        release.set()
        assert len(list(stream)) == 2


def test_an_overloaded_server_is_asked_again() -> None:
    with says("1") as endpoint:
        good = endpoint.answer
        endpoint.answer = lambda body: (
            (429, {"error": {"message": "slow down"}}) if len(endpoint.bodies) < 3 else good(body)
        )
        [verdict] = verdicts(judge(endpoint), [case()])
    assert verdict.divergent
    assert len(endpoint.bodies) == 3


def test_a_server_says_how_long_to_wait() -> None:
    times: list[float] = []

    def answer(_: dict[str, Any]) -> Answer:
        times.append(time.monotonic())
        return (429, "later") if len(times) == 1 else completion("1")

    with Endpoint(answer) as endpoint:
        endpoint.headers["retry-after"] = "0.2"
        verdicts(judge(endpoint), [case()])
    assert times[1] - times[0] >= 0.2


def test_a_server_that_keeps_failing_fails_the_case() -> None:
    with refuses(500, "out of memory") as endpoint:
        [verdict] = verdicts(judge(endpoint, retries=2), [case()])
    assert verdict.divergent is None
    assert verdict.probability is None
    assert "HTTP 500" in verdict.reason
    assert "out of memory" in verdict.reason
    assert len(endpoint.bodies) == 3


def test_a_slow_server_fails_the_case() -> None:
    release = threading.Event()

    def answer(_: dict[str, Any]) -> Answer:
        release.wait(timeout=10)
        return completion("1")

    with Endpoint(answer) as endpoint:
        [verdict] = verdicts(judge(endpoint, timeout=0.1, retries=1), [case()])
        release.set()
    assert verdict == Verdict(None, None, "no reply within 0.1 s, 2 tries")
    assert len(endpoint.bodies) == 2


def test_a_request_that_is_refused_is_not_sent_again() -> None:
    with refuses(400, "prompt too long") as endpoint:
        found = verdicts(judge(endpoint), cases(12))
    assert all(v.divergent is None and "prompt too long" in v.reason for v in found)
    assert len(endpoint.bodies) == 12


@pytest.mark.parametrize(
    ("reply", "quoted"),
    [
        (completion("It depends."), "'It depends.'"),
        (completion("10"), "'10'"),
        (completion("-1"), "'-1'"),
        (completion("0.5"), "'0.5'"),
        (completion(""), "''"),
        (completion(None), "''"),
        (completion(["1"]), "''"),
        ((200, {"choices": []}), "''"),
        ((200, {"choices": None}), "''"),
        ((200, {"error": "none"}), "''"),
        ((200, "[1]"), "''"),
        ((200, "<html>1</html>"), "'<html>1</html>'"),
        (completion("never " * 100), "never ...'"),
    ],
)
def test_nonsense_is_a_failure_with_what_was_said(
    tmp_path: Path, reply: Answer, quoted: str
) -> None:
    with Endpoint(lambda _: reply) as endpoint:
        [verdict] = verdicts(judge(endpoint, cache=tmp_path), [case()])
    assert verdict.divergent is None
    assert verdict.reason.startswith("answered ")
    assert quoted in verdict.reason
    assert len(verdict.reason) < 200
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "divergent"),
    [
        ('{"divergent": 1}', True),
        ('{"divergent":0}', False),
        ('{"divergent": 2}', None),
        ('{"divergent": true}', None),
        ('{"other": 1}', None),
        ("[1]", None),
        ("1", None),
        ("{", None),
    ],
)
def test_structured_replies(text: str, divergent: bool | None) -> None:
    top = {"1": 0.5, "0": 0.5} if divergent is not None else None
    with says(text, top) as endpoint:
        [verdict] = verdicts(judge(endpoint, structured=True), [case()])
    schema = endpoint.bodies[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"] == {"divergent": {"type": "integer", "enum": [0, 1]}}
    assert verdict.divergent is divergent
    assert verdict.probability == (None if divergent is None else 0.5)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (404, ("no model 'm'", "/v1")),
        (401, ("refuses the key", "MY_KEY")),
        (403, ("refuses the key",)),
    ],
)
def test_what_every_case_would_meet_stops_the_run(
    monkeypatch: pytest.MonkeyPatch, status: int, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with refuses(status, f"not for {KEY}") as endpoint:
        stream = judge(endpoint, key_env="MY_KEY", concurrency=1).judge(cases(5))
        with pytest.raises(EngineError) as caught:
            next(stream)
    message = str(caught.value)
    assert all(word in message for word in (endpoint.url, *words))
    assert KEY not in message
    assert len(endpoint.bodies) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_an_endpoint_that_is_not_there(host: str) -> None:
    url = f"http://{host}:{closed_port()}/v1"
    absent = LLMJudge(url=url, model="m", retries=1, backoff=0.001)
    with pytest.raises(EngineError, match="start it and run the same command again") as caught:
        list(absent.judge(cases(3)))
    assert f"the judge at {url} does not answer (" in str(caught.value)


def test_eight_unanswered_cases_in_a_row_stop_the_run() -> None:
    with refuses(503, "overloaded") as endpoint:
        stream = judge(endpoint, retries=0, concurrency=1).judge(cases(20))
        assert [next(stream).verdict.divergent for _ in range(7)] == [None] * 7
        with pytest.raises(EngineError, match=r"8 cases in a row unanswered .*overloaded"):
            next(stream)
    assert len(endpoint.bodies) == 8


def test_an_answer_in_between_ends_the_row_of_failures() -> None:
    def answer(_: dict[str, Any]) -> Answer:
        return completion("0") if len(endpoint.bodies) % 8 == 0 else (500, "oops")

    with Endpoint(answer) as endpoint:
        found = verdicts(judge(endpoint, retries=0, concurrency=1), cases(24))
    assert [v.divergent for v in found] == ([None] * 7 + [False]) * 3


def test_a_case_without_continuations_asks_nothing() -> None:
    with says("1") as endpoint:
        [verdict] = verdicts(judge(endpoint), [case(continuations=())])
    assert verdict == Verdict(None, None, "no continuation to compare the reference with")
    assert not endpoint.bodies


def test_equal_requests_are_sent_once_over_runs_too(tmp_path: Path) -> None:
    some = cases(5)
    with says("1", {"1": 0.8, "0": 0.2}) as endpoint:
        first = verdicts(judge(endpoint, cache=tmp_path), some)
        again = verdicts(judge(endpoint, cache=tmp_path), [*some, *cases(6)[5:]])
    assert len(endpoint.bodies) == 6
    assert again[:5] == first
    assert first[0].probability == pytest.approx(0.8)


def test_equal_requests_in_flight_are_sent_once() -> None:
    twins = [case(i) for i in range(6)]  # other positions, the same texts

    def answer(_: dict[str, Any]) -> Answer:
        time.sleep(0.1)
        return completion("1")

    with Endpoint(answer) as endpoint:
        found = verdicts(judge(endpoint), twins)
    assert [v.divergent for v in found] == [True] * 6
    assert len(endpoint.bodies) == 1


def test_another_model_url_or_form_has_other_replies(tmp_path: Path) -> None:
    with says("1") as endpoint:
        for model in ("a", "b"):
            verdicts(LLMJudge(url=endpoint.url, model=model, cache=tmp_path), [case()])
        verdicts(judge(endpoint, cache=tmp_path, logprobs=False), [case()])
    assert [body["model"] for body in endpoint.bodies] == ["a", "b", "m"]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_damaged_cache_is_one_sentence(tmp_path: Path) -> None:
    with says("1") as endpoint:
        cached = judge(endpoint, cache=tmp_path)
        verdicts(cached, [case()])
        [file] = tmp_path.iterdir()
        file.write_text('{"key": "x"}\n')
        with pytest.raises(DataError, match=r"line 1 is no reply of a judge; delete the file"):
            verdicts(cached, [case()])


def test_a_failure_is_not_cached(tmp_path: Path) -> None:
    with refuses(500) as endpoint:
        broken = judge(endpoint, cache=tmp_path, retries=0)
        assert verdicts(broken, [case()])[0].divergent is None
        endpoint.answer = lambda _: completion("1")
        assert verdicts(broken, [case()])[0].divergent
        assert verdicts(broken, [case()])[0].divergent
    assert len(endpoint.bodies) == 2


def test_a_server_without_logprobs_is_asked_without_them(tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        if "logprobs" in body:
            return 400, {"error": {"message": "logprobs are not supported"}}
        assert "top_logprobs" not in body
        return completion("1")

    with Endpoint(answer) as endpoint:
        picky = judge(endpoint, concurrency=1, cache=tmp_path)
        found = verdicts(picky, cases(3))
        assert found == [Verdict(True, None, "1")] * 3
        assert ["logprobs" in body for body in endpoint.bodies] == [True, False, False, False]
        assert verdicts(picky, cases(3)) == found
    assert len(endpoint.bodies) == 4


@pytest.mark.usefixtures("collected")
def test_closing_early_leaves_nothing_behind() -> None:
    release = threading.Event()

    def answer(_: dict[str, Any]) -> Answer:
        if len(endpoint.bodies) > 1:
            release.wait(timeout=10)
        return completion("1")

    before = set(threading.enumerate())
    with Endpoint(answer) as endpoint:
        stream = judge(endpoint, concurrency=4).judge(cases(50))
        next(stream)
        start = time.monotonic()
        stream.close()
        assert time.monotonic() - start < 20
        assert len(endpoint.bodies) <= 5
        left = set(threading.enumerate()) - before - {endpoint.thread}
        assert not [t for t in left if "process_request_thread" not in t.name]
        release.set()


@pytest.mark.usefixtures("collected")
def test_closing_early_does_not_wait_for_tries_to_come() -> None:
    def answer(body: dict[str, Any]) -> Answer:
        return completion("1") if "Line 0" in asked(body) else (429, "later")

    with Endpoint(answer) as endpoint:
        endpoint.headers["retry-after"] = "50"
        stream = judge(endpoint, concurrency=4).judge(cases(4))
        assert next(stream).case_id == case(0).id
        start = time.monotonic()
        stream.close()
        assert time.monotonic() - start < 20


@pytest.mark.slow
def test_a_generator_that_nobody_closes_does_not_hang_the_exit() -> None:
    program = """
import sys
from labelling.cases import cases
from labelling.test_llm_judge import judge, says
endpoint = says("1")
endpoint.thread.daemon = True
endpoint.thread.start()
stream = judge(endpoint, concurrency=4).judge(cases(50))
print(next(stream).verdict.divergent)
"""
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, *sys.path])}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True, text=True, timeout=60, env=environment, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


@pytest.mark.usefixtures("collected")
def test_an_error_in_the_source_of_cases_reaches_the_caller() -> None:
    def broken() -> Iterator[Case]:
        yield case()
        raise ZeroDivisionError

    with says("1") as endpoint, pytest.raises(ZeroDivisionError):
        list(judge(endpoint).judge(broken()))


def test_the_key_is_sent_and_kept_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with says("1") as endpoint:
        keyed = judge(endpoint, key_env="MY_KEY", cache=tmp_path)
        verdicts(keyed, [case()])
        endpoint.answer = lambda _: completion(f"your key is {KEY}")
        [told] = verdicts(keyed, [case(1, context="other")])
    assert endpoint.keys == [f"Bearer {KEY}"] * 2
    [file] = tmp_path.iterdir()
    assert KEY not in file.read_text()
    assert KEY not in json.dumps(dict(keyed.settings)) + repr(keyed) + told.reason


def test_without_a_key_a_local_server_is_still_asked() -> None:
    with says("1") as endpoint:
        assert verdicts(judge(endpoint), [case()])[0].divergent
    assert endpoint.keys == ["Bearer none"]


def test_settings_are_what_verdicts_depend_on() -> None:
    one = LLMJudge(url="http://a/v1", model="m", concurrency=3, timeout=1.0, key_env="X")
    assert one.settings == {
        "url": "http://a/v1", "model": "m", "structured": False, "logprobs": True,
        "prompt": PROMPT_VERSION,
    }  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": ""},
        {"url": "localhost:8000/v1"},
        {"url": "ftp://host/v1"},
        {"url": "http:///v1"},
        {"url": "http://host:port/v1"},
        {"url": "http://me:secret@host/v1"},
        {"url": "http://host/v1?key=secret"},
        {"model": ""},
        {"model": 7},
        {"concurrency": 0},
        {"concurrency": 2.5},
        {"timeout": 0},
        {"timeout": math.nan},
        {"retries": -1},
        {"backoff": -1.0},
        {"structured": "yes"},
        {"temperature": 1},
        {"cache": "elsewhere"},
    ],
)
def test_settings_that_cannot_work(wrong: dict[str, Any]) -> None:
    settings = {"url": "http://host/v1", "model": "m", **wrong}
    with pytest.raises(ConfigError) as caught:
        judge_by_name("llm", JudgeContext(), **settings)
    assert "secret" not in str(caught.value)


def test_the_line_of_a_command_names_it(tmp_path: Path) -> None:
    name, settings = parse_judge("llm:url=http://127.0.0.1:8000/v1,model=Qwen/Q2.5,structured=true")
    found = judge_by_name(name, JudgeContext(cache=tmp_path), **settings)
    assert isinstance(found, LLMJudge)
    assert (found.url, found.model) == ("http://127.0.0.1:8000/v1", "Qwen/Q2.5")
    assert (found.structured, found.cache) == (True, tmp_path)


def test_a_long_context_is_cut_at_steps_that_neighbours_share() -> None:
    def start(length: int) -> str:
        context = "".join(f"{i:04d} " for i in range(length // 5))
        text = messages(case(context=context), span("x"))[1].content
        assert context[-1500:].strip() in text
        assert len(text) < 3000
        return text.split("<solution_so_far>\n")[1][:20]

    assert start(2000).startswith("0000 ")
    assert start(2005) == start(2400) == start(2500)
    assert start(2505) != start(2500)


def test_a_continuation_that_ends_the_solution_is_said_in_words() -> None:
    [_, user] = messages(case(), span(""))
    assert "<B>\n(the solution ends here)\n</B>" in user.content
