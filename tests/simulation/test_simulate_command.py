"""`crossroads simulate` prints the optimum that the truth beside the dataset has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from crossroads.cli.main import run
from crossroads.dataset import LabelledDataset
from crossroads.exchange.audit import audit_r2r
from crossroads.simulation.truth import load_truth
from crossroads.types import Split

SIZE = ["--problems", "12", "--tokens", "40"]


def test_the_table_shows_the_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "data"
    assert run(["simulate", str(out), *SIZE, "--fault", "label_noise=0.5", "--seed", "2"]) == 0
    text = capsys.readouterr().out
    truth, card = load_truth(out), LabelledDataset.open(out).card
    for kind in ("identical", "neutral", "divergent"):
        assert f"{100 * card['base_rates']['all'][kind]:.2f} % {kind}" in text
    for split in Split:
        rates = [f"{100 * truth.positive_rate(split, r):.1f}" for r in (0.8, 0.9, 0.95, 0.99)]
        assert re.search(rf"{split}\s+" + r"\s+".join(rates), text)
    assert re.search(r"population(\s+\d+\.\d){4}", text)
    assert "faults: label_noise=0.5" in text


def test_r2rs_columns_lie_beside_the_dataset(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    command = ["simulate", str(tmp_path / "data"), *SIZE, "--format", "r2r-parquet"]
    assert run(command) == 0
    assert audit_r2r(tmp_path / "data" / "r2r").ok
    assert len(load_truth(tmp_path / "data").posterior_N) == 12 * 40
    assert run(command) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fault", "label_nois"], "did you mean 'label_noise'"),
        (["--problems", "2"], "at least 10 problems"),
    ],
)
def test_mistakes_are_one_sentence(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["simulate", str(tmp_path / "data"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
