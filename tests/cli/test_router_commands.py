"""Routers from elsewhere: R2R's checkpoint, and the package's own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from crossroads.artifacts import sha256_file
from crossroads.cli.main import run
from crossroads.models import pairs
from crossroads.routing.checkpoint import SmallModelId, load_router
from crossroads.routing.pretrained import PRETRAINED, find_pretrained
from crossroads.types import ModelInfo
from routing.test_r2r_networks import DEFAULT, SMALL, checkpoint


def _info(small: SmallModelId) -> ModelInfo:
    fields = {name: getattr(small, name) for name in SmallModelId.__dataclass_fields__}
    known = {name: SimpleNamespace() for name in ModelInfo.__dataclass_fields__}
    return SimpleNamespace(**{**known, **fields})  # type: ignore[return-value]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand in for the models that the verb loads; the list has their names."""
    asked: list[str] = []

    def load_model(name: str, **_: object) -> object:
        asked.append(name)
        model = SimpleNamespace(info=_info(SMALL), embed=lambda ids: torch.zeros(len(ids), 1))
        return SimpleNamespace(model=model, close=lambda: None)

    monkeypatch.setattr(pairs, "load_model", load_model)
    return asked


def test_r2rs_router_becomes_a_folder_for_its_model(
    small: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint(tmp_path / "router.pt", DEFAULT)
    out = tmp_path / "router"
    command = ["import-r2r-router", str(path), str(out), "--small", "the-small-one"]
    assert run([*command, "--large", "the-large-one"]) == 0
    card = load_router(out, _info(SMALL)).card
    assert (small, card.large_name, card.threshold) == (["the-small-one"], "the-large-one", 0.3367)
    assert "threshold 0.3367" in capfd.readouterr().out
    assert card.provenance["sha256"] == sha256_file(path)
    assert run([*command, "--threshold", "0.5"]) == 0
    assert load_router(out).card.threshold == 0.5


def test_a_wrong_file_is_told_before_a_model_is_loaded(
    small: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.pt").write_bytes(b"nothing of the kind")
    for name in ("a.pt", "missing.pt"):
        command = ["import-r2r-router", str(tmp_path / name), str(tmp_path / "out")]
        assert run([*command, "--small", "any"]) == 2
        said = capfd.readouterr().err
        assert said.startswith("error: ")
        assert name in said
    assert not small
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("folder", sorted(PRETRAINED.glob("*/")), ids=lambda path: path.name)
def test_the_packages_routers_are_whole_and_found_by_their_models(folder: Path) -> None:
    card = load_router(folder).card
    assert card.pair == folder.name
    small, large = _info(card.small), _info(card.small)
    large.fingerprint = card.large_fingerprint  # type: ignore[misc]
    found = find_pretrained(small, large)
    assert found is not None
    assert found.card == card
    assert find_pretrained(small, small) is None
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4_000_000
