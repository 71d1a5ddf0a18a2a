"""The terminal chat: the models' own tokens, a conversation that can be taken back and kept."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import itertools
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import crossroads.cli.chat_file
import crossroads.models.pairs
from crossroads.cli.answer import visible
from crossroads.cli.chat_commands import COMMANDS
from crossroads.cli.chat_file import SavedChat, load_chat
from crossroads.cli.chat_text import ScoreAxis, promise, scores_parts, total_usage
from crossroads.cli.conversation import ctrl_c_cancels
from crossroads.cli.main import run
from crossroads.decoding.request import Request
from crossroads.errors import DataError
from crossroads.models.pairs import Pair
from crossroads.models.scripted import ScriptedTokenizer
from crossroads.sampling import SamplingParams
from crossroads.types import FinishReason, Message, Role, Trace
from laws.pairs import VOCAB, alone, mixed, scripted_pair

NO_SIGNALS = pytest.mark.skipif(os.name == "nt", reason="signals")
MIDDLE = 0.65
HELLO = "HELLO THERE"
STYLE = re.compile(r"\x1b\[[\d;]*m")


class Terminal(io.StringIO):
    """Lines as a person types them; `^C` is the key."""

    def isatty(self) -> bool:
        return True

    def readline(self, *_: Any) -> str:
        line = super().readline()
        if line == "^C\n":
            raise KeyboardInterrupt
        return line


@dataclasses.dataclass(frozen=True)
class Talk:
    """What a chat came to."""

    code: int
    out: str
    err: str
    pair: Pair


Chat = Callable[..., Talk]


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Chat]:
    """Return a function that talks with a scripted pair."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def talk(*lines: str, options: str = "", pair: Pair | None = None, typed: bool = False) -> Talk:
        models = pair or scripted_pair(max_rows=1)
        monkeypatch.setattr(crossroads.models.pairs, "load_pair", lambda *_, **__: models)
        text = "".join(f"{line}\n" for line in lines)
        monkeypatch.setattr("sys.stdin", Terminal(text) if typed else io.StringIO(text))
        capfd.readouterr()
        code = run(["chat", *options.split()])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        assert models.small.alive == models.large.alive == 0, "every cache is given back"
        return Talk(code, out, err, models)

    yield talk
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def saved(chat: Chat, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that talks and returns what /save wrote then."""

    def talk(*lines: str, **more: Any) -> Any:
        path = tmp_path / "saved.json"
        done = chat(*lines, f"/save! {path}", **more)
        assert f"written to {path}" in done.err
        return json.loads(path.read_text())

    return talk


def traces(content: Any) -> list[Trace]:
    return [Trace.from_json(turn["trace"]) for turn in content["turns"]]


def endless_pair(context_length: int = 4096) -> Pair:
    pair = scripted_pair(max_rows=1, context_length=context_length)
    for model in (pair.small, pair.large):
        model._info = dataclasses.replace(model.info, eos_ids=())
    return pair


def stopping(pair: Pair, calls: int) -> Pair:
    """Let Ctrl-C be pressed when the small model is called for the so-manieth time."""
    extend = pair.small.extend

    def press(*arguments: Any) -> Any:
        if len(pair.small.calls) == calls:
            time.sleep(0.1)  # until what was written has been shown
            os.kill(os.getpid(), signal.SIGINT)
        return extend(*arguments)

    pair.small.extend = press
    return pair


# Laws


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("model", ["mixed", "small", "large"])
def test_a_turn_is_the_models_answer_to_everything_before_it(
    saved: Callable[..., Any], model: str, temperature: float
) -> None:
    options = f"--threshold {MIDDLE} --model {model} --temperature {temperature} --max-tokens 30"
    content = saved(HELLO, "AND NOW?", options=options + " --system BRIEF")
    pair = scripted_pair()
    said = [Message("system", "BRIEF")]
    for turn, trace in zip(content["turns"], traces(content), strict=True):
        said.append(Message("user", turn["text"]))
        request = Request(
            tuple(pair.tokenizer.render(said)), 30, SamplingParams(temperature=temperature)
        )
        if model == "mixed":
            (expected,) = mixed(pair, [request], MIDDLE)
        else:
            (expected,) = alone(pair, Role(model), [request])
        assert trace.token_ids == expected.token_ids
        # What a turn shares with the one before it is in the large model's cache.
        assert trace.usage.lag_tokens <= expected.usage.lag_tokens
        own, fresh = (dataclasses.replace(t.usage, lag_tokens=0) for t in (trace, expected))
        assert own == fresh
        assert trace.text == expected.text
        said.append(Message("assistant", trace.text))
    assert content["messages"] == [dataclasses.asdict(message) for message in said]


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["/model small", "/temperature 0.9", "/seed 7"],
        ["/threshold 0.6", "/system BE KIND", "/max-tokens 9", "/large-fraction 0.4"],
        ["/revise 0.1", "/threshold 0.9"],
    ],
)
def test_what_was_saved_and_loaded_gives_the_same_next_answer(
    chat: Chat, saved: Callable[..., Any], tmp_path: Path, settings: list[str]
) -> None:
    options = "--policy momentum:factor=0.6 --max-lag 5 --top-k 9 --stop XYZ"
    before = tmp_path / "before.json"
    went_on = saved(*settings, HELLO, f"/save {before}", "GO ON", options=options)
    loaded = saved(f"/load {before}", "GO ON", options="--threshold 0.01 --system OTHER")
    assert [t.token_ids for t in traces(loaded)] == [t.token_ids for t in traces(went_on)]
    for part in ("messages", "settings", "models", "router"):
        assert loaded[part] == went_on[part]


def test_the_statistics_are_the_counts_of_the_traces(chat: Chat, saved: Callable[..., Any]) -> None:
    lines = [HELLO, "/threshold 0.6", "B", "/model small", "C", "/model large", "D"]
    lines += ["/model mixed", "/revise 0.02", "/threshold 0.8", "E"]
    content = saved(*lines, options="--max-tokens 25 --max-lag 4")
    shown = chat(*lines, "/stats", options="--max-tokens 25 --max-lag 4").out
    rows = [line.split() for line in shown.splitlines() if re.match(r"\s*(\d|all) ", line)]
    usages = [trace.usage for trace in traces(content)]
    assert any(usage.discarded_tokens for usage in usages)
    assert len({usage.large_calls == usage.large_tokens for usage in usages}) == 2
    total = usages[0]
    for usage in usages[1:]:
        total += usage
    for cells, usage in zip(rows, [*usages, total], strict=True):
        counts = [cell for cell in cells[1:] if cell not in ("mixed", "small", "large")]
        assert counts[:5] == [
            str(usage.small_tokens),
            str(usage.large_tokens),
            f"{usage.large_fraction:.3f}",
            str(usage.large_calls),
            str(usage.discarded_tokens),
        ]
    scored = sum(r.score is not None for trace in traces(content) for r in trace.records)
    bins = [int(found) for found in re.findall(r"from \S+ +(\d+)", shown)]
    assert f"scores of {scored} tokens" in shown
    assert len(bins) == 10
    assert sum(bins) == scored


@pytest.mark.parametrize(
    "lines",
    [
        [HELLO, "B", "/undo", "C"],
        ["B", "/reset", HELLO, "C"],
        [HELLO, "/retry", "/threshold nan", "C"],
        ["/temperature 0.9", "B", "/undo", "/temperature 0", HELLO, "C"],
    ],
)
def test_what_was_taken_back_leaves_no_trace(saved: Callable[..., Any], lines: list[str]) -> None:
    expected = traces(saved(HELLO, "C"))
    assert [t.token_ids for t in traces(saved(*lines))] == [t.token_ids for t in expected]


def test_trying_again_is_greedy_the_same_and_sampled_another_answer(
    saved: Callable[..., Any],
) -> None:
    (first,) = traces(saved("/temperature 0.9", HELLO, options="--max-tokens 40"))
    content = saved("/temperature 0.9", HELLO, "/retry", options="--max-tokens 40")
    (again,) = traces(content)
    assert again.seed == content["settings"]["sampling"]["seed"] == first.seed + 1
    assert again.token_ids != first.token_ids
    (chosen,) = traces(saved("/temperature 0.9", HELLO, "/seed 5", "/retry"))
    assert chosen.seed == 5, "a seed that was asked for is taken as it is"
    greedy = traces(saved(HELLO)), traces(saved(HELLO, "/retry"))
    assert greedy[0][0].token_ids == greedy[1][0].token_ids


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/threshold -1", "threshold must be a number >= 0"),
        ("/threshold nan", "threshold must be a number >= 0"),
        ("/threshold much", "/threshold takes a number, got 'much'"),
        ("/model medium", "there is no model 'medium'; known: mixed, small, large"),
        ("/large-fraction 2", "max_large_fraction must be a share in [0, 1], got 2.0"),
        ("/revise 1.5", "revise_below must be a probability in [0, 1], got 1.5"),
        ("/temperature -1", "temperature must be a number >= 0, got -1.0"),
        ("/max-tokens 0", "max_tokens must be a whole number >= 1, got 0"),
        ("/max-tokens 1.5", "/max-tokens takes a whole number, got '1.5'"),
        ("/seed -3", "seed must be >= 0, got -3"),
        ("/undo it", "/undo stands alone, got 'it' after it"),
        ("/save", "which file? write /save FILE"),
        ("/load", "which file? write /load FILE"),
        ("/load /nowhere/chat.json", "no saved chat at /nowhere/chat.json"),
        ("/load a\0b", "is not valid JSON: embedded null byte"),
        ("/save a\0b", "cannot write"),
        ("/save /", "/ is a folder; give a file"),
        ("/thresold 0.5", "there is no command '/thresold'; did you mean '/threshold'?"),
        ("/", "there is no command '/'; known: /help"),
        ("/\x1b[31m", r"there is no command '/\x1b[31m'"),
    ],
)
def test_a_wrong_command_is_one_sentence_and_changes_nothing(
    chat: Chat, tmp_path: Path, line: str, sentence: str
) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    done = chat(HELLO, f"/save {before}", line, f"/save {after}")
    assert done.code == 2
    assert sentence in done.err
    assert "1 entry was refused" in done.err
    assert "\x1b" not in done.err
    contents = [json.loads(path.read_text()) for path in (before, after)]
    for part in ("settings", "messages", "turns"):
        assert contents[0][part] == contents[1][part]


@pytest.mark.parametrize("command", ["/retry", "/undo", "/stats", "/scores"])
def test_without_an_answer_there_is_nothing_to_show_or_take_back(chat: Chat, command: str) -> None:
    done = chat(command)
    assert done.code == 2
    assert "there is no answer yet; write a message first" in done.err


# What a model writes is nobody's word


class HostileTokenizer(ScriptedTokenizer):
    """Every token is something that a terminal would obey, or that nobody would see."""

    BYTES = (
        b"\x1b[2J", b"\x1b]0;owned\x07", b"\r", b"\x08", b"\xc2\x9b31m", b"\x7f", b"\x00",
        "\u202e".encode(), "\u2066".encode(), "\u200b".encode(), "\U000e0041".encode(), b"\x1b",
        b"[31m", b"\xe2\x80", b"\xae", b"\n", b"\t", b"A",
    )  # fmt: skip

    def text_bytes(self, token_id: int) -> bytes:
        return self.BYTES[token_id % len(self.BYTES)] if token_id else b""

    def decode(self, token_ids: Any) -> str:
        return b"".join(map(self.text_bytes, token_ids)).decode(errors="replace")


def hostile_pair() -> Pair:
    return dataclasses.replace(endless_pair(), tokenizer=HostileTokenizer(VOCAB))


def obeyed(text: str) -> set[str]:
    """Return the characters that a terminal would obey, or hide, of a text without our styles."""
    text = STYLE.sub("", text)
    return {c for c in text if c not in "\n\t" and (not c.isprintable() and c != " ")}


@pytest.mark.parametrize("color", ["always", "never"])
def test_escapes_never_reach_the_output(chat: Chat, tmp_path: Path, color: str) -> None:
    path = tmp_path / "hostile.json"
    lines = [HELLO, "\x1b[31mB", "/system \x1b[31m", "/scores", "/stats", "/undo", f"/save {path}"]
    done = chat(*lines, options=f"--max-tokens 150 --color {color}", pair=hostile_pair())
    again = chat(f"/load {path}", "/scores", pair=hostile_pair(), options=f"--color {color}")
    text = json.loads(path.read_text())["turns"][0]["trace"]["text"]
    assert {"\x1b", "\r", "\x9b", "\u202e", "\u200b"} <= set(text), "the file has all of it"
    for shown in (done.out, done.err, again.out, again.err):
        assert obeyed(shown) == set()
    plain = STYLE.sub("", done.out)
    assert plain.startswith(visible(text))
    assert "\u27e8U+001B\u27e9[2J" in plain
    # Nothing of ours is hidden by it either: only styles are left, and every style ends.
    assert ("\x1b" in done.out) == (color == "always")


def test_generate_shows_no_escapes_either(
    chat: Chat, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    chat(pair=hostile_pair())  # puts the pair in place
    path = tmp_path / "trace.json"
    assert run(["generate", HELLO, "--max-tokens", "150", "--trace", str(path)]) == 0
    out = capfd.readouterr().out
    assert obeyed(out) == set()
    assert out == visible(json.loads(path.read_text())["text"]) + "\n"


def test_visible_changes_nothing_that_can_be_seen() -> None:
    text = "plain\n\t漢字 žluť 👩‍👩‍👧 e\u0301 \u00a0 ~"
    assert visible(text) == text
    everything = "".join(chr(i) for i in range(0x3000))
    left = {c for c in visible(everything) if ord(c) < 32 or 0x7F <= ord(c) < 0xA0}
    assert left == {"\n", "\t"}


# Stopping


@NO_SIGNALS
@pytest.mark.parametrize("model", ["mixed", "small"])
def test_a_stopped_answer_frees_its_caches_and_stays_as_far_as_it_came(
    chat: Chat, tmp_path: Path, model: str
) -> None:
    path = tmp_path / "saved.json"
    pair = stopping(endless_pair(), 20)
    options = f"--max-tokens 3000 --model {model}"
    lines = [HELLO, f"/save {path}", "/max-tokens 5", "GO ON", f"/save! {path}"]
    done = chat(*lines, pair=pair, options=options, typed=True)
    assert done.code == 0
    assert "stopped; what was written stays" in done.err
    first, second = traces(json.loads(path.read_text()))
    assert first.finish_reason is FinishReason.CANCELLED
    assert 1 <= len(first.records) < 3000
    assert done.out.startswith(first.text + "\n")
    assert len(pair.small.calls) < 100, "its row left the batch"
    said = pair.tokenizer.encode(HELLO + first.text + "GO ON")
    assert list(second.prompt_ids) == said
    whole = endless_pair()
    request = Request(tuple(pair.tokenizer.encode(HELLO)), len(first.records))
    expected = (
        mixed(whole, [request], 0.15) if model == "mixed" else alone(whole, Role.SMALL, [request])
    )
    assert first.token_ids == expected[0].token_ids
    assert first.text == expected[0].text
    assert first.threshold == (0.15 if model == "mixed" else None)


@NO_SIGNALS
def test_ctrl_c_pressed_again_while_an_answer_is_being_stopped_tears_nothing() -> None:
    async def answer() -> str:
        try:
            with ctrl_c_cancels(True):
                for _ in range(3):
                    signal.raise_signal(signal.SIGINT)
                await asyncio.sleep(30)
        except asyncio.CancelledError:
            return "stopped"
        return "ran on"

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with asyncio.Runner() as runner:
            assert runner.run(answer()) == "stopped"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@NO_SIGNALS
def test_an_answer_stopped_before_its_first_token_is_no_turn(chat: Chat, tmp_path: Path) -> None:
    path = tmp_path / "saved.json"
    pair = stopping(endless_pair(), 5)
    extend = pair.small.extend

    def slow(*arguments: Any) -> Any:
        output = extend(*arguments)
        if len(pair.small.calls) == 6:
            time.sleep(0.2)  # the first token of the second answer takes its time
        return output

    pair.small.extend = slow
    lines = ["/max-tokens 5", HELLO, "B", f"/save {path}", "/retry", f"/save! {path}"]
    done = chat(*lines, pair=pair, typed=True)
    assert "stopped before the first token; the message was taken back" in done.err
    assert [m["content"] for m in json.loads(path.read_text())["messages"]][::2] == [HELLO]


@NO_SIGNALS
def test_the_earlier_answer_stays_where_the_new_one_was_stopped_at_once(
    chat: Chat, tmp_path: Path
) -> None:
    path = tmp_path / "saved.json"
    pair = stopping(endless_pair(), 5)
    extend = pair.small.extend

    def slow(*arguments: Any) -> Any:
        output = extend(*arguments)
        if len(pair.small.calls) == 6:
            time.sleep(0.2)
        return output

    pair.small.extend = slow
    lines = ["/max-tokens 5", "/temperature 0.5", HELLO, "/retry", f"/save {path}"]
    chat(*lines, pair=pair, typed=True)
    content = json.loads(path.read_text())
    assert traces(content)[0].seed == content["settings"]["sampling"]["seed"] == 0
    assert len(content["turns"]) == 1


@NO_SIGNALS
def test_ctrl_c_in_a_pipe_ends_all_of_it(chat: Chat) -> None:
    done = chat(HELLO, "NEVER", pair=stopping(endless_pair(), 20), options="--max-tokens 3000")
    assert done.code == 130
    assert len(done.out.splitlines()) == 1


def test_two_ctrl_c_at_the_prompt_quit_and_one_does_not(chat: Chat) -> None:
    done = chat("^C", HELLO, "^C", "/help", "^C", "^C", "NEVER", typed=True)
    assert done.code == 0
    assert done.err.count("once more Ctrl-C") == 3
    assert done.err.count("large_fraction") == 1, "one answer"
    assert "/threshold" in done.out


def test_a_persons_mistake_does_not_end_in_an_exit_code(chat: Chat) -> None:
    done = chat("/nothing", HELLO, typed=True)
    assert done.code == 0
    assert "there is no command '/nothing'" in done.err
    assert "/help lists the commands" in done.err


# Input


def test_messages_of_many_lines_and_such_that_look_like_commands(
    saved: Callable[..., Any],
) -> None:
    lines = ["A \\", "B", "", '"""', "/C", '  D"""', "", "E\\", '"""', "  ", "//F", " /G", "H\\"]
    content = saved(*lines[:-1], options="--max-tokens 2")
    said = [message["content"] for message in content["messages"][::2]]
    assert said == ["A \nB", '/C\n  D"""\n\nE\\', "/F", " /G"]


@pytest.mark.parametrize("typed", [False, True])
def test_a_block_without_an_end_is_not_sent(chat: Chat, typed: bool) -> None:
    done = chat('"""', "A", typed=typed)
    assert "close it with a line of" in done.err
    assert done.out == ""
    assert done.code == (0 if typed else 2)


def test_what_is_no_text_is_refused(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not UTF-8 text" in chat("A\udcff").err
    raw = io.TextIOWrapper(io.BytesIO(b"A\xff\n"), encoding="utf-8")
    monkeypatch.setattr(io, "StringIO", lambda _: raw)
    done = chat()
    assert done.code == 2
    assert "the input is not UTF-8 text" in done.err


def test_a_pipes_output_is_answers_and_what_was_asked_to_be_shown(
    chat: Chat, saved: Callable[..., Any]
) -> None:
    lines = [HELLO, "/temperature 0", "/threshold", "B"]
    content, done = saved(*lines), chat(*lines)
    assert done.code == 0
    assert done.out == "".join(trace.text + "\n" for trace in traces(content))
    assert done.err.count(" | large_fraction ") == 2


def test_colours_are_for_what_the_large_model_wrote(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = chat(HELLO, options=f"--threshold {MIDDLE}")
    done = chat(HELLO, options=f"--threshold {MIDDLE} --color always")
    assert "\x1b" not in plain.out
    assert STYLE.sub("", done.out) == plain.out
    large = int(re.search(r"small, (\d+) large", plain.err)[1])  # type: ignore[index]
    assert done.out.count("\x1b[95m") == large > 0
    assert STYLE.sub("", done.err).count("tokens/s") == 1


# The context


def test_a_full_context_says_how_to_go_on_and_loses_nothing(
    chat: Chat, saved: Callable[..., Any]
) -> None:
    pair = endless_pair(context_length=40)
    done = chat(HELLO, "B", "/stats", "/undo", "/max-tokens 3", "C", pair=pair)
    assert "the context of 40 tokens is full; /undo takes back the last turn" in done.err
    assert "the conversation has 41 tokens and the context holds 40" in done.err
    assert "/undo takes back the last turn, /reset all of them" in done.err
    assert "[3 tokens" in done.err
    assert "cut after 3 tokens; /max-tokens allows more" in done.err
    assert "the message has 50 tokens and the context holds 40" in chat("X" * 50, pair=pair).err


def test_one_model_alone_has_its_own_context(chat: Chat) -> None:
    pair = endless_pair()
    pair.large._info = dataclasses.replace(pair.large.info, context_length=20)
    done = chat("X" * 30, "/model small", "X" * 30, options="--max-tokens 2", pair=pair)
    assert done.err.count("the context holds 20") == 1
    assert "[2 tokens: 2 small" in done.err


def test_a_failing_model_costs_one_answer(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    from crossroads.errors import EngineError

    pair = endless_pair()
    extend = pair.small.extend

    def fail(*arguments: Any) -> Any:
        if len(pair.small.calls) == 5:
            pair.small.calls.append((0,))
            raise EngineError("out of memory")
        return extend(*arguments)

    pair.small.extend = fail
    done = chat(HELLO, "B", "/stats", pair=pair, options="--max-tokens 10")
    assert "error: out of memory" in done.err
    assert re.search(r"^all +\d", done.out.replace(" all", "all"), re.MULTILINE)
    assert done.err.count("tokens/s") == 1


# Files


def test_a_file_is_not_written_over_by_accident(chat: Chat, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    path.write_text("mine")
    done = chat(HELLO, f"/save {path}")
    assert f"{path} is there already; /save! {path} writes over it" in done.err
    assert path.read_text() == "mine"
    assert chat(HELLO, f"/save! {path}").code == 0
    assert len(json.loads(path.read_text())["turns"]) == 1
    (tmp_path / "file").write_text("")
    assert "cannot write" in chat(HELLO, f"/save {tmp_path / 'file' / 'x'}").err


def test_a_saved_chat_says_who_wrote_it(saved: Callable[..., Any]) -> None:
    content = saved(HELLO)
    assert content["models"]["small"]["fingerprint"] == "scripted-small"
    assert content["router"] == {"name": "entropy", "threshold": 0.15, "card_sha256": None}
    assert content["settings"]["threshold"] == 0.15
    assert "crossroads-lm" in content["provenance"]["versions"]


def test_other_models_go_on_and_another_tokenizer_or_router_does_not(
    chat: Chat, saved: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "chat.json"
    chat("/threshold 0.5", HELLO, f"/save {path}")
    other = scripted_pair(max_rows=1)
    other.large._info = dataclasses.replace(other.large.info, name="bigger", fingerprint="f")
    done = chat(f"/load {path}", "B", pair=other)
    assert "'large' wrote it as the large model, here that is 'bigger'" in done.err
    assert done.code == 0
    other.large._info = dataclasses.replace(other.large.info, tokenizer_fingerprint="t")
    done = chat(HELLO, f"/load {path}", "/undo", pair=other)
    assert "with another tokenizer; start the chat with that pair" in done.err
    assert "0 turns left" in done.err, "the present conversation stays"
    content = saved(f"/load {path}", options="--router margin --threshold 0.4")
    assert content["settings"]["threshold"] == 0.4, "a threshold belongs to its router"
    assert len(content["turns"]) == 1


JUNK = (None, "x", "\ud800", -1, 0.5, 1e300, True, [], {}, [1], {"a": 1}, float("nan"))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from places(inner, (*path, key))


def test_a_file_that_was_damaged_anywhere_is_refused_or_can_be_used(
    saved: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = saved("A", options="--max-tokens 1 --stop ZZ --policy rolling:size=2")
    text, refused, damaged = json.dumps(content), 0, content
    monkeypatch.setattr(crossroads.cli.chat_file, "read_json", lambda *_: damaged)
    tokenizer = ScriptedTokenizer(VOCAB)
    wanted = [place for place in places(content) if place[0] != "provenance"]
    for place, junk in itertools.product(wanted, (*JUNK, "absent")):
        damaged = json.loads(text)
        inner = damaged
        for key in place[:-1]:
            inner = inner[key]
        if junk == "absent":
            del inner[place[-1]]
        else:
            inner[place[-1]] = junk
        try:
            chat = load_chat(Path("damaged.json"), VOCAB)
        except DataError:
            refused += 1
            continue
        assert place[0] != "messages", "they are what its turns say, or somebody changed them"
        for turn in chat.turns:
            list(scores_parts(turn, tokenizer, ScoreAxis(1e-5), (), coloured=True))
        assert total_usage(chat.turns).generated_tokens >= 0
        tokenizer.render([Message("user", turn.text) for turn in chat.turns])
        json.dumps(_again(chat), allow_nan=False).encode()
    assert refused > 5 * len(wanted)


def _again(chat: SavedChat) -> Any:
    """Return what is written of a chat that was read."""
    request = chat.settings.request
    return [
        dataclasses.asdict(chat)["settings"]["system"],
        [turn.trace.to_json() for turn in chat.turns],
        [getattr(request, name) for name in ("threshold", "stop", "max_tokens", "revise_below")],
        dataclasses.asdict(request.sampling),
    ]


@pytest.mark.parametrize(
    "whole", ["", "[]", "{}", "3", '{"format": "crossroads-chat-1"}', "[" * 100_000]
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, whole: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(whole)
    with pytest.raises(DataError, match=r"other\.json"):
        load_chat(path, VOCAB)


# What a threshold and scores mean


QUANTILES = [10 ** (-5 + i / 20) for i in range(101)]
CALIBRATION = {
    "point": {"recall": 0.951, "positive_rate": 0.222},
    "recall": {"low": 0.93, "high": 0.97},
    "positive_rate": {"low": 0.21, "high": 0.23},
    "score_quantiles": QUANTILES,
}


def test_a_promise_never_rises_with_the_threshold_and_is_the_share_of_scores() -> None:
    shares = []
    for step in range(-10, 100):
        threshold = 10 ** (-5 + step / 20 + 0.001)
        said = promise(CALIBRATION, threshold, own=0.5)
        shares.append(int(said.split("about ")[1].split()[0]))
        reached = 100 * sum(q >= threshold for q in QUANTILES) / len(QUANTILES)
        assert abs(shares[-1] - reached) <= 1.5
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 100
    assert promise(CALIBRATION, 0.0, 0.5) == "the large model writes every token"
    assert promise(CALIBRATION, 1.5, 0.5) == "the small model writes every token"
    own = promise(CALIBRATION, 0.5, own=0.5)
    assert "positive_rate 22.2 % [21.0, 23.0], recall 95.1 % [93.0, 97.0]" in own
    assert "no calibration" in promise({}, 0.5, 0.5)


def test_the_axis_puts_every_score_into_the_bin_whose_bounds_it_has() -> None:
    for axis in (
        ScoreAxis.of({}),
        ScoreAxis.of(CALIBRATION),
        ScoreAxis.of({"score_quantiles": [0]}),
    ):
        assert axis.lower(0, 10) == 0
        for score in (0.0, 1e-9, *QUANTILES, 1.0):
            found = axis.bin(score, 10)
            assert axis.lower(found, 10) <= score * (1 + 1e-9)
            assert found == 9 or score <= axis.lower(found + 1, 10) * (1 + 1e-9)


def test_a_threshold_is_explained(chat: Chat) -> None:
    done = chat("/threshold", HELLO, "/threshold 0.5", "/model large", "/threshold 2")
    assert "threshold 0.15, the router's own" in done.err
    assert "this router has no calibration to promise anything" in done.err
    assert re.search(r"here large_fraction \d\.\d+ of \d+ generated tokens", done.err)
    assert "the small model writes every token" in done.err
    assert "it means nothing to large, which answers alone" in done.err


def test_scores_are_shown_with_and_without_colours(chat: Chat) -> None:
    options = f"--threshold {MIDDLE} --max-tokens 30"
    answer = chat(HELLO, options=options).out.rstrip("\n")
    heat = chat(HELLO, "/scores", options=options + " --color always").out
    assert STYLE.sub("", heat).replace("\n", "").count(answer[:25]) == 2
    assert "48;5;" in heat
    assert "the large model wrote it" in heat
    listed = chat(HELLO, "/scores", options=options).out
    assert "\x1b" not in listed
    scores = [
        float(line.split()[0]) for line in listed.splitlines()[-12:] if re.match(r" *0\.", line)
    ]
    assert len(scores) == 10
    assert scores == sorted(scores, reverse=True)
    none = chat("/model small", HELLO, "/scores").out
    assert "the answer has no scores: small wrote it alone" in none


def test_help_names_every_command(chat: Chat) -> None:
    shown = chat("/help").out
    assert all(f"/{name} " in shown for name in COMMANDS)


def test_settings_are_shown_and_quit_quits(chat: Chat) -> None:
    lines = ["/model", "/large-fraction", "/large-fraction 0.25", "/large-fraction off", "/revise"]
    lines += ["/revise 0.5", "/temperature", "/seed", "/max-tokens", "/system", "/system BE KIND"]
    done = chat(*lines, "/system off", "/system", "/quit", HELLO)
    assert done.code == 0
    for words in (
        "model mixed: both, router entropy at threshold 0.15", "large_fraction has no limit",
        "large_fraction never passes 0.25", "no small token is taken back", "gives less than 0.5",
        "temperature 0: greedy", "seed 0; it means nothing", "at most 1024 tokens",
        "system: BE KIND", "no system message",
    ):  # fmt: skip
        assert words in done.err
    assert done.out == ""


# Before the models load


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--threshold nan", "threshold must be a number >= 0"),
        ("--temperature -1", "temperature must be a number >= 0"),
        ("--max-tokens 0", "max_tokens must be a whole number >= 1"),
        ("--max-large-fraction 3", "max_large_fraction must be a share"),
        ("--lossless --revise-below 0.1", "leave revise_below out"),
        ("--model medium", "is not one of"),
        ("--color some", "is not one of"),
        ("--policy slow", "unknown policy 'slow'"),
        ("--router entrpy", "no router at entrpy"),
        ("--pair qwen", "there is no pair 'qwen'"),
    ],
)
def test_wrong_options_are_refused_before_the_models_load(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    options: str,
    sentence: str,
) -> None:
    monkeypatch.setattr(
        crossroads.models.pairs, "load_pair", lambda *_, **__: pytest.fail("they were loaded")
    )
    assert run(["chat", *options.split()]) == 2
    assert sentence in capfd.readouterr().err


# A terminal

CHILD = """
import dataclasses, fcntl, termios

fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # or Ctrl-C would be a character like others

import crossroads.models.pairs as pairs
from crossroads.cli.main import run
from laws.pairs import scripted_pair

pair = scripted_pair(max_rows=1, context_length=100_000)
for model in (pair.small, pair.large):
    model._info = dataclasses.replace(model.info, eos_ids=())
pairs.load_pair = lambda *_, **__: pair
code = run(["chat", "--threshold", "0.65", "--max-tokens", "90000"])
print(f"code {code}, caches {pair.small.alive} {pair.large.alive}")
"""


class Keyboard:
    """The other side of a pseudo-terminal."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.seen = ""

    def until(self, words: str, seconds: float = 30) -> str:
        """Return what appeared up to the words, and forget it."""
        end = time.monotonic() + seconds
        while words not in self.seen:
            ready, _, _ = select.select([self.descriptor], [], [], max(0, end - time.monotonic()))
            assert ready, f"no {words!r} in {self.seen[-2000:]!r}"
            self.seen += os.read(self.descriptor, 65536).decode(errors="replace")
        shown, _, self.seen = self.seen.partition(words)
        return shown

    def press(self, keys: str) -> None:
        os.write(self.descriptor, keys.encode())


@NO_SIGNALS
def test_on_a_terminal_answers_are_coloured_and_ctrl_c_stops_an_endless_one() -> None:
    import pty

    ours, theirs = pty.openpty()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    environment = {
        **os.environ,
        "TERM": "xterm-256color",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD],
        stdin=theirs, stdout=theirs, stderr=theirs,
        env=environment,
        start_new_session=True,
    )  # fmt: skip
    signal.signal(signal.SIGINT, before)
    os.close(theirs)
    terminal = Keyboard(ours)
    with process:
        try:
            terminal.until("Ctrl-D quits")
            terminal.until("> ")
            terminal.press("HELLO\r")
            assert "\x1b[95m" not in terminal.until("\x1b[95m"), "the large model's colour comes"
            terminal.press("\x03")
            terminal.until("cancelled]")
            terminal.until("stopped; what was written stays")
            terminal.until("> ")
            terminal.press("/max-tok\t5\r")
            terminal.until("at most 5 tokens")
            terminal.until("> ")
            terminal.press("\x1b[A\x1b[A\r")  # up: the first message again
            terminal.until("[5 tokens")
            terminal.until("> ")
            terminal.press("\x1b[200~ONE\nTWO\x1b[201~\r")  # pasted: one message
            terminal.until("length]")
            terminal.until("> ")
            terminal.press("/undo\r")
            terminal.until("took back 'ONE TWO'")
            terminal.until("> ")
            terminal.press("\x04")
            terminal.until("code 0, caches 0 0")
        finally:
            process.kill()
            os.close(ours)
