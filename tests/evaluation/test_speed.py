"""`bench speed`: its arithmetic on made-up runs, and the whole of it on a tiny pair."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import builders
from crossroads.cli.main import run
from crossroads.evaluation.speed.measure import (
    ReadingTimes,
    Run,
    ideal_seconds,
    rows_of,
    take_turns,
)
from crossroads.types import FinishReason, Role, SilentProgress, TokenRecord, Trace


def trace(*lags: int, prompt: int = 3, discarded: int = 0) -> Trace:
    """Return a trace with a record per lag; the large model wrote where it is above 0."""
    records = tuple(
        TokenRecord(i, 1, Role.LARGE if lag else Role.SMALL, 1, lag=lag)
        for i, lag in enumerate(lags)
    )
    if discarded:
        records = (*records[:-1], TokenRecord(9, 1, Role.LARGE, 1, lag=1, discarded=discarded))
    return Trace((1,) * prompt, records, FinishReason.LENGTH, "")


def test_times_between_the_measured_ones_are_interpolated() -> None:
    times = ReadingTimes({1: 1.0, 4: 4.0, 8: 6.0})
    assert [times(n) for n in (1, 2, 4, 6, 8)] == [1.0, 2.0, 4.0, 5.0, 6.0]
    assert times(16) == 12.0


def test_the_ideal_is_every_proposal_and_every_lag() -> None:
    small, large = ReadingTimes({1: 1.0, 100: 100.0}), ReadingTimes({1: 10.0, 100: 1000.0})
    # The prompt's 3 tokens bring the first proposal, then 3 more; the large model reads 5 and 2.
    assert ideal_seconds(trace(0, 5, 0, 2), small, large) == pytest.approx(3 + 3 + 50 + 20)
    # Two thrown-away proposals cost two steps more; here the last record has a lag of 1.
    assert ideal_seconds(trace(0, 5, 0, 2, discarded=2), small, large) == pytest.approx(
        3 + 5 + 50 + 10
    )


def test_systems_take_turns_and_the_first_prompt_is_run_in() -> None:
    order: list[str] = []

    def system(name: str, rate: float):
        def answer(prompt: list[int]) -> Run:
            order.append(name)
            return Run(int(rate * len(prompt)), float(len(prompt)))

        return answer

    systems = {"base": system("base", 10), "twice": system("twice", 20)}
    taken = take_turns(systems, [[1] * 4, [1] * 8], SilentProgress())
    assert order == ["base", "twice", "twice", "base", "base", "twice"]
    assert {name: len(runs) for name, runs in taken.items()} == {"base": 2, "twice": 2}
    rows = {row.system: row for row in rows_of(taken, "base", None)}
    assert rows["base"].versus_large == 1
    assert rows["twice"].versus_large == 2
    assert rows["twice"].tokens_per_second == 20
    assert rows["twice"].large_fraction is None


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    pytest.importorskip("llama_cpp")
    folder = tmp_path_factory.mktemp("speed")
    small, large = (str(builders.tiny_gguf(folder / f"{n}.gguf")) for n in ("small", "large"))
    return ["--small", small, "--large", large, "--context", "512"]


@pytest.mark.slow
def test_the_bench_runs_on_any_gguf_pair(
    tiny: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "speed.json"
    command = ["bench", "speed", *tiny, "--router", "entropy", "--max-tokens", "6", "--prompts"]
    assert run([*command, "2", "--fraction", "0.5", "--batch", "2", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    names = [row["system"] for row in result["rows"]]
    assert names[:2] == ["small alone (llama.cpp)", "large alone (llama.cpp)"]
    assert {"entropy at 0.5", "random at 0.5", "lossless, drafts of 4"} <= set(names)
    by_name = {row["system"]: row for row in result["rows"]}
    assert by_name["large alone (llama.cpp)"]["versus_large"] == 1
    assert by_name["entropy at 0.5"]["over_ideal"] > 0
    assert by_name["lossless, drafts of 4"]["large_fraction"] < 0.5, "the two models are one"
    assert result["memory"]["small_cache_bytes_per_token"] > 0
    batch = result["batch"]
    parts = batch["ms_per_token"]
    assert sum(parts.values()) == pytest.approx(1000 / batch["tokens_per_second"])
    assert min(parts.values()) > 0
    assert "rows at once" in capfd.readouterr().out


def test_a_fraction_that_is_none_is_refused(
    tiny: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "speed", *tiny, "--fraction", "1.5"]) == 2
    assert "a fraction must be between 0 and 1, got 1.5" in capfd.readouterr().err
