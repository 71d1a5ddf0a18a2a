"""A whole evaluation: what stands in the folder is what was run, and it can be taken up again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from crossroads.errors import ConfigError, DataError
from crossroads.evaluation.evaluate import evaluate
from crossroads.evaluation.folder import RunFolder, slug
from crossroads.evaluation.kinds import SystemKind
from crossroads.evaluation.summary import TaskResult, summarise
from crossroads.tasks.evaluation import EvaluationTask
from crossroads.types import Problem, Role
from evaluation.bench import SAMPLED, bench, systems, task, texts_of
from laws.pairs import scripted_pair

NAMES = ("small", "large", "entropy@0.62", "margin~entropy@0.62", "random~0.3", "lossless")


def numbers(results: list[TaskResult]) -> list[dict]:
    """Return everything but what the clock decides."""
    plain = json.loads(json.dumps([result.to_json() for result in results], default=str))
    for result in plain:
        for system in result["systems"]:
            del system["tokens_per_second"]
    return plain


def test_a_stopped_evaluation_gives_the_same_numbers(tmp_path: Path) -> None:
    evaluate(bench(tmp_path / "a"), [task()], systems(*NAMES), pilot=4)
    evaluate(bench(tmp_path / "b"), [task()], systems(*NAMES), pilot=4)
    folder = RunFolder(tmp_path / "b")
    (folder.path / "run.json").unlink()
    for name in NAMES[2:]:
        log = folder.log("scripted", name).path
        log.write_text("".join(log.read_text().splitlines(keepends=True)[:3]))
    folder.log("scripted", "random~0.3").path.unlink()
    evaluate(bench(tmp_path / "b"), [task()], systems(*NAMES), pilot=4)
    assert numbers(summarise(folder)) == numbers(summarise(RunFolder(tmp_path / "a")))


def test_the_numbers_are_counts_over_the_stored_answers(tmp_path: Path) -> None:
    evaluate(bench(tmp_path), [task(12)], systems(*NAMES), pilot=4)
    folder = RunFolder(tmp_path)
    (result,) = summarise(folder)
    assert [row.system for row in result.systems] == list(NAMES)
    for row in result.systems:
        answers = list(folder.answers("scripted", row.system))
        records = [record for answer in answers for record in answer.trace.records]
        large = sum(record.writer is Role.LARGE for record in records)
        assert row.problems == len(answers) == 12
        assert row.accuracy.value == sum(a.grade.correct for a in answers) / 12
        assert row.large_fraction.value == large / len(records)
        assert row.tokens.value == len(records) / 12
        assert row.cost == pytest.approx(row.active_parameters * row.tokens.value)
        assert sum(row.finish.values()) == 12
    by_name = {row.system: row for row in result.systems}
    large_model = by_name["large"].active_parameters
    assert large_model == scripted_pair().large.info.active_parameters
    mixed = by_name["entropy@0.62"]
    assert mixed.active_parameters == pytest.approx((1 + mixed.large_fraction.value) * large_model)
    assert by_name["lossless"].recovered is not None
    assert by_name["small"].recovered is None


def test_several_samples_and_tasks(tmp_path: Path) -> None:
    tasks = [task(5, "one"), task(4, "two")]
    evaluate(bench(tmp_path, settings=SAMPLED), tasks, systems("small", "large", "entropy@0.62"))
    one, two = summarise(RunFolder(tmp_path))
    assert (one.systems[0].problems, two.systems[0].problems) == (5, 4)
    assert one.systems[0].samples == 3
    assert set(one.systems[0].pass_at) == {1, 2, 3}


def test_systems_can_be_added_and_stay(tmp_path: Path) -> None:
    evaluate(bench(tmp_path), [task()], systems("small", "large"))
    pair = scripted_pair()
    evaluate(bench(tmp_path, pair), [task()], systems("small", "entropy@0.62"))
    record = RunFolder(tmp_path).record()
    assert [s.name for s in record.systems] == ["small", "large", "entropy@0.62"]
    assert [s.kind for s in record.systems][:2] == [SystemKind.SMALL, SystemKind.LARGE]
    assert len(record.provenance["earlier"]) == 1
    assert len(summarise(RunFolder(tmp_path))[0].systems) == 3


def test_the_folder_holds_prompts_pieces_and_settings(tmp_path: Path) -> None:
    evaluate(bench(tmp_path), [task()], systems("small", "entropy@0.62"))
    folder = RunFolder(tmp_path)
    assert list(folder.items("scripted")) == list(task().items)
    pieces, known = folder.pieces(), scripted_pair().tokenizer.pieces()
    used = {i for ids in texts_of(folder, "scripted", "entropy@0.62").values() for i in ids}
    assert used <= set(pieces)
    assert all(piece == known[i] for i, piece in pieces.items())
    record = folder.record()
    assert record.tasks[0].card == {"about": "scripted"}
    assert record.settings["rows"] == 3
    assert record.provenance["command"]


def refused(folder: Path, tasks: list[EvaluationTask], names: tuple[str, ...], match: str) -> None:
    with pytest.raises((ConfigError, DataError), match=match) as caught:
        evaluate(bench(folder), tasks, systems(*names))
    assert "\n" not in str(caught.value)


def test_mistakes_are_found_before_anything_runs(tmp_path: Path) -> None:
    empty = replace(task(), items=())
    first = task().items[0]
    silent = replace(first, problem=replace(first.problem, answer=None))
    unanswered = replace(task(), items=(silent,))
    refused(tmp_path / "a", [empty], ("small",), "has no items")
    refused(tmp_path / "a", [unanswered], ("small",), "'p0' has no answer")
    refused(tmp_path / "a", [task(), task()], ("small",), "two tasks are named")
    refused(tmp_path / "a", [replace(task(), rule="taste")], ("small",), "taste")
    assert not (tmp_path / "a").exists()


def test_a_folder_of_another_run_is_left_as_it_is(tmp_path: Path) -> None:
    evaluate(bench(tmp_path), [task()], systems("small"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json*")}
    other = replace(task().items[0].problem, messages=task().items[1].problem.messages)
    changed = replace(task(), items=(replace(task().items[0], problem=other), *task().items[1:]))
    refused(tmp_path, [changed], ("small",), "other problems of the task")
    refused(tmp_path, [task(4, "other")], ("small",), "systems can be added to it, tasks cannot")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json*")} == before


def test_an_unfinished_run_says_what_is_left(tmp_path: Path) -> None:
    evaluate(bench(tmp_path), [task()], systems("small"))
    log = RunFolder(tmp_path).log("scripted", "small").path
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:4]))
    with pytest.raises(DataError, match=r"small has 2 of 6 answers to scripted left"):
        summarise(RunFolder(tmp_path))


@pytest.mark.parametrize("content", [None, "{}", '{"format": 99}', "["])
def test_what_is_no_run_is_one_sentence(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "run"
    if content is not None:
        folder.mkdir()
        (folder / "run.json").write_text(content)
    with pytest.raises(DataError, match="run"):
        RunFolder(folder).record()


def test_names_never_meet_in_one_file() -> None:
    assert slug("entropy~router") != slug("entropy@router")
    assert "/" not in slug("../../x")
    first = Problem("p", ())
    assert first.id == "p"
