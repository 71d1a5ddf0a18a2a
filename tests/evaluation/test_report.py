import base64
import gzip
import hashlib
import html
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from crossroads.errors import ConfigError, DataError
from crossroads.evaluation import answers_table, report, words
from crossroads.evaluation.families import families
from crossroads.evaluation.figure import Point, cost_points, fraction_points, pareto_front
from crossroads.evaluation.folder import RunFolder, RunRecord, SystemEntry, TaskEntry
from crossroads.evaluation.grids import visible
from crossroads.evaluation.kinds import SystemKind
from crossroads.evaluation.report import check_packages, terminal_tables, write_report
from crossroads.evaluation.stored import StoredAnswer
from crossroads.evaluation.summary import summarise
from crossroads.evaluation.tables import tables_of
from crossroads.evaluation.traces import Spool, token_texts
from crossroads.grading import Grade
from crossroads.statistics import Interval
from crossroads.tasks.evaluation import Item
from crossroads.types import Cause, FinishReason, Message, Problem, Role, TokenRecord, Trace

HOSTILE = "</script><script>alert(1)</script>"
EMOJI = "\N{SLIGHTLY SMILING FACE}".encode()
# 0 is a special token; 5 and 6 are the halves of a character; 8 is half of one and never whole.
PIECES = {
    0: b"", 1: b" one", 2: b"<b>", 3: HOSTILE.encode(), 4: b"\n", 5: EMOJI[:2], 6: EMOJI[2:],
    7: b" [red]", 8: b"\xf0\x9f", 9: "\u00e9".encode(),
}  # fmt: skip

SMALL = SystemEntry("small", SystemKind.SMALL)
LARGE = SystemEntry("large", SystemKind.LARGE)
ROUTER = SystemEntry("router", SystemKind.ROUTER, "default", 50, 0.3, None, 0.9, 0.125)
HALF = SystemEntry("router~0.1", SystemKind.ROUTER, "default", 50, 0.6, "large_fraction 0.1")
ENTROPY = SystemEntry("entropy~router", SystemKind.BASELINE, "entropy", 0, 0.4, "router")
MARKUP = SystemEntry("[red] $x_1$ <b>", SystemKind.BASELINE, "random", 0, 0.5)
SYSTEMS = (SMALL, LARGE, ROUTER, HALF, ENTROPY, MARKUP)
FRACTION = {"small": 0.0, "large": 1.0, "router": 0.3, "router~0.1": 0.1}
ACCURACY = {"small": 0.2, "large": 0.9, "router": 0.8, "router~0.1": 0.6}

PROBLEMS = 20


def make_trace(system, generator, tokens):
    """Return a trace over the hostile pieces, as the system would write it."""
    records = []
    for i in range(tokens):
        large = generator.random() < FRACTION.get(system.name, 0.3)
        token = int(generator.integers(len(PIECES)))
        mixed = system.kind not in (SystemKind.SMALL, SystemKind.LARGE)
        other = (token + int(generator.integers(2))) % len(PIECES)
        records.append(
            TokenRecord(
                position=i,
                token_id=token,
                writer=Role.LARGE if large else Role.SMALL,
                proposed_id=None if system.kind is SystemKind.LARGE else other if large else token,
                score=float(np.float32(generator.random())) if mixed else None,
                entropy=float(np.float32(generator.random())),
                lag=int(generator.integers(1, 5)) if large or (mixed and i % 7 == 0) else 0,
                cause=Cause.ROUTER if large and mixed else None,
            )
        )
    text = b"".join(PIECES[r.token_id] for r in records).decode("utf-8", "replace")
    return Trace((1, 2), tuple(records), FinishReason.EOS, text, system.threshold, seed=3)


def make_grade(correct, index):
    if correct:
        return Grade(True, "42", "equal")
    return Grade(False, None, f"no box {HOSTILE}") if index % 2 else Grade(False, "41", "another")


def make_answer(system, item, index, sample, trace):
    """Return an answer; the first problems are answered correctly, later ones with more samples."""
    correct = (index + sample) % PROBLEMS < ACCURACY.get(system.name, 0.5) * PROBLEMS
    return StoredAnswer(item.problem.id, sample, trace, make_grade(correct, index), 0.5)


def write_answers(folder, task, system, answers):
    """Write a log at once: `append` waits for the disk at every answer."""
    path = folder.log(task, system).path
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(answer.to_json()) for answer in answers]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def make_folder(path, systems=SYSTEMS, problems=PROBLEMS, samples=1, tokens=40, tasks=("gsm",)):
    folder = RunFolder(path)
    for task in tasks:
        items = [
            Item(
                Problem(f"{task}/{i}{HOSTILE}", (Message("user", f"Why {i}? {HOSTILE}"),), "42"), {}
            )
            for i in range(problems)
        ]
        folder.write_items(task, items)
        for number, system in enumerate(systems):
            generator = np.random.default_rng(number)
            answers = [
                make_answer(system, item, i, sample, make_trace(system, generator, tokens))
                for i, item in enumerate(items)
                for sample in range(samples)
            ]
            write_answers(folder, task, system.name, answers)
    folder.add_pieces(PIECES)
    card = {"about": f"grade school {HOSTILE}", "few_shot": [{"user": "a", "assistant": "b"}]}
    folder.write_record(
        RunRecord(
            pair="tiny",
            small={"name": "small one", "active_parameters": 500},
            large={"name": "large one", "active_parameters": 1500},
            tasks=tuple(TaskEntry(task, "math", problems, card) for task in tasks),
            systems=tuple(systems),
            settings={"samples": samples, "max_tokens": 64, "seed": 0},
            provenance={"command": HOSTILE, "seeds": [0, 1]},
        )
    )
    return folder


@pytest.fixture
def quick(monkeypatch):
    """Leave out the pictures, which take most of the time; a test of them does without this."""
    monkeypatch.setattr(report, "write_files", lambda folder, drawing: None)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a run folder with its report, and its results."""
    folder = make_folder(tmp_path_factory.mktemp("run") / "run")
    results = summarise(folder)
    write_report(folder, results, training={"objective": HOSTILE, "rate": 0.031})
    return folder, results


def page_text(folder):
    return (folder.path / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Collects what a browser would make of the page."""

    VOID = ("meta", "input", "path", "use", "br", "rect", "link", "img")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.addresses, self.scripts = [], [], [], []
        self.tables, self.problems, self.policy = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.addresses += [v for n, v in attrs if n in ("src", "href", "xlink:href", "action")]
        if tag == "script":
            self.scripts.append((given, ""))
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]
        if given.get("class") == "problem":
            self.problems.append(given)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("th", "td"):
            self.tables[-1][-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open:
            return
        if self.open[-1] == "script":
            given, text = self.scripts[-1]
            self.scripts[-1] = (given, text + data)
        if self.open[-1] in ("th", "td"):
            self.tables[-1][-1][-1] += data

    def packed(self):
        """Return the packed problems in their order, and what they share."""
        found = [
            (given, json.loads(gzip.decompress(base64.b64decode(text))))
            for given, text in self.scripts
            if given.get("type") == "application/octet-stream"
        ]
        shared = [value for given, value in found if given.get("id") == "shared"]
        assert len(shared) == 1
        return [value for given, value in found if "id" not in given], shared[0]


def unpacked_writers(answer):
    """Return for each token: the writer, what was proposed (None: itself or nothing), whether
    the large model was asked."""
    proposals = iter(answer["proposals"])
    return [
        ("small" if w in "st" else "large", next(proposals) if w == "c" else None, w != "s")
        for w in answer["writers"]
    ]


# The files


def test_the_same_answers_give_the_same_bytes(tmp_path, written):
    folder, results = written
    again = make_folder(tmp_path / "other")
    write_report(again, summarise(again), training={"objective": HOSTILE, "rate": 0.031})
    made = sorted(
        path.relative_to(folder.path) for path in folder.path.rglob("*") if path.is_file()
    )
    assert {path.suffix for path in made} >= {".html", ".json", ".svg", ".png", ".parquet"}
    for path in made:
        assert (again.path / path).read_bytes() == (folder.path / path).read_bytes(), path
    first = page_text(folder)
    write_report(folder, results, training={"objective": HOSTILE, "rate": 0.031})
    assert page_text(folder) == first


def test_plots_are_pictures_in_light_colours(written):
    folder, _ = written
    names = sorted(path.name for path in (folder.path / "plots").iterdir())
    kinds = ("accuracy", "cost", "positions")
    assert names == sorted(f"gsm-{kind}.{form}" for kind in kinds for form in ("png", "svg"))
    for kind in kinds:
        png = (folder.path / "plots" / f"gsm-{kind}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        assert b"Software" not in png
        drawing = (folder.path / "plots" / f"gsm-{kind}.svg").read_text(encoding="utf-8")
        assert "#0072b2" in drawing
        assert "var(" not in drawing


def test_no_half_of_a_file_stays_behind(tmp_path):
    folder = make_folder(tmp_path / "run", problems=2)
    results = summarise(folder)
    (folder.path / "plots").write_text("a file where a folder must be", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot write"):
        write_report(folder, results)
    assert not (folder.path / "report.html").exists()
    assert not list(folder.path.glob("*.tmp"))


@pytest.mark.usefixtures("quick")
def test_an_answer_to_an_unknown_problem_is_refused(tmp_path):
    folder = make_folder(tmp_path / "run", problems=2)
    results = summarise(folder)
    stray = next(folder.answers("gsm", "router"))
    write_answers(folder, "gsm", "router", [replace(stray, problem_id="stray")])
    with pytest.raises(DataError, match="router answered 'stray'"):
        write_report(folder, results)


def test_the_table_of_answers_holds_them_all(written):
    parquet = pytest.importorskip("pyarrow.parquet")
    folder, _ = written
    rows = parquet.read_table(folder.path / "answers.parquet").to_pylist()
    stored = [(s.name, a) for s in SYSTEMS for a in folder.answers("gsm", s.name)]
    assert len(rows) == len(stored)
    for row, (system, answer) in zip(rows, stored, strict=True):
        trace = answer.trace
        assert (row["system"], row["problem"]) == (system, answer.problem_id)
        assert (row["correct"], row["parsed"]) == (answer.grade.correct, answer.grade.parsed)
        assert tuple(row["token_ids"]) == trace.token_ids
        assert row["writers"] == [r.writer.value for r in trace.records]
        assert row["proposed_ids"] == [r.proposed_id for r in trace.records]
        assert row["scores"] == [r.score for r in trace.records]
        assert row["entropies"] == [r.entropy for r in trace.records]
        assert row["text"] == trace.text
        assert row["large_fraction"] == trace.usage.large_fraction
        assert row["lag_tokens"] == sum(row["lags"])


@pytest.mark.usefixtures("quick")
def test_without_pyarrow_the_report_says_so_and_is_written(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "run", problems=2)
    monkeypatch.setattr(answers_table, "find_spec", lambda name: None)
    assert 'pip install "crossroads-lm[data]"' in check_packages()
    write_report(folder, summarise(folder))
    assert "crossroads-lm[data]" in page_text(folder)
    assert not (folder.path / "answers.parquet").exists()


def test_with_everything_installed_nothing_is_left_out():
    pytest.importorskip("pyarrow")
    assert check_packages() is None


# The page


def test_hostile_texts_are_texts(written):
    text = page_text(written[0])
    page = Page(text)
    assert HOSTILE not in text
    assert "<b>" not in text
    assert "b" not in page.tags
    runs = [given for given, _ in page.scripts if "type" not in given]
    assert len(runs) == 1


def test_the_page_loads_nothing_and_runs_its_own_script_alone(written):
    text = page_text(written[0])
    page = Page(text)
    assert all(address.startswith("#") for address in page.addresses)
    assert not re.search(r"@import|url\((?!#)", text)
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert "http" not in without_namespaces.replace("http-equiv", "")
    (script,) = (body for given, body in page.scripts if "type" not in given)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.policy
    assert "default-src 'none'" in page.policy
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|fetch\(", script)


def test_the_numbers_of_the_page_are_those_of_results_json(written):
    folder, _ = written
    stored = json.loads((folder.path / "results.json").read_text(encoding="utf-8"))
    tables = Page(page_text(folder)).tables
    numbers, costs, endings = ({row[0]: row[1:] for row in table[1:]} for table in tables[:3])
    (task,) = stored["tasks"]
    assert [system["system"] for system in task["systems"]] == list(numbers)
    (large,) = (s for s in task["systems"] if s["kind"] == "large")

    def shown(found, scale=100, digits=1):
        low, high = found["interval"]["low"], found["interval"]["high"]
        value = f"{scale * found['value']:.{digits}f}"
        if low == high:
            return value
        return f"{value} [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"

    for system in task["systems"]:
        gap = system["recovered"]
        relative = f"{100 * system['cost'] / large['cost']:.1f}"
        assert numbers[system["system"]] == [
            shown(system["accuracy"]),
            shown(system["large_fraction"]),
            words.percent(system["replaced_fraction"]),
            shown(system["tokens"], 1, 0),
            relative,
            shown(gap) if gap and gap["value"] is not None else words.NONE,
            task["ranking"]["letters"][system["system"]],
        ]
        assert costs[system["system"]][2] == relative
        assert costs[system["system"]][4] == f"{system['large_calls']:,}"
        records = [r for a in folder.answers("gsm", system["system"]) for r in a.trace.records]
        alone = system["kind"] in ("small", "large")
        other = [r.writer is Role.LARGE and r.token_id != r.proposed_id for r in records]
        assert system["replaced_fraction"] == (None if alone else sum(other) / len(other))
        assert endings[system["system"]][0] == f"{system['unparsed']}/20"
        assert endings[system["system"]][1] == f"{system['finish']['eos']}"
    assert endings["router"][2:] == ["0.3000", words.NONE, "90.0", "12.5"]
    differences = {row[0]: row[1:] for row in tables[3][1:]}
    pairs = {frozenset((p["first"], p["second"])): p for p in task["ranking"]["pairs"]}
    for other, cells in differences.items():
        pair = pairs[frozenset(("router", other))]
        sign = 1 if pair["first"] == "router" else -1
        assert cells[0].startswith(f"{100 * sign * pair['comparison']['difference']:+.1f} [")
        assert cells[1] == words.p_text(pair["comparison"]["p_value"])


def test_token_tables_are_the_counts_of_results_json(written):
    folder, _ = written
    stored = json.loads((folder.path / "results.json").read_text(encoding="utf-8"))
    tables = [t for t in Page(page_text(folder)).tables if t[0][0] == "proposed token"]
    usage = stored["usage"]["gsm"]
    assert list(usage) == [s.name for s in SYSTEMS[2:]]
    for table, found in zip(tables, usage.values(), strict=True):
        assert [(int(row[1]), int(row[2]), int(row[3])) for row in table[1:]] == [
            (token["token_id"], token["proposed"], token["sent"]) for token in found["tokens"]
        ]
        asked = sum(part["asked"] for part in found["relative"])
        assert asked == sum(part["asked"] for part in found["absolute"])
        assert asked == sum(token["sent"] for token in found["tokens"])


def test_what_entropy_would_have_sent_is_shown_for_every_mixed_system(written):
    folder, _ = written
    stored = json.loads((folder.path / "results.json").read_text(encoding="utf-8"))
    (table,) = (t for t in Page(page_text(folder)).tables if "entropy would send %" in t[0])
    assert [row[0] for row in table[1:]] == [s.name for s in SYSTEMS[2:]]
    for name, sent, alike, inside, outside in table[1:]:
        found = stored["usage"]["gsm"][name]["overlap"]
        records = [r for a in folder.answers("gsm", name) for r in a.trace.records]
        assert sent == f"{found['sent']:,}" == f"{sum(r.lag > 0 for r in records):,}"
        assert alike == words.percent(found["alike"] / found["sent"])
        assert inside == words.percent(found["replaced_alike"] / found["alike"])
        apart = found["sent"] - found["alike"]
        assert outside == words.percent((found["replaced"] - found["replaced_alike"]) / apart)


def test_a_system_that_sends_everything_chooses_nothing(tmp_path, quick, monkeypatch):
    monkeypatch.setitem(FRACTION, "always", 1.0)
    always = SystemEntry("always", SystemKind.BASELINE, "always", 0, 0.0)
    folder = make_folder(tmp_path / "run", systems=(SMALL, LARGE, ROUTER, always), problems=3)
    write_report(folder, summarise(folder))
    (table,) = (t for t in Page(page_text(folder)).tables if "entropy would send %" in t[0])
    assert [row[0] for row in table[1:]] == ["router"]


def test_where_answers_part_is_counted_from_the_stored_ones(written):
    folder, _ = written
    tables = [t for t in Page(page_text(folder)).tables if t[0][:2] == ["and", "same"]]
    for router, table in zip(("router", "router~0.1"), tables, strict=True):
        assert [row[0] for row in table[1:]] == [s.name for s in SYSTEMS if s.name != router]
        for row in table[1:]:
            pairs = [
                {a.problem_id: a for a in folder.answers("gsm", name)} for name in (router, row[0])
            ]
            counts = [int(cell.split()[0]) for cell in row[1:]]
            assert sum(counts) == PROBLEMS
            sent = 0
            for problem, first in pairs[0].items():
                both = zip(first.trace.records, pairs[1][problem].trace.records, strict=True)
                writers = [(a.writer, b.writer) for a, b in both if a.token_id != b.token_id]
                sent += bool(writers) and writers[0] == (Role.LARGE, Role.SMALL)
            assert counts[1] == sent


def test_a_router_is_not_compared_with_a_heuristic_that_was_run_elsewhere(written):
    folder, results = written
    (table,) = (t for t in Page(page_text(folder)).tables if t[0][0] == "at equal large_fraction")
    shown = {row[0]: row for row in table[1:]}
    (result,) = results
    assert {(a.system, a.heuristic) for a in result.against} == {
        (router, heuristic)
        for router in ("router", "router~0.1")
        for heuristic in ("entropy", "random")
    }
    for against in result.against:
        row = shown[f"{against.system} minus {against.heuristic}"]
        if against.system == "router":  # at 0.3, as both heuristics
            assert row[2] == words.points(against.trade_off.comparison)
        else:
            assert row[2] == words.NONE
            assert "is 0.3" in row[-1]
            assert "~0.1" in row[-1]


def test_without_a_trained_router_nothing_is_compared_with_it(tmp_path, quick):
    folder = make_folder(tmp_path / "run", systems=(SMALL, LARGE, ENTROPY), problems=3)
    write_report(folder, summarise(folder))
    assert "Where answers part" not in page_text(folder)
    assert "Would entropy have sent" not in page_text(folder)


def test_embedded_answers_are_the_stored_ones(written):
    folder, _ = written
    problems, shared = Page(page_text(folder)).packed()
    pieces = dict(
        zip(
            shared["pieces"]["ids"],
            (text.encode("latin-1") for text in shared["pieces"]["bytes"]),
            strict=True,
        )
    )
    assert pieces == PIECES
    assert shared["systems"] == [system.name for system in SYSTEMS]
    assert [p["id"] for p in problems] == [item.problem.id for item in folder.items("gsm")]
    assert {p["gold"] for p in problems} == {"42"}
    assert problems[3]["messages"] == [["user", f"Why 3? {HOSTILE}"]]
    embedded = {(p["id"], a["system"], a["sample"]): a for p in problems for a in p["answers"]}
    count = 0
    for place, system in enumerate(SYSTEMS):
        for answer in folder.answers("gsm", system.name):
            found, trace = embedded[answer.problem_id, place, answer.sample], answer.trace
            count += 1
            assert tuple(found["ids"]) == trace.token_ids
            joined = b"".join(pieces[i] for i in found["ids"]).decode("utf-8", "replace")
            assert found.get("text", joined) == trace.text
            for (writer, was, asked), record in zip(
                unpacked_writers(found), trace.records, strict=True
            ):
                assert writer == record.writer.value
                assert asked == (record.lag > 0 or record.writer is Role.LARGE)
                replaced = record.writer is Role.LARGE and record.proposed_id != record.token_id
                assert was == (record.proposed_id if replaced else None)
            asked = [r for r in trace.records if r.lag > 0 or r.writer is Role.LARGE]
            assert found["lags"] == [r.lag for r in asked]
            scores = found.get("scores", [None] * len(trace.records))
            assert [s is None for s in scores] == [r.score is None for r in trace.records]
            close = [
                abs(s / 10_000 - r.score) <= 0.00005001
                for s, r in zip(scores, trace.records, strict=True)
                if s is not None
            ]
            assert all(close)
            assert found["correct"] == answer.grade.correct
            assert (found["parsed"], found["reason"]) == (answer.grade.parsed, answer.grade.reason)
    assert count == len(embedded) == len(SYSTEMS) * 20


@pytest.mark.usefixtures("quick")
def test_a_text_that_is_not_its_tokens_is_there_too(tmp_path):
    folder = make_folder(tmp_path / "run", (SMALL,), problems=1)
    cut = next(folder.answers("gsm", "small"))
    cut = replace(cut, trace=replace(cut.trace, text="cut at a stop string"))
    write_answers(folder, "gsm", "small", [cut])
    write_report(folder, summarise(folder))
    (problem,), _ = Page(page_text(folder)).packed()
    assert problem["answers"][0]["text"] == "cut at a stop string"


def test_a_problem_is_marked_by_its_verdicts(written):
    folder, _ = written
    page = Page(page_text(folder))
    assert [given["id"] for given in page.problems] == [f"p0-{i}" for i in range(20)]
    by_index = [given["data-flags"].split(",") for given in page.problems]
    assert by_index[0] == ["c"] * 6
    # Problem 19 is odd and beyond every accuracy: nobody's answer could be read.
    assert by_index[19] == ["u"] * 6
    assert by_index[10] == ["w", "c", "c", "c", "w", "w"]
    assert [given["data-disputed"] for given in (page.problems[i] for i in (0, 19, 10))] == [
        "no", "no", "yes",
    ]  # fmt: skip


@pytest.mark.parametrize("most", [0, 65, 119])
@pytest.mark.usefixtures("quick")
def test_a_bounded_page_keeps_disputed_problems_first(written, tmp_path, most):
    folder = make_folder(tmp_path / "run")
    write_report(folder, written[1], most_traces=most)
    page = Page(page_text(folder))
    problems, _ = page.packed()
    assert sum(len(p["answers"]) for p in problems) == most // 6 * 6
    disputed = [given["data-disputed"] == "yes" for given in page.problems]
    everywhere = [given["data-disputed"] == "yes" for given in Page(page_text(written[0])).problems]
    assert sum(disputed) == min(sum(everywhere), most // 6)
    assert f"{20 - most // 6} of 20 problems were left out" in page_text(folder)


@pytest.mark.usefixtures("quick")
def test_several_samples_are_told_apart(tmp_path):
    folder = make_folder(tmp_path / "run", (SMALL, LARGE, ROUTER), problems=4, samples=3)
    (result,) = summarise(folder)
    write_report(folder, [result])
    text = page_text(folder)
    problems, _ = Page(text).packed()
    assert [(a["system"], a["sample"]) for a in problems[0]["answers"]] == [
        (system, sample) for system in range(3) for sample in range(3)
    ]
    assert "pass@2 %" in text
    assert "1/3 small" in text
    assert "3/3 router" in text


def test_several_tasks_have_a_section_each_and_an_overview(tmp_path):
    folder = make_folder(tmp_path / "run", problems=3, tasks=("gsm", "code"))
    write_report(folder, summarise(folder))
    text = page_text(folder)
    page = Page(text)
    assert page.tables[0][0] == ["system", "gsm, correct %", "code, correct %"]
    assert 'id="task-0"' in text
    assert 'id="task-1"' in text
    assert (folder.path / "plots" / "code-accuracy.svg").exists()
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))


def test_the_page_says_what_was_asked_and_where_it_comes_from(written):
    text = page_text(written[0])
    for part in ("grade school", "few_shot", "large one", "Training", "0.031", "max_tokens"):
        assert part in text


@pytest.mark.parametrize("systems", [(SMALL,), (ROUTER,), (LARGE, ENTROPY)])
@pytest.mark.parametrize("tokens", [0, 1])
@pytest.mark.usefixtures("quick")
def test_nothing_breaks_when_there_is_little(tmp_path, systems, tokens):
    folder = make_folder(tmp_path / "run", systems, problems=1, tokens=tokens)
    results = summarise(folder)
    write_report(folder, results)
    page = Page(page_text(folder))
    assert len(page.problems) == 1
    assert "nan" not in " ".join(cell for table in page.tables for row in table for cell in row)
    console = Console(width=80, file=io.StringIO())
    for table in terminal_tables(results):
        console.print(table)


@pytest.mark.usefixtures("quick")
def test_all_unparsed_is_not_all_wrong(tmp_path):
    folder = make_folder(tmp_path / "run", (ROUTER,), problems=2)
    unparsed = Grade(False, None, "nothing to read")
    answers = [replace(answer, grade=unparsed) for answer in folder.answers("gsm", "router")]
    write_answers(folder, "gsm", "router", answers)
    write_report(folder, summarise(folder))
    page = Page(page_text(folder))
    assert {given["data-flags"] for given in page.problems} == {"u"}
    assert ["router", "2/2"] in [row[:2] for table in page.tables for row in table]


# Words


def test_the_headline_gives_the_result_and_its_doubt(written):
    _, (result,) = written
    first, *others = words.headline(result)
    first = first.replace("\u00a0", " ")
    assert "Over 20 problems of gsm the large model wrote" in first
    assert "router answered 80.0 % [" in first
    assert "20.0 % [" in first
    assert "small model alone" in first
    told = " ".join(others).replace("\u00a0", " ")
    assert "These problems do not tell it from the large model alone (-10.0 [" in told
    assert "more than the small model alone (+60.0 [" in told
    assert "% [" in told.partition("It recovers")[2]
    assert words.headline(replace(result, systems=result.systems[:2])) == [
        "No trained router was run; the systems are compared below."
    ]


def test_a_difference_read_from_either_side_is_the_same(written):
    _, (result,) = written
    for mine in words.against(result, "router"):
        (theirs,) = (a for a in words.against(result, mine.other) if a.other == "router")
        assert mine.comparison.difference == -theirs.comparison.difference
        assert mine.comparison.interval.low == -theirs.comparison.interval.high
        assert "-0.0 [" not in words.points(mine.comparison)
        assert mine.adjusted_p == theirs.adjusted_p
        assert mine.separated == (mine.verdict in ("more correct", "less correct"))
        assert mine.separated == (mine.adjusted_p <= 0.05)
        assert {mine.verdict, theirs.verdict} in (
            {"not separated"},
            {"more correct", "less correct"},
            {f"{word} correct alone, not among 15 pairs" for word in ("more", "less")},
        )


def test_a_refusal_to_rank_is_said_everywhere(written):
    folder, (result,) = written
    assert result.ranking.order is None
    (sentence,) = words.ranking_sentences(result)
    assert sentence.startswith("The systems are not ranked: 20 problems separate")
    assert html.escape(sentence) in page_text(folder)
    assert sentence in " ".join(printed([result], 500).split())
    clear = replace(result.ranking, order=(("large",), ("router", "x"), ("small",)), reason=None)
    (ranked,) = words.ranking_sentences(replace(result, ranking=clear))
    assert "large > router = x > small" in ranked


def printed(results, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    for table in terminal_tables(results):
        console.print(table)
    return console.export_text()


def test_terminal_tables_fit_and_show_names_as_they_are(written):
    _, results = written
    text = printed(results)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    named = [line for line in text.splitlines() if line.strip().startswith("[red] $x_1$ <b> ")]
    assert len(named) == 2  # a row in each table, not only the sentence below
    assert "80 [58, 92]" in text
    assert "\u2026" not in text
    assert "router minus another" in text


def test_one_system_needs_no_comparison(tmp_path):
    folder = make_folder(tmp_path / "run", (ROUTER,), problems=3)
    assert "minus another" not in printed(summarise(folder))


# Parts


def test_a_character_that_tokens_share_is_shown_by_the_last_of_them():
    assert token_texts([1, 5, 6, 9, 0], PIECES) == [" one", "", EMOJI.decode(), "\u00e9", ""]


def test_blanks_of_a_token_can_be_seen():
    assert visible(b" a\n", 3) == "\u2423a\u23ce"
    assert visible(b"", 3) == "\u27e83\u27e9"


def test_systems_of_one_router_are_a_family():
    found = families([*SYSTEMS, SystemEntry("oracle", SystemKind.ORACLE)])
    assert [(family.label, family.members) for family in found] == [
        ("router", ("router", "router~0.1")),
        ("entropy", ("entropy~router",)),
        ("[red] $x_1$ <b>", ("[red] $x_1$ <b>",)),
        ("oracle", ("oracle",)),
    ]
    assert [family.number for family in found] == [0, 1, 2, 3]


def test_the_front_is_what_no_other_point_beats():
    generator = np.random.default_rng(0)
    points = [
        Point(f"s{i}", SystemKind.ROUTER, float(x), float(y), None, Interval(0, 1))
        for i, (x, y) in enumerate(generator.integers(0, 8, (40, 2)))
    ]
    front = pareto_front(points)
    for point in points:
        beaten = any(
            (o.x < point.x and o.y >= point.y) or (o.x <= point.x and o.y > point.y) for o in points
        )
        assert (point not in front) == beaten
    assert [p.x for p in front] == sorted(p.x for p in front)


def test_points_are_the_results(written):
    _, (result,) = written
    points, costs = fraction_points(result), cost_points(result)
    assert points[2].x == 100 * result.systems[2].large_fraction.value
    assert points[2].y == 100 * result.systems[2].accuracy.value
    assert costs[1].x == pytest.approx(100)
    assert costs[0].x == pytest.approx(100 * result.systems[0].cost / result.systems[1].cost)
    without = replace(result, systems=result.systems[:1])
    assert cost_points(without)[0].x == result.systems[0].cost * 1e-9


def test_a_spool_gives_back_what_it_was_given():
    with Spool() as spool:
        for i in range(5):
            spool.add(("t", str(i % 2)), {"i": i, "text": "\u00e9" * i})
        assert [value["i"] for value in spool.values(("t", "0"))] == [0, 2, 4]
        assert spool.values(("t", "1"))[1] == {"i": 3, "text": "\u00e9" * 3}
        assert spool.values(("t", "none")) == []


def test_any_json_becomes_tables():
    rows = [
        {
            "router": "default",
            "test": {
                "point": {"recall": 0.95, "positives": 40},
                "recall": {"low": 0.9, "high": 0.99},
            },
        }
    ]
    value = {"seed": 1, "empty": {}, "none": None, "base_rates": {"divergent": 0.031}, "rows": rows}
    tables = tables_of(value, "Training")
    scalars = dict(tables[0].rows)
    assert scalars["seed"] == "1"
    assert scalars["base_rates \u203a divergent"] == "0.031"
    assert tables[1].header == ("router", "test \u203a recall", "test \u203a positives")
    assert tables[1].rows == (("default", "0.95 [0.9, 0.99]", "40"),)
