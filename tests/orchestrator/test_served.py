"""Whole texts from a served large model: the same tokens, one request each, and what may fail."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from crossroads.decoding.branches import Branch, Stem, grow
from crossroads.decoding.request import Request
from crossroads.decoding.served import drawn_by
from crossroads.decoding.single import generate_alone
from crossroads.errors import ConfigError, EngineError, RequestError
from crossroads.evaluation.run import Bench, RunSettings, identity_of
from crossroads.labelling.compare import compare
from crossroads.labelling.judges.outcome import OutcomeJudge
from crossroads.labelling.records import response_key
from crossroads.labelling.respond import RespondConfig, Responses, respond
from crossroads.models.pairs import Pair
from crossroads.models.remote import RemoteLM
from crossroads.models.remote_wire import Step, fill, read_step, reserve
from crossroads.models.served import Answer
from crossroads.models.server_pool import Patience
from crossroads.routing.routers.heuristics import never
from crossroads.sampling import SamplingParams
from crossroads.types import Message, Problem, Role, SilentProgress, Trace
from decoding.test_branches import After, stems
from laws.pairs import VOCAB, alone, random_requests
from orchestrator.fake_server import FakeServer, fake_server
from orchestrator.patience import HASTY, STEADY
from orchestrator.test_orchestrator import spare_pair

PLAIN, LOGITS, LOGPROBS = "raw_logprobs", "processed_logits", "processed_logprobs"


@contextmanager
def served(mode: str = PLAIN, patience: Patience = STEADY) -> Iterator[tuple[Pair, FakeServer]]:
    """Yield a pair whose large model is behind a server, with the plugin unless it is plain."""
    pair = spare_pair()
    with fake_server(spare_pair().large, None if mode == PLAIN else never(VOCAB)) as fake:
        fake.mode = mode
        reserved = reserve(pair.tokenizer, VOCAB)
        large = RemoteLM(pair.large.info, [fake.url], patience, reserved)
        try:
            yield dataclasses.replace(pair, large=large), fake
        finally:
            large.close()
            settled(fake)


def closed(fake: FakeServer) -> None:
    """Wait until the server has noticed that nobody is there any more."""
    end = time.monotonic() + 10
    while fake.open_streams and time.monotonic() < end:
        time.sleep(0.01)
    assert fake.open_streams == 0


def settled(fake: FakeServer) -> None:
    """Check that neither a request nor a thread is left."""
    closed(fake)
    assert not any(thread.name == "remote" for thread in threading.enumerate())


def answers(pair: Pair, requests: Sequence[Request], rows: int = 8) -> list[Trace]:
    found = generate_alone(pair.large, Role.LARGE, pair.tokenizer, requests, max_rows=rows)
    return [trace for _, trace in sorted(found, key=lambda x: x[0])]


def asked(temperature: float) -> list[Request]:
    """Return requests that end in every way: a stop string, a stop id, eos, their limit."""
    requests = random_requests(6, 5, temperature, max_tokens=60)
    for i, fields in enumerate([{"stop": ("A", "QQ")}, {"stop_ids": (7, 9, 11)}, {}]):
        requests[i] = dataclasses.replace(requests[i], max_tokens=60, **fields)
    return requests


def same(found: Sequence[Trace], expected: Sequence[Trace]) -> None:
    for trace, other in zip(found, expected, strict=True):
        assert trace.token_ids == other.token_ids
        assert (trace.text, trace.finish_reason) == (other.text, other.finish_reason)
        assert trace.usage == other.usage


@pytest.mark.parametrize(
    ("mode", "temperature"),
    [(PLAIN, 0.0), (LOGITS, 0.0), (LOGITS, 0.9), (LOGPROBS, 0.9)],
)
def test_an_answer_is_one_request_and_the_in_process_loops_own(
    mode: str, temperature: float
) -> None:
    requests = asked(temperature)
    with served(mode) as (pair, fake):
        same(answers(pair, requests, rows=4), alone(spare_pair(), Role.LARGE, requests))
        assert len(fake.requests) - fake.probes == len(requests)
        assert fake.probes == (temperature > 0)
        assert 1 < fake.most_open <= 4


@pytest.mark.parametrize(("mode", "temperature"), [(PLAIN, 0.0), (LOGPROBS, 0.9)])
def test_a_branch_is_one_request_and_the_in_process_loops_own(
    mode: str, temperature: float
) -> None:
    local = grow(spare_pair().large, Role.LARGE, stems(3, temperature), max_rows=4)
    expected = {branch.id: tokens for branch, tokens in local}
    with served(mode) as (pair, fake):
        found = grow(pair.large, Role.LARGE, stems(3, temperature), max_rows=4)
        assert {branch.id: tokens for branch, tokens in found} == expected
        at_once = sum(len(tokens) == 1 for tokens in expected.values())
        assert len(fake.requests) - fake.probes == len(expected) - at_once


def test_the_server_sees_that_a_branch_has_ended() -> None:
    branch = Branch("x", at=2, first=5, stop=After(4, eos=-1))
    with served() as (pair, fake):
        fake.delay = 0.02
        ((_, tokens),) = grow(pair.large, Role.LARGE, [Stem([3, 4], [branch])], max_rows=2)
        assert len(tokens) == 4
        closed(fake)
        assert fake.aborted == 1
        assert fake.tokens_sent < 50, "it would have gone on to the end of the context"


def test_a_full_context_ends_answers_and_branches_alike() -> None:
    local = spare_pair()
    room = local.large.info.context_length
    text = [1 + i % 50 for i in range(room)]
    several = [
        Branch(str(at), at=at, first=5, stop=After(10**6, eos=-1)) for at in (room - 3, room - 1)
    ]
    expected = [len(t) for _, t in grow(local.large, Role.LARGE, [Stem(text, several)], max_rows=3)]
    assert sorted(expected) == [1, 3]
    with served() as (pair, _):
        found = grow(pair.large, Role.LARGE, [Stem(text, several)], max_rows=3)
        assert sorted(len(tokens) for _, tokens in found) == [1, 3]
        request = Request(tuple(text[:-2]), max_tokens=10)
        same(answers(pair, [request]), alone(local, Role.LARGE, [request]))


@pytest.mark.parametrize(("mode", "temperature"), [(PLAIN, 0.0), (LOGITS, 0.9)])
def test_answers_go_on_where_a_connection_broke(mode: str, temperature: float) -> None:
    requests = asked(temperature)
    with served(mode) as (pair, fake):
        fake.break_after = 5
        same(answers(pair, requests), alone(spare_pair(), Role.LARGE, requests))


def test_a_server_with_the_plugin_penalises_as_we_do_and_another_one_is_not_asked_to() -> None:
    sampling = SamplingParams(0.7, seed=3, frequency_penalty=1.0, repetition_penalty=1.2)
    requests = [dataclasses.replace(r, sampling=sampling) for r in random_requests(3, 9)]
    with served(LOGITS) as (pair, fake):
        fake.break_after = 7
        same(answers(pair, requests), alone(spare_pair(), Role.LARGE, requests))
    with served(PLAIN) as (pair, _), pytest.raises(RequestError, match="penalties its own way"):
        answers(pair, requests)


def test_a_server_that_lost_its_plugin_is_an_error_and_not_greedy_tokens() -> None:
    with served(LOGITS) as (pair, fake):
        assert pair.large.draws_as_we_do()
        fake.router = None
        with pytest.raises(EngineError, match="answers without the Crossroads plugin"):
            answers(pair, asked(0.9))


def test_an_answer_that_the_server_ends_early_is_an_error() -> None:
    with served() as (pair, fake):
        fake.silent = True
        with pytest.raises(EngineError, match="ended an answer before its end"):
            answers(pair, asked(0.0))


PROBLEMS = [Problem(f"p{i}", (Message("user", f"P{i}" * 3),), "1") for i in range(7)]


def respond_to(
    pair: Pair, folder: Path, temperature: float = 0.0, progress: SilentProgress | None = None
) -> Responses:
    config = RespondConfig(max_tokens=60, temperature=temperature)
    progress = progress or SilentProgress()
    return respond(pair.large, pair.tokenizer, PROBLEMS, folder, progress, config, max_rows=3)


def stored(responses: Responses) -> list[object]:
    return [responses.get(k) for k in (*responses.finished_keys, *responses.unfinished_keys)]


def identity(pair: Pair, role: Role) -> dict[str, Any]:
    """Return what an evaluation pins of one model, sampled."""
    settings = RunSettings(sampling=SamplingParams(0.9))
    bench = Bench(pair, None, settings, SilentProgress())
    system = SimpleNamespace(name="x", role=role, identity=None, threshold=None, options={})
    task = SimpleNamespace(items=(), rule="exact", stop=(), max_tokens=10)
    return identity_of(bench, task, system)


def missing_in(folder: Path) -> int:
    keys = [response_key(problem.id, 0) for problem in PROBLEMS]
    return len(Responses(folder, keys, []).missing)


class Impatient(SilentProgress):
    """Ctrl-C once a few answers are there."""

    def advance(self, amount: float = 1.0) -> None:
        super().advance(amount)
        if self.stages[self.current] > 3:
            raise KeyboardInterrupt


def test_ctrl_c_leaves_nothing_open_and_the_next_run_asks_for_what_is_missing(
    tmp_path: Path,
) -> None:
    with served() as (pair, fake):
        fake.delay = 0.002
        with pytest.raises(KeyboardInterrupt):
            respond_to(pair, tmp_path / "cut", progress=Impatient())
    with served() as (pair, fake):
        missing = missing_in(tmp_path / "cut")
        found = respond_to(pair, tmp_path / "cut")
        assert 0 < missing < 7
        assert len(fake.requests) == missing
        assert stored(found) == stored(respond_to(spare_pair(), tmp_path / "local"))


def test_a_server_that_dies_is_one_sentence_and_finished_answers_stay(tmp_path: Path) -> None:
    class Deadly(SilentProgress):
        def advance(self, amount: float = 1.0) -> None:
            super().advance(amount)
            if self.stages[self.current] > 3:
                fake.refuse, fake.break_after = 503, 0

    with served(patience=HASTY) as (pair, fake):
        fake.delay = 0.002
        with pytest.raises(EngineError, match="no server of large has answered"):
            respond_to(pair, tmp_path, progress=Deadly())
        fake.refuse, fake.break_after = 0, None
        fake.requests.clear()
        missing = missing_in(tmp_path)
        assert 0 < missing < 7
        respond_to(pair, tmp_path)
        assert len(fake.requests) == missing


def test_a_run_never_mixes_who_draws(tmp_path: Path) -> None:
    with served(PLAIN) as (pair, _):
        assert drawn_by(pair.large, SamplingParams(0.9)) == {"drawn_by": "server"}
        assert drawn_by(pair.large, SamplingParams()) == {}
        assert OutcomeJudge(pair, 3, temperature=0.9).settings["drawn_by"] == "server"
        assert "drawn_by" not in OutcomeJudge(pair, 3).settings
        assert identity(pair, Role.LARGE)["drawn_by"] == "server"
        assert "drawn_by" not in identity(pair, Role.SMALL)
        first = stored(respond_to(pair, tmp_path / "plain", 0.9))
        assert first == stored(respond_to(pair, tmp_path / "again", 0.9)), "a seed for each row"
    with served(LOGITS) as (pair, fake):
        with pytest.raises(ConfigError, match="drawn_by: was 'server', now None"):
            respond_to(pair, tmp_path / "plain", 0.9)
        ours = stored(respond_to(pair, tmp_path / "ours", 0.9))
        asked_so_far = len(fake.requests)
        respond_to(spare_pair(), tmp_path / "ours", 0.9)  # the same run, in the process
        assert len(fake.requests) == asked_so_far
    assert ours == stored(respond_to(spare_pair(), tmp_path / "local", 0.9))
    with served(PLAIN) as (pair, _), pytest.raises(ConfigError, match="drawn_by: was None"):
        respond_to(pair, tmp_path / "ours", 0.9)


@pytest.mark.parametrize("mode", [PLAIN, LOGPROBS])
def test_a_text_is_read_in_one_request_up_to_a_full_context(mode: str) -> None:
    local = spare_pair()
    room = local.large.info.context_length
    # Any ids, so that some of them are not among the likeliest.
    answer = tuple(1 + 7 * i % 50 for i in range(40))
    prompts = [(5, 6), tuple(1 + 3 * i % 50 for i in range(room - len(answer)))]
    with served(mode) as (pair, fake):
        for prompt in prompts:
            expected = compare(local.small, local.large, prompt, answer).large
            found = compare(pair.small, pair.large, prompt, answer).large
            assert expected is not None
            assert found is not None
            last = len(answer) - (len(prompt) + len(answer) == room)
            assert torch.allclose(
                found.logprob_real_N[:last], expected.logprob_real_N[:last], atol=1e-5
            )
            assert torch.equal(found.top_ids_NK, expected.top_ids_NK)
            assert torch.allclose(found.top_logprobs_NK, expected.top_logprobs_NK, atol=1e-5)
        assert len(fake.requests) == len(prompts)


def test_a_server_that_tells_logits_is_refused_with_what_to_do() -> None:
    with served(LOGITS) as (pair, _):
        reading = pair.large.read([Answer((1, 2), (3, 4))], 20, 1)
        with pytest.raises(EngineError, match="--logprobs-mode processed_logprobs"):
            next(reading)


def test_readings_come_in_order_and_only_a_few_are_asked_for_ahead() -> None:
    taken: list[int] = []

    def texts() -> Iterator[Answer]:
        for i in range(9):
            taken.append(i)
            yield Answer((1, 2), (3 + i, 4))

    with served() as (pair, fake):
        readings = pair.large.read(texts(), 20, 2)
        first = next(readings)
        assert len(taken) == 3
        alone_ = next(pair.large.read([Answer((1, 2), (3, 4))], 20, 0))
        assert torch.equal(first.logprob_N, alone_.logprob_N)
        assert len(list(readings)) == 8
        assert len(fake.requests) == 10


@pytest.mark.parametrize("handed_over", [False, True])
def test_a_step_is_the_same_as_logits_and_as_log_probabilities(handed_over: bool) -> None:
    reserved = reserve(spare_pair().tokenizer, VOCAB)
    step = Step(reserved.hand_over if handed_over else 9, 9, 0.37, 2.5, handed_over, {9: -0.5})
    row_V = torch.zeros(VOCAB)
    fill(row_V, step, reserved)
    kinds: list[Callable[[torch.Tensor], torch.Tensor]] = [lambda x: x, lambda x: x.log_softmax(0)]
    for kind in kinds:
        told_V, ids = torch.topk(kind(row_V), 4)
        values = dict(zip(ids.tolist(), told_V.clamp_min(-9999.0).tolist(), strict=True))
        found = read_step(step.token_id, values, reserved)
        assert (found.token_id, found.proposed_id, found.handed_over) == (
            step.token_id, step.proposed_id, step.handed_over
        )  # fmt: skip
        assert found.score == pytest.approx(step.score, abs=1e-5)
        assert found.entropy == pytest.approx(step.entropy, abs=1e-5)
        assert found.logprobs == pytest.approx(step.logprobs, abs=1e-5)
    plain = {9: -0.1, reserved.hand_over: -2.0, reserved.score: -3.0, reserved.entropy: -4.0}
    with pytest.raises(EngineError, match="without the Crossroads plugin"):
        read_step(9, plain, reserved)
