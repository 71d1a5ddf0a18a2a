"""`pull`, `pairs` and their progress, as a person at a terminal or a log file sees them."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from crossroads.cli.console import RichProgress, amount, duration, remaining
from crossroads.cli.pairs import pairs
from crossroads.cli.pull import pull
from crossroads.errors import PairError, WeightsError
from crossroads.models import catalogue
from crossroads.models.catalogue import LLAMACPP, ModelSpec, PairSpec
from crossroads.models.sources import WeightsFile

SMALL, LARGE = b"small" * 100, b"large" * 300


def _model(name: str, content: bytes) -> ModelSpec:
    sha = hashlib.sha256(content).hexdigest()
    file = WeightsFile(f"{name}.gguf", sha, len(content))
    return ModelSpec(name, LLAMACPP, file=file, approx_parameters=len(content))


@pytest.fixture(autouse=True)
def tiny_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One pair without any source but what --from gives; returns the folder that has both."""
    models = {"small": _model("small", SMALL), "large": _model("large", LARGE)}
    monkeypatch.setattr(catalogue, "MODELS", models)
    tiny = PairSpec("tiny", models["small"], models["large"], "for tests")
    monkeypatch.setattr(catalogue, "PAIRS", {"tiny": tiny})
    monkeypatch.setattr("crossroads.cli.pairs.MODELS", catalogue.MODELS)
    monkeypatch.setattr("crossroads.cli.pairs.PAIRS", catalogue.PAIRS)
    monkeypatch.setenv("CROSSROADS_CACHE", str(tmp_path / "cache"))
    given = tmp_path / "given"
    given.mkdir()
    (given / "a").write_bytes(SMALL)
    (given / "b").write_bytes(LARGE)
    return given


def run_pull(*arguments: str) -> Result:
    return CliRunner().invoke(pull, arguments, catch_exceptions=True)


def test_pull_fetches_both_models_and_says_where_they_are(tiny_catalogue: Path) -> None:
    result = run_pull("tiny", "--from", str(tiny_catalogue))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("small: 500 bytes, verified, at ")
    assert lines[1].startswith("large: 1.5 kB, verified, at ")
    assert Path(lines[0].rpartition(" at ")[2]).read_bytes() == SMALL
    assert "copying" in result.stderr


def test_a_second_pull_is_silent_but_for_the_result(tiny_catalogue: Path) -> None:
    run_pull("tiny", "--from", str(tiny_catalogue))
    again = run_pull("tiny")
    assert again.exit_code == 0
    assert again.stderr == ""
    assert len(again.stdout.splitlines()) == 2
    checked = run_pull("tiny", "--verify")
    assert "checking small.gguf" in checked.stderr


def test_from_can_be_given_for_each_file(tiny_catalogue: Path) -> None:
    result = run_pull("tiny", "--from", str(tiny_catalogue / "a"), "--from", f"{tiny_catalogue}/b")
    assert result.exit_code == 0, result.output


def test_pull_of_a_model_takes_that_model_only(tiny_catalogue: Path, tmp_path: Path) -> None:
    assert run_pull("large", "--from", str(tiny_catalogue)).exit_code == 0
    assert [p.name for p in (tmp_path / "cache").rglob("*.gguf")] == ["large.gguf"]


def test_what_cannot_be_fetched_is_the_projects_error(tiny_catalogue: Path) -> None:
    (tiny_catalogue / "b").unlink()
    error = run_pull("tiny", "--from", str(tiny_catalogue)).exception
    assert isinstance(error, WeightsError)
    assert str(error).startswith("cannot get large.gguf: given path: no file of 1,500 bytes at")
    assert isinstance(run_pull("tinny").exception, PairError)
    assert run_pull("tiny", "--from", "/no/where").exit_code == 2


def test_pairs_lists_what_is_in_the_cache(tiny_catalogue: Path, tmp_path: Path) -> None:
    before = CliRunner().invoke(pairs)
    assert before.exit_code == 0, before.output
    assert re.search(r"tiny .* no ", before.output)
    run_pull("small", "--from", str(tiny_catalogue))
    assert re.search(r"small yes, +", CliRunner().invoke(pairs).output)
    run_pull("large", "--from", str(tiny_catalogue))
    after = CliRunner().invoke(pairs)
    assert re.search(r"tiny .* yes ", after.output)
    assert str(tmp_path / "cache") in after.output.replace("\n", "")


# ---- progress ----------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_log_file_gets_a_plain_line_now_and_then() -> None:
    out, clock = io.StringIO(), Clock()
    with RichProgress(Console(file=out, width=40), clock) as progress:
        progress.start("fetching a-long-name-that-must-not-wrap", 1000, "tokens")
        for _ in range(40):
            clock.now += 1
            progress.advance(25)
        progress.finish()
        progress.finish()
    assert out.getvalue().splitlines() == [
        "fetching a-long-name-that-must-not-wrap: 1,000 tokens",
        "fetching a-long-name-that-must-not-wrap: 375 tokens of 1,000 tokens (38%), 25 s left",
        "fetching a-long-name-that-must-not-wrap: 750 tokens of 1,000 tokens (75%), 10 s left",
        "fetching a-long-name-that-must-not-wrap: 1,000 tokens in 40 s",
    ]


def test_a_terminal_gets_a_bar_even_when_an_error_passes_through() -> None:
    out = io.StringIO()
    screen = Console(file=out, force_terminal=True, width=120, color_system=None)

    def work() -> None:
        with RichProgress(screen) as progress:
            progress.start("fetching", 1000, "B")
            progress.advance(500)
            progress.note("[not markup] a note")
            progress.start("checking", 10, "B")
            progress.advance(10)
            progress.finish()
            raise OSError("cut off")

    with pytest.raises(OSError, match="cut off"):
        work()
    shown = out.getvalue()
    assert "500 bytes of 1.0 kB" in shown
    assert "[not markup] a note" in shown
    assert shown.endswith(("\x1b[?25h", "\n"))  # the cursor is back


def test_an_estimate_waits_until_it_is_more_than_a_guess() -> None:
    assert remaining(1, 1000, 10) is None
    assert remaining(500, 1000, 1) is None
    assert remaining(500, 1000, 10) == 10
    assert remaining(0, 0, 10) is None


def test_what_an_earlier_run_did_is_no_part_of_the_rate() -> None:
    assert remaining(600, 1000, 10, before=500) == 40
    assert remaining(505, 1000, 10, before=500) is None  # a guess
    out, now = io.StringIO(), [0.0]
    progress = RichProgress(Console(file=out, width=200), clock=lambda: now[0])
    progress.start("large model answers", 1000, "answers")
    progress.advance(500)  # found on the disk
    now[0] = 20.0
    progress.advance(100)
    assert (
        out.getvalue()
        .splitlines()[-1]
        .endswith("600 answers of 1,000 answers (60%), 1 min 20 s left")
    )


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_durations_read_as_people_say_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_amounts_read_as_people_say_them() -> None:
    assert amount(1_117_320_768, "B") == "1.1 GB"
    assert amount(1234.4, "tokens") == "1,234 tokens"
