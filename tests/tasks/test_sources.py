"""Problems from files, saved folders and the hub, without a network."""

from __future__ import annotations

import gc
import json
import logging
import socket
import sys
import threading
import time
import types
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars

from crossroads.errors import ConfigError, DataError, EngineError
from crossroads.tasks import load_problems
from crossroads.tasks.datasets import DatasetOptions, dataset_problems, hub_answers, parse_options
from crossroads.tasks.reasoning_gym import INSTRUCTION
from crossroads.types import Message
from loopback import closed_port, serving

datasets = pytest.importorskip("datasets")

ROWS = [
    {"prompt": "1 + 1?", "answer": "2", "topic": "sums", "key": "one"},
    {"prompt": "2 * 3?", "answer": "6", "topic": "products", "key": "two"},
    {"prompt": "5 - 1?", "answer": None, "topic": "sums", "key": "three"},
]
CHAT = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "u"},
    {"role": "assistant", "content": "a"},
]


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the library an empty cache, and a hub at a port where nobody listens.

    It leaves CSV files to the garbage collector, whose warnings would hit any later test.
    """
    hub_answers.cache_clear()
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    yield cache
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def write_lines(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write(kind: str, folder: Path, rows: list[dict[str, object]]) -> Path:
    """Write the same rows in one of the forms that the library opens."""
    if kind == "jsonl":
        return write_lines(folder / "sums.jsonl", list(rows))
    if kind == "json":
        (folder / "sums.json").write_text(json.dumps(rows), encoding="utf-8")
        return folder / "sums.json"
    table = datasets.Dataset.from_list(rows)
    if kind == "saved":
        table.save_to_disk(folder / "sums")
        return folder / "sums"
    if kind == "saved splits":
        datasets.DatasetDict(train=table, test=table.select([0])).save_to_disk(folder / "sums")
        return folder / "sums"
    suffix = "csv" if kind == "csv" else "parquet"
    path = folder / ("sums" if kind == "folder" else "") / f"sums.{suffix}"
    path.parent.mkdir(exist_ok=True)
    (table.to_csv if suffix == "csv" else table.to_parquet)(path)
    return path.parent if kind == "folder" else path


KINDS = ["jsonl", "json", "csv", "parquet", "folder", "saved", "saved splits"]


@pytest.fixture(autouse=True)
def quiet() -> None:
    datasets.disable_progress_bars()  # those of the writing above


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_gives_the_same_problems(tmp_path: Path, offline: Path, kind: str) -> None:
    path = write(kind, tmp_path, ROWS)
    task = f"datasets:path={path},answer=answer,domain=topic,id=key"
    problems = load_problems(task, 10, 0)
    assert [p.id for p in problems] == ["one", "two", "three"]
    assert [p.answer for p in problems] == ["2", "6", None]
    assert [p.domain for p in problems] == ["sums", "products", "sums"]
    assert [p.messages for p in problems] == [(Message("user", r["prompt"]),) for r in ROWS]
    assert load_problems(task, 2, 5) == problems[:2]
    assert not offline.exists()  # nothing is left in the user's cache


@pytest.mark.parametrize("kind", KINDS)
def test_without_columns_for_them_ids_and_domains_come_from_the_name(tmp_path, kind: str) -> None:
    problems = load_problems(f"datasets:path={write(kind, tmp_path, ROWS)}", 10, 0)
    assert [p.id for p in problems] == ["sums-0", "sums-1", "sums-2"]
    assert {p.domain for p in problems} == {"sums"}
    assert {p.answer for p in problems} == {None}


def state() -> tuple[bool, bool, int, bool]:
    """Return what the library and the hub's client would show, and whether they are offline."""
    return (
        datasets.is_progress_bar_enabled(),
        not are_progress_bars_disabled(),
        datasets.logging.get_verbosity(),
        datasets.config.HF_HUB_OFFLINE,
    )


@pytest.mark.parametrize("fails", [False, True])
def test_the_library_is_silent_while_it_works_and_then_as_it_was(monkeypatch, fails: bool) -> None:
    datasets.enable_progress_bars()
    enable_progress_bars()
    before, during = state(), []

    def load(*_arguments: object, **_options: object) -> object:
        during.append(state())
        if fails:
            raise RuntimeError("no\nmore")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match=r"a/b: no$") if fails else nullcontext():
        load_problems("datasets:path=a/b", 3, 0)
    (bars, hub_bars, verbosity, offline), *others = during
    assert (bars, hub_bars, offline, others) == (False, False, True, [])
    assert verbosity > logging.CRITICAL
    assert state() == before


def test_messages_are_taken_where_there_is_no_prompt_and_lose_the_reply(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "chats.jsonl", [{"messages": CHAT}])
    (problem,) = load_problems(f"datasets:path={path}", 5, 0)
    assert problem.messages == (Message("system", "s"), Message("user", "u"))
    both = write_lines(tmp_path / "both.jsonl", [{"messages": CHAT, "prompt": "p"}])
    (first,) = load_problems(f"datasets:path={both}", 5, 0)
    (second,) = load_problems(f"datasets:path={both},prompt=messages", 5, 0)
    assert first.messages == (Message("user", "p"),)
    assert second.messages == problem.messages


def test_an_instruction_follows_the_last_message(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "chats.jsonl", [{"messages": CHAT}])
    task = f"datasets:path={path},instruction=First think\\, then say."
    (problem,) = load_problems(task, 5, 0)
    assert problem.messages == (
        Message("system", "s"),
        Message("user", "u\n\nFirst think, then say."),
    )


def test_options_are_read_with_their_commas() -> None:
    assert parse_options(r"path=a/b,split=test,instruction=x=1\, y,prompt=q") == DatasetOptions(
        path="a/b", split="test", instruction="x=1, y", prompt="q"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path=a,promt=q", "no option 'promt'; known: prompt"),
        ("path=a,zzz=q", "no option 'zzz'; known: path, name, revision"),
        ("somewhere.jsonl", "no option 'somewhere.jsonl'"),
        ("path=a,split=", "`split` of the data set is given without a value"),
        ("path=a,path=b", "`path` of the data set is given twice"),
        ("prompt=q", "has no path"),
    ],
)
def test_bad_options_are_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_problems(f"datasets:{text}", 1, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("prompt=question", "no column 'question' for `prompt`; it has prompt, answer, topic, key"),
        ("answer=gold", "no column 'gold' for `answer`"),
        ("id=topic", "row 2 repeats the id 'sums' of row 0"),
        ("split=test", "Bad split: test"),
    ],
)
def test_columns_and_splits_that_are_not_there(tmp_path, options: str, message: str) -> None:
    path = write("jsonl", tmp_path, ROWS)
    with pytest.raises(DataError, match=message):
        load_problems(f"datasets:path={path},{options}", 5, 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": " "}, "row 1: `prompt` is empty"),
        ({"prompt": None}, "row 1: `prompt` must be text, got nothing"),
        ({"prompt": 3}, "row 1: `prompt` must be text, got a value of type int"),
        ({"prompt": "p", "answer": [1]}, "row 1: `answer` must be text or a number"),
        ({"prompt": "p", "answer": True}, "row 1: `answer` must be text or a number"),
        ({"prompt": "p", "id": ""}, "row 1: `id` is empty"),
        ({"prompt": "p", "id": True}, "row 1: `id` must be text, got a value of type bool"),
        ({"prompt": "p", "domain": None}, "row 1: `domain` must be text"),
        ({"prompt": []}, "row 1: `prompt` has no message"),
        ({"prompt": [CHAT[2]]}, "row 1: `prompt` has no message"),
        ({"prompt": [{"role": "user"}]}, "row 1: each message of `prompt` needs"),
        ({"prompt": [{"role": "user", "content": ""}]}, "row 1: `content` is empty"),
    ],
)
def test_a_row_that_is_no_problem_is_refused_with_its_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, row: dict[str, object], message: str
) -> None:
    good = {"prompt": "p", "answer": 1, "id": 0, "domain": "d"}

    class Table(list):  # a file's columns have one type; this one says anything
        column_names = tuple(good)

        def select_columns(self, _columns: list[str]) -> list[dict[str, object]]:
            return list(self)

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Table([good, good | row]))
    path = write_lines(tmp_path / "any.jsonl", [good])
    with pytest.raises(DataError, match=message):
        load_problems(f"datasets:path={path},answer=answer,id=id,domain=domain", 5, 0)


def test_numbers_are_taken_as_ids_answers_and_domains(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "n.jsonl", [{"prompt": "p", "i": 7, "a": 1.5, "d": 3}])
    (problem,) = load_problems(f"datasets:path={path},id=i,answer=a,domain=d", 5, 0)
    assert (problem.id, problem.answer, problem.domain) == ("7", "1.5", "3")


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved", "folder"])
def test_whole_numbers_stay_whole_beside_fractions_and_gaps(tmp_path: Path, kind: str) -> None:
    path = write(kind, tmp_path, [{"prompt": "p", "a": a} for a in (2.0, 2.5, None)])
    problems = load_problems(f"datasets:path={path},answer=a", 5, 0)
    assert [p.answer for p in problems] == ["2", "2.5", None]


def test_cells_of_a_csv_stay_the_text_that_they_are(tmp_path: Path) -> None:
    path = tmp_path / "cells.csv"
    cells = ["007", "2", "", "None", "1.50", "True", '"a, b"']
    text = "\ufeffprompt,a\n" + "".join(f"p,{cell}\n" for cell in cells)
    path.write_text(text, encoding="utf-8")
    problems = load_problems(f"datasets:path={path},answer=a", 9, 0)
    expected = ["007", "2", None, "None", "1.50", "True", "a, b"]
    assert [p.answer for p in problems] == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("broken.jsonl", b'{"prompt": "x"}\n{oops', "cannot open the data set"),
        ("broken.parquet", b"nothing of the kind", "cannot open the data set .*[Pp]arquet"),
        ("empty.jsonl", b"", "has no rows"),
        ("head.csv", b"prompt\n", "head.csv has no rows"),
        ("rows.xlsx", b"x", "cannot tell the format of"),
    ],
)
def test_files_that_hold_no_rows(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_problems(f"datasets:path={path}", 1, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["nowhere", "nowhere.jsonl", "a/nowhere.csv", "/no/such/folder"])
def test_a_path_that_leads_nowhere_is_not_asked_of_the_hub(monkeypatch, path: str) -> None:
    monkeypatch.setattr(datasets, "load_dataset", None)
    with pytest.raises(DataError, match=r"no data set at .*nowhere|no data set at /no/such"):
        load_problems(f"datasets:path={path}", 1, 0)


@pytest.mark.parametrize(
    ("kind", "option"),
    [("jsonl", "name=x"), ("jsonl", "revision=x"), ("saved", "name=x"), ("folder", "revision=x")],
)
def test_options_that_mean_nothing_there_are_refused(tmp_path, kind: str, option: str) -> None:
    path = write(kind, tmp_path, ROWS)
    with pytest.raises(ConfigError, match=f"has no `{option[:-2]}`"):
        load_problems(f"datasets:path={path},{option}", 1, 0)


def test_splits_of_a_saved_folder(tmp_path: Path) -> None:
    path = write("saved splits", tmp_path, ROWS)
    assert len(load_problems(f"datasets:path={path},split=test", 9, 0)) == 1
    with pytest.raises(DataError, match="no split 'dev'; it has train, test"):
        load_problems(f"datasets:path={path},split=dev", 9, 0)
    (tmp_path / "single").mkdir()
    single = write("saved", tmp_path / "single", ROWS)
    with pytest.raises(DataError, match="not named 'test'"):
        load_problems(f"datasets:path={single},split=test", 9, 0)


def test_at_least_one_problem_must_be_asked_for(tmp_path: Path) -> None:
    path = write("jsonl", tmp_path, ROWS)
    for task in (f"datasets:path={path}", f"gsm8k:{path}"):
        with pytest.raises(DataError, match="at least one"):
            load_problems(task, 0, 0)


def test_a_missing_library_tells_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(EngineError, match=r'pip install "crossroads-lm\[data\]"'):
        load_problems("datasets:path=x.jsonl", 1, 0)


def test_a_hub_that_does_not_answer_fails_at_once_in_one_sentence() -> None:
    start = time.perf_counter()
    for _ in range(3):
        with pytest.raises(DataError, match="the hub cannot be reached and nobody/nothing was"):
            load_problems("datasets:path=nobody/nothing", 1, 0)
    assert time.perf_counter() - start < 12  # the library alone asks for 23 seconds


def test_offline_by_choice_says_so_and_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("crossroads.tasks.datasets.hub_answers", None)
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set and nobody/nothing was never"):
        load_problems("datasets:path=nobody/nothing", 1, 0)
    assert datasets.config.HF_HUB_OFFLINE is True


def test_a_revision_is_not_taken_from_a_cache_that_does_not_tell_revisions_apart() -> None:
    with pytest.raises(DataError, match="nothing tells whether a copy of a/b is revision v1"):
        load_problems("datasets:path=a/b,revision=v1", 1, 0)


class Silent(BaseHTTPRequestHandler):
    """A hub that refuses everybody: it is there all the same."""

    def do_HEAD(self) -> None:
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None: ...


def test_whether_the_hub_answers() -> None:
    with serving(Silent) as port:
        assert hub_answers(f"http://127.0.0.1:{port}")
    assert not hub_answers(f"http://127.0.0.1:{closed_port()}")
    with socket.socket() as mute:  # takes calls, says nothing
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        start = time.perf_counter()
        assert not hub_answers(f"http://127.0.0.1:{mute.getsockname()[1]}", 0.3)
        assert time.perf_counter() - start < 15


def cache_gsm8k(cache: Path, folder: Path, rows: list[object]) -> None:
    """Put rows where the library keeps the test split of openai/gsm8k once it was fetched."""
    source = write_lines(folder / "fetched.jsonl", rows)
    datasets.load_dataset("json", data_files={"test": str(source)}, cache_dir=str(folder / "own"))
    (built,) = (folder / "own" / "json").glob("*/0.0.0/*/dataset_info.json")
    target = cache / "openai___gsm8k" / "main" / "0.0.0" / "abc"
    target.parent.mkdir(parents=True)
    built.parent.rename(target)
    (target / "json-test.arrow").rename(target / "gsm8k-test.arrow")
    info = json.loads((target / "dataset_info.json").read_text(encoding="utf-8"))
    info |= {"config_name": "main", "dataset_name": "gsm8k"}
    (target / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")


def test_a_look_up_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    client = types.SimpleNamespace(head=lambda *_, **__: done.wait(20))
    monkeypatch.setattr("huggingface_hub.get_session", lambda: client)
    start = time.perf_counter()
    assert not hub_answers("http://hangs.example", 0.2)
    assert time.perf_counter() - start < 15
    done.set()


SUMS = [
    {"question": "48 and 24?", "answer": "48 + 24 = <<48+24=72>>72\n#### 72"},
    {"question": "1000 and 500?", "answer": "Not #### 2,000 but\n#### 1,500"},
    {"question": "2 less 5?", "answer": "#### -3 "},
]


def test_what_was_fetched_before_is_found_without_a_network(tmp_path: Path, offline: Path) -> None:
    cache_gsm8k(offline, tmp_path, list(SUMS))
    problems = load_problems("gsm8k:test", 2, 0)
    assert [(p.id, p.domain, p.answer) for p in problems] == [
        ("gsm8k-test-0", "gsm8k", "72"),
        ("gsm8k-test-1", "gsm8k", "1500"),
    ]
    assert problems[0].messages == (Message("user", f"48 and 24?\n\n{INSTRUCTION}"),)
    options = DatasetOptions("openai/gsm8k", name="main", split="test", prompt="question")
    assert len(dataset_problems(options)) == 3
    with pytest.raises(DataError, match="cannot open the data set openai/gsm8k"):
        load_problems("gsm8k:train", 2, 0)


def test_a_row_of_the_hub_without_its_mark_is_refused(tmp_path: Path, offline: Path) -> None:
    cache_gsm8k(offline, tmp_path, [*SUMS, {"question": "q", "answer": "none"}])
    with pytest.raises(DataError, match="openai/gsm8k row 3: the answer must end in `#### 72`"):
        load_problems("gsm8k:test", 9, 0)


def test_a_file_of_gsm8k(tmp_path: Path) -> None:
    path = tmp_path / "mini.jsonl"
    text = "\ufeff" + "\n\n".join(json.dumps(row) for row in SUMS)
    path.write_text(text, encoding="utf-8")
    problems = load_problems(f"gsm8k:{path}", 10, 0)
    assert [p.id for p in problems] == ["gsm8k-mini-0", "gsm8k-mini-1", "gsm8k-mini-2"]
    assert [p.answer for p in problems] == ["72", "1500", "-3"]
    assert {p.domain for p in problems} == {"gsm8k"}
    assert problems[2].messages == (Message("user", f"2 less 5?\n\n{INSTRUCTION}"),)
    assert load_problems(f"gsm8k:{path}", 2, 9) == problems[:2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3 is not JSON"),
        ("[]", "line 3 needs `question` and `answer`"),
        ('{"question": " ", "answer": "#### 1"}', "line 3 needs `question`"),
        ('{"question": "q", "answer": 1}', "line 3 needs `question`"),
        ('{"question": "q", "answer": "so it is 72"}', "line 3: the answer must end in `#### 72`"),
        ('{"question": "q", "answer": "72 ####"}', "line 3: the answer must end in"),
    ],
)
def test_a_bad_line_of_gsm8k_is_refused_with_its_number(tmp_path, line: str, message: str) -> None:
    path = tmp_path / "mini.jsonl"
    path.write_text(f"{json.dumps(SUMS[0])}\n\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_problems(f"gsm8k:{path}", 10, 0)


def test_gsm8k_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "\xe9"}')
    for name, message in [
        ("empty.jsonl", "has no problems"),
        ("latin.jsonl", "not UTF-8"),
        ("missing.jsonl", "cannot read the problems .*No such file"),
    ]:
        with pytest.raises(DataError, match=message):
            load_problems(f"gsm8k:{tmp_path / name}", 1, 0)
