"""What the documents say is what the code does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = [
    "cli", "labelling", "training", "evaluation", "routers", "judges", "tasks", "exchange",
    "simulation", "diagnosis", "causes", "r2r", "speed", "grading", "serving", "vllm",
]  # fmt: skip
"""Folders that the README names as a whole."""


def test_the_command_line_page_is_current() -> None:
    path = ROOT / "scripts" / "write_cli_docs.py"
    spec = importlib.util.spec_from_file_location("write_cli_docs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "cli.md").read_text() == module.render(), (
        "run scripts/write_cli_docs.py"
    )


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "docs" / "adr").glob("*.md")))
def test_decisions_are_one_page_with_a_numbered_title(name: str) -> None:
    text = (ROOT / "docs" / "adr" / name).read_text()
    assert text.startswith(f"# {int(name[:4])}. ")
    assert len(text.splitlines()) <= 60


def test_the_readmes_tree_names_files_that_exist() -> None:
    tree = (ROOT / "README.md").read_text().split("## The tree")[1].split("```")[1]
    names = set(re.findall(r"\b[a-z_0-9]+\.py\b", tree))
    existing = {p.name for p in (ROOT / "src").rglob("*.py")}
    assert names - existing == set()
    unnamed = existing - names - {"__init__.py", "__main__.py"}
    modules_of_named_folders = {
        p.name for folder in FOLDERS for p in (ROOT / "src").rglob(f"{folder}/*.py")
    }
    assert unnamed - modules_of_named_folders - {"hub_worker.py", "gguf_rows.py"} == set()


def test_every_readme_command_is_one_of_ours() -> None:
    from crossroads.cli.main import VERBS

    used = set(re.findall(r"^crossroads (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert used <= set(VERBS)
    for script in ("quickstart", "test", ".ci/run"):
        assert (ROOT / script).stat().st_mode & 0o100
