"""The wheel holds everything: every module imports from it, and the pages are inside."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
IMPORT_ALL = """
import importlib, pathlib, pkgutil, sys
import crossroads
root = pathlib.Path(crossroads.__file__).parent
assert str(root).startswith(sys.argv[1]), root
for module in pkgutil.walk_packages([str(root)], "crossroads."):
    # What runs inside vLLM imports it, and it cannot be installed beside the rest (./test-vllm).
    if not module.name.endswith(("__main__", "crossroads.vllm.processor")):
        importlib.import_module(module.name)
assert (root / "evaluation" / "report.html.j2").exists()
assert (root / "serving" / "page" / "app.js").exists()
assert (root / "py.typed").exists()
"""


def test_every_module_imports_from_the_wheel(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path)]
    subprocess.run([*command, str(ROOT)], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, str(tmp_path)],
        check=True,
        env=environment,
        cwd=tmp_path,
        timeout=120,
    )
