"""Several workers make the dataset of one, whatever their number and whenever they are stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.artifacts import ResumableLog, exclusive, read_json
from crossroads.errors import ConfigError, DataError, EngineError
from crossroads.labelling import compare, shards
from crossroads.labelling.ray_workers import share
from crossroads.labelling.records import case_id, problem_of, response_key
from crossroads.labelling.respond import RespondConfig
from crossroads.labelling.shard_progress import Board, ReportingProgress
from crossroads.labelling.sharded import LabelOrder, label_in_shards, work
from crossroads.labelling.shards import deal, gather
from crossroads.types import Progress, SilentProgress
from labelling.shard_pairs import BrokenSource, order

SILENT = SilentProgress()


def one_by_one(orders: Sequence[LabelOrder], progress: Progress) -> None:
    del progress
    for one in orders:
        work(one, SilentProgress())


def files(folder: Path) -> dict[str, bytes]:
    """Return what must be equal byte for byte; logs, whose order is of no meaning, sorted."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name, content = path.relative_to(folder).as_posix(), path.read_bytes()
        if name == "dataset.json":
            card = {**read_json(path, "card"), "provenance": 0}
            content = repr(card).encode()
        elif name.endswith(".jsonl"):
            content = b"".join(sorted(content.splitlines(keepends=True)))
        if not name.startswith("."):
            found[name] = content
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process writes."""
    folder = tmp_path_factory.mktemp("alone")
    work(order(folder), SILENT)
    return files(folder)


@pytest.mark.parametrize("workers", [1, 3, 50])
def test_any_number_of_workers_makes_the_folder_of_one_process(
    tmp_path: Path, alone: dict[str, bytes], workers: int
) -> None:
    label_in_shards(order(tmp_path), workers, one_by_one, SILENT)
    assert files(tmp_path) == alone
    assert "respond/unfinished.jsonl" in alone, "some answers must be cut"


def test_logs_are_in_the_order_of_the_problems_and_then_of_the_samples(tmp_path: Path) -> None:
    sampled = {"samples": 2, "temperature": 1.0}
    given_order = order(tmp_path, **sampled)
    label_in_shards(given_order, 3, one_by_one, SILENT)
    rank = [problem.id for problem in given_order.problems]
    for name in ("respond/responses", "continue/continuations"):
        places = [problem_of(r["key"]) for r in ResumableLog(tmp_path / f"{name}.jsonl")]
        assert len(places) > 5
        assert places == sorted(places, key=lambda place: (rank.index(place[0]), place[1]))


class Stop(BaseException):
    """A kill, as the process that is killed would see it."""


class Works:
    """Every piece of work that is done, by name; dies before the piece of that number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self.dies_at = 10**9
        append, save = ResumableLog.append, compare.save_tensors

        def appended(log: ResumableLog, record) -> None:
            self._piece(f"{log.path.parent.name} {record['key']}")
            append(log, record)

        def saved(path: Path, *rest) -> None:
            self._piece(path.name)
            save(path, *rest)

        monkeypatch.setattr(ResumableLog, "append", appended)
        monkeypatch.setattr(compare, "save_tensors", saved)

    def _piece(self, name: str) -> None:
        if len(self.done) == self.dies_at:
            raise Stop
        self.done.append(name)


@pytest.mark.parametrize(
    "stops", [(1, 5), (9, 12), (14, 20), (30, 31)], ids=lambda stops: "-".join(map(str, stops))
)
def test_a_stopped_run_goes_on_with_another_number_of_workers_and_does_nothing_twice(
    tmp_path: Path, alone: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, stops
) -> None:
    works = Works(monkeypatch)
    for workers, works.dies_at in zip((2, 3), stops, strict=True):
        with pytest.raises(Stop):
            label_in_shards(order(tmp_path), workers, one_by_one, SILENT)
    works.dies_at = 10**9
    label_in_shards(order(tmp_path), 4, one_by_one, SILENT)
    assert len(works.done) == len(set(works.done)) > stops[1]
    assert files(tmp_path) == alone


def test_one_process_goes_on_where_workers_stopped_and_they_where_it_did(
    tmp_path: Path, alone: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    works, given_order = Works(monkeypatch), order(tmp_path)
    for stop in (4, 15):
        works.dies_at = stop
        with pytest.raises(Stop):
            work(given_order, SILENT)
        works.dies_at = stop + 4
        with pytest.raises(Stop):
            label_in_shards(given_order, 2, one_by_one, SILENT)
        gather(tmp_path, given_order.problems)
    works.dies_at = 10**9
    work(given_order, SILENT)
    assert len(works.done) == len(set(works.done))
    assert files(tmp_path) == alone


@pytest.mark.parametrize("step", ["pin_config", "write_log", "rmtree", "_link"])
def test_moving_work_between_folders_survives_a_stop_anywhere(
    tmp_path: Path, alone: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    works = Works(monkeypatch)
    label_in_shards(order(tmp_path, stages=["respond", "compare"]), 3, one_by_one, SILENT)
    place = shards.shutil if step == "rmtree" else shards
    true = getattr(place, step)
    for at in (1, 2, 4):
        calls: Iterator[int] = iter(range(1, 1000))

        def dies(*given, at=at, calls=calls, **named):
            if next(calls) == at:
                raise Stop
            return true(*given, **named)

        monkeypatch.setattr(place, step, dies)
        try:
            label_in_shards(order(tmp_path), 2, one_by_one, SILENT)
        except Stop:
            continue
    monkeypatch.setattr(place, step, true)
    label_in_shards(order(tmp_path), 3, one_by_one, SILENT)
    assert len(works.done) == len(set(works.done))
    assert files(tmp_path) == alone


def test_without_hard_links_comparisons_are_copied(
    tmp_path: Path, alone: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(shards.os, "link", refused)
    label_in_shards(order(tmp_path, stages=["respond", "compare"]), 3, one_by_one, SILENT)
    label_in_shards(order(tmp_path), 2, one_by_one, SILENT)
    assert files(tmp_path) == alone


def test_a_workers_error_is_the_runs_and_what_others_finished_stays(
    tmp_path: Path, alone: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    works = Works(monkeypatch)

    def second_is_broken(orders: Sequence[LabelOrder], progress: Progress) -> None:
        broken = dataclasses.replace(orders[1], pair=BrokenSource())
        one_by_one([orders[0], broken], progress)

    with pytest.raises(EngineError, match="needs 40 GB"):
        label_in_shards(order(tmp_path), 2, second_is_broken, SILENT)
    assert works.done
    label_in_shards(order(tmp_path), 3, one_by_one, SILENT)
    assert len(works.done) == len(set(works.done))
    assert files(tmp_path) == alone


def test_failed_verdicts_are_asked_for_again_and_the_newest_one_counts(tmp_path: Path) -> None:
    label_in_shards(order(tmp_path), 2, one_by_one, SILENT)
    (path,) = (tmp_path / "judges").glob("likelihood-*/verdicts.jsonl")
    before = path.read_bytes()
    first = next(iter(ResumableLog(path)))
    ResumableLog(path).append({**first, "status": "failed", "divergent": None})
    plain = order(tmp_path)
    again = dataclasses.replace(plain.config, retry_failed=True)
    label_in_shards(dataclasses.replace(plain, config=again), 3, one_by_one, SILENT)
    assert path.read_bytes() == before


def test_what_a_run_is_pinned_to_is_refused_by_name(tmp_path: Path) -> None:
    plain = order(tmp_path)

    def nothing(orders: Sequence[LabelOrder], progress: Progress) -> None:
        raise EngineError("no worker")

    with pytest.raises(EngineError):
        label_in_shards(plain, 2, nothing, SILENT)
    fewer = dataclasses.replace(plain, problems=plain.problems[:-1])
    with pytest.raises(ConfigError, match=r"holds shards of another run \(problems: was"):
        label_in_shards(fewer, 2, one_by_one, SILENT)
    label_in_shards(plain, 2, one_by_one, SILENT)
    with pytest.raises(ConfigError, match=r"holds responses of another run \(problems: was"):
        label_in_shards(fewer, 2, one_by_one, SILENT)
    longer = dataclasses.replace(plain.config, respond=RespondConfig(max_tokens=41))
    with pytest.raises(ConfigError, match="max_tokens: was 40, now 41"):
        label_in_shards(dataclasses.replace(plain, config=longer), 2, one_by_one, SILENT)
    twice = dataclasses.replace(plain, problems=(*plain.problems, plain.problems[0]))
    with pytest.raises(DataError, match="more than once"):
        label_in_shards(twice, 2, one_by_one, SILENT)


def test_a_worker_that_is_still_there_is_waited_for(tmp_path: Path) -> None:
    with pytest.raises(EngineError):
        label_in_shards(order(tmp_path, source=BrokenSource()), 2, one_by_one, SILENT)
    (tmp_path / "shards" / "00").mkdir(exist_ok=True)
    with (
        exclusive(tmp_path / "shards" / "00"),
        pytest.raises(ConfigError, match=r"another process is working in .*shards/00"),
    ):
        label_in_shards(order(tmp_path), 2, one_by_one, SILENT)


@given(st.integers(1, 30), st.integers(1, 9), st.sets(st.integers(0, 29)))
def test_problems_are_dealt_to_one_shard_each_and_evenly(
    count: int, workers: int, answered: set[int]
) -> None:
    problems = order(Path("unused"), count).problems
    done = {problems[i].id for i in answered if i < count}
    parts = deal(problems, workers, done)
    assert sorted(p.id for part in parts for p in part) == sorted(p.id for p in problems)
    assert all(list(part) == [p for p in problems if p in part] for part in parts)
    for chosen in (lambda p: True, lambda p: p.id not in done):
        sizes = [sum(map(chosen, part)) for part in parts]
        assert max(sizes) - min(sizes) <= 1


@given(st.text(), *[st.integers(0, 99)] * 3)
def test_a_key_tells_its_problem(name: str, sample: int, position: int, number: int) -> None:
    key = response_key(name, sample)
    assert problem_of(key) == (name, (sample,))
    assert problem_of(case_id(key, position)) == (name, (sample, position))
    assert problem_of(f"{case_id(key, position)}/{number}") == (name, (sample, position, number))


@given(st.lists(st.integers(0, 1), max_size=60))
def test_one_bar_counts_what_all_workers_count(turns: list[int]) -> None:
    """Whoever is quick: every stage is shown once, with everybody's units, in order."""
    shown, reports = SilentProgress(), {0: (), 1: ()}
    board = Board(shown, 2)
    steps = [_worker_steps(reports, worker) for worker in (0, 1)]
    for turn in [*turns, *[0] * 30, *[1] * 30]:
        next(steps[turn], None)
        board.show(dict(reports))
    board.close()
    assert list(shown.stages) == ["workers load both models", "answer", "compare"]
    assert list(shown.stages.values()) == [2, 7, 3]


def _worker_steps(reports: dict, worker: int) -> Iterator[None]:
    progress = ReportingProgress(lambda report: reports.update({worker: report}), lambda: 0)
    for name, units in (("answer", 3 + worker), ("compare", 1 + worker)):
        progress.start(name, units, "pieces")
        yield
        for _ in range(units):
            progress.advance()
            yield
        progress.finish()
        yield


@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.integers(1, 12))
def test_every_worker_gets_the_largest_equal_share_of_the_cpus(
    cpus: list[int], workers: int
) -> None:
    machines = [{"CPU": float(count)} for count in cpus]
    found = share(machines, workers, 0).cpus
    assert found == 0 or sum(count // found for count in cpus) >= workers
    assert sum(count // (found + 1) for count in cpus) < workers


def test_gpus_that_are_not_there_are_said_before_ray_would_wait_for_them() -> None:
    machines = [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}]
    assert share(machines, 2, 0.5).cpus == 4
    assert share([{"CPU": 8.0, "GPU": 3.0}], 3, 0.6).cpus == 2
    for workers, gpus in ((2, 1), (3, 0.5), (2, 0.6), (1, 2)):
        with pytest.raises(ConfigError, match="do not fit Ray's 1 GPUs; give fewer --workers"):
            share(machines, workers, gpus)
