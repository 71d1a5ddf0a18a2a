"""`crossroads label` and what looks at its datasets, on a pair of tiny GGUF files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import builders
from crossroads.cli.main import run
from crossroads.dataset import LabelledDataset

pytest.importorskip("llama_cpp")

# Prompts whose answers the tiny large model ends by itself; most of its answers never end.
NUMBERS = (10, 4, 1, 27, 37)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the options that name a pair of tiny GGUF files."""
    folder = tmp_path_factory.mktemp("tiny")
    small = builders.tiny_gguf(folder / "small.gguf", 2, agrees_with=1)
    large = builders.tiny_gguf(folder / "large.gguf", 1)
    return ["--small", str(small), "--large", str(large), "--context", "256"]


def write(path: Path, numbers=NUMBERS, prefix: str = "q", **more: str) -> Path:
    lines = [
        {"id": f"{prefix}{i}", "prompt": f"hello world {i * i} and {i}", "answer": "1", **more}
        for i in numbers
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("problems") / "problems.jsonl")


@pytest.fixture(scope="module")
def labelled(tiny, problems, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dataset that the command line made, with two judges."""
    out = tmp_path_factory.mktemp("labels") / "out"
    judges = ["--judge", "likelihood:ratio=0.2", "--judge", "convergence", "--combine", "any"]
    assert run(["label", str(out), "--problems", str(problems), *tiny, *judges, *QUICK]) == 0
    return out


QUICK = ["--allow-contaminated", "--max-tokens", "200"]


def test_labels_come_with_rates_beside_the_papers(
    labelled, tiny, problems, tmp_path, capfd: pytest.CaptureFixture[str]
) -> None:
    again = ["label", str(tmp_path / "out"), "--problems", str(problems), *tiny, *QUICK]
    assert run(again) == 0
    out, err = capfd.readouterr()
    for text in ("R2R (paper)", "split train", "divergent %", "judge: likelihood"):
        assert text in out
    for stage in ("large model answers: 5 answers", "both models compare", "judge likelihood"):
        assert stage in err
    assert "continues" not in err, "no judge asked for continuations"
    card = LabelledDataset.open(labelled).card
    assert [judge["name"] for judge in card["judges"]] == ["likelihood", "convergence"]
    assert card["judges"][0]["ratio"] == 0.2
    assert card["combine"] == "any"


def test_a_finished_run_is_returned_and_another_one_refused_by_name(
    labelled, tiny, problems, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["label", str(labelled), "--problems", str(problems), *tiny, *QUICK]
    judges = ["--judge", "likelihood:ratio=0.2", "--judge", "convergence", "--combine", "any"]
    before = (labelled / "dataset.json").stat().st_mtime_ns
    assert run([*command, *judges]) == 0
    assert (labelled / "dataset.json").stat().st_mtime_ns == before
    capfd.readouterr()
    assert run([*command, *judges, "--temperature", "0.5"]) == 2
    assert "temperature: was 0.0, now 0.5" in capfd.readouterr().err
    assert run([*command, "--judge", "likelihood:ratio=0.2"]) == 2
    assert "judges: was" in capfd.readouterr().err


def test_stages_alone_and_then_another_judge(
    tiny, problems, tmp_path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["label", str(tmp_path / "out"), "--problems", str(problems), *tiny, *QUICK]
    assert run([*command, "--stage", "respond", "--stage", "compare"]) == 0
    assert run([*command, "--stage", "judge"]) == 0
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert run([*command, "--stage", "build"]) == 0
    narrow = LabelledDataset.open(tmp_path / "out").card["base_rates"]["all"]["divergent"]
    wider = ["--judge", "likelihood:ratio=0.9", "--rebuild"]
    assert run([*command, *wider]) == 0
    assert LabelledDataset.open(tmp_path / "out").card["base_rates"]["all"]["divergent"] > narrow
    capfd.readouterr()


def test_evaluation_questions_are_refused_unless_dropped(
    tiny, tmp_path, capfd: pytest.CaptureFixture[str]
) -> None:
    train = write(tmp_path / "train.jsonl", (*NUMBERS, 2, 3))
    held_out = write(tmp_path / "test.jsonl", (3, 5), prefix="t")
    command = ["label", str(tmp_path / "out"), "--problems", str(train), *tiny]
    command += ["--max-tokens", "200", "--against", f"jsonl:{held_out}"]
    assert run(command) == 2
    err = capfd.readouterr().err
    assert "1 of 7 problems hold questions of evaluation sets (the first, 'q3'" in err
    assert not (tmp_path / "out").exists()
    assert run([*command, "--drop-contaminated"]) == 0
    assert "1 problems hold evaluation questions and are left out" in capfd.readouterr().err
    card = LabelledDataset.open(tmp_path / "out").card
    assert card["screening"]["contamination"]["dropped"] == ["q3"]
    assert card["screening"]["contamination"]["checked"] == {f"jsonl:{held_out}": 2}


def test_duplicates_are_told_and_sources_may_not_share_ids(
    tiny, problems, tmp_path, capfd: pytest.CaptureFixture[str]
) -> None:
    twin = write(tmp_path / "twin.jsonl", (10, 4), prefix="twin")
    command = ["label", str(tmp_path / "out"), "--problems", str(problems), *tiny, *QUICK]
    assert run([*command, "--problems", str(twin)]) == 0
    assert "2 problems are equal to others" in capfd.readouterr().err
    rows = {r.problem_id: r.split for r in LabelledDataset.open(tmp_path / "out").responses}
    assert rows["q10"] == rows["twin10"]
    same = write(tmp_path / "same.jsonl", (10,))
    assert run([*command[:1], str(tmp_path / "x"), *command[2:], "--problems", str(same)]) == 2
    assert "the id 'q10' occurs in" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "there is nothing to label; give --problems FILE or --task NAME"),
        (["--task", "nonsense:x"], "there is no task 'nonsense:x'"),
        (["--problems", "PROBLEMS", "--judge", "oracle"], "there is no judge 'oracle'"),
        (["--problems", "PROBLEMS", "--judge", "likelihood:ratio"], "is not KEY=VALUE"),
        (["--problems", "PROBLEMS", "--samples", "3"], "would all be the same"),
        (["--problems", "PROBLEMS", "--judge", "llm:url=nowhere,model=m"], "http"),
        (["--problems", "PROBLEMS", "--judge", "llm:url=http://127.0.0.1:9/v1,model=m,retries=0"],
         "does not answer"),
        (["--problems", "PROBLEMS", "--judge", "embedding:bound=7"], "bound"),
        (["--problems", "MISSING"], "no problems at"),
        (["--problems", "EMPTY"], "`prompt` is empty"),
        (["--problems", "PROBLEMS", "--ray", "auto"], "--ray is about workers and there are none"),
        (["--problems", "PROBLEMS", "--worker-gpus", "1"], "give --workers N"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(
    options, message, tiny, problems, tmp_path, capfd: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"id": "a", "prompt": " "}\n')
    paths = {"PROBLEMS": str(problems), "MISSING": str(tmp_path / "none"), "EMPTY": str(empty)}
    given = [paths.get(option, option) for option in options]
    assert run(["label", str(tmp_path / "out"), *tiny, *QUICK, *given]) == 2
    err = capfd.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert sum(line.startswith("error:") for line in err.splitlines()) == 1


def labels_of(folder: Path) -> dict[str, list[int]]:
    dataset = LabelledDataset.open(folder)
    return {r.problem_id: dataset.labels().of(r).label_N.tolist() for r in dataset.responses}


def test_other_verbs_read_the_dataset(
    labelled, tmp_path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["audit", str(labelled)]) == 0
    export = tmp_path / "export"
    assert run(["export", str(labelled), str(export), "--format", "r2r-parquet"]) == 0
    assert run(["audit", str(export)]) == 0
    assert run(["import-r2r", str(export), str(tmp_path / "back")]) == 0
    assert labels_of(tmp_path / "back") == labels_of(labelled)
    page = tmp_path / "page.html"
    assert run(["inspect", str(labelled), "--html", str(page)]) == 0
    assert "hello world" in page.read_text()
    assert run(["agreement", str(labelled)]) == 0
    assert "convergence" in capfd.readouterr().out
