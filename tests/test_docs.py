"""What the documents say is what the code does."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
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


def test_each_test_file_has_a_name_of_its_own() -> None:
    # pytest imports them by that name: of two alike the second is not collected, and only a run of
    # everything shows it.
    names = Counter(p.name for p in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, times in names.items() if times > 1] == []


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OPERATORS = {"|", ">", ">>", "<", "&", "&&", "||", ";"}


def commands_in(page: Path) -> Iterator[list[str]]:
    """Yield the words after `crossroads` of each command in a page's code."""
    text = page.read_text()
    fenced = "\n".join(re.findall(r"^```(?:bash|sh|console|)\n(.*?)^```", text, re.M | re.S))
    indented = "\n".join(re.findall(r"^ {4}(.*)$", text, re.M))
    # A command goes on in lines that are indented further.
    code = re.sub(r"[ \\]*\n[ ]+", " ", f"{fenced}\n{indented}")
    for line in code.splitlines():
        if found := re.match(r"(?:\$ )?(?:[A-Z_]+=\S+ )*crossroads (.*)", line.strip()):
            words = shlex.split(found[1], comments=True)
            ends = [i for i, word in enumerate(words) if word in OPERATORS]
            yield words[: min(ends, default=len(words))]


def check_command(words: list[str]) -> None:
    """Parse a command as the program would, without looking at what its values mean.

    Raises:
        click.UsageError: there is no such verb or option.
    """
    from crossroads.cli.main import cli

    context = click.Context(cli, info_name="crossroads", **cli.context_settings)
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        if found is None:
            raise click.UsageError(f"no such verb: {words[0]}")
        command, words = found, words[1:]
        context = click.Context(command, info_name=command.name, parent=context)
    command.make_parser(context).parse_args(list(words))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_has_the_options_that_it_uses(page: Path) -> None:
    for words in commands_in(page):
        try:
            check_command(words)
        except click.UsageError as error:
            pytest.fail(f"crossroads {shlex.join(words)}: {error.message}")


def test_commands_are_found_and_wrong_ones_refused() -> None:
    assert sum(1 for page in PAGES for _ in commands_in(page)) > 60
    check_command(["serve", "--small", "a", "--port", "x"])
    for words in (["serve", "--smal-model", "a"], ["serv"], ["serve", "--small"]):
        with pytest.raises(click.UsageError):
            check_command(words)


def test_the_compose_file_starts_what_there_is() -> None:
    yaml = pytest.importorskip("yaml")
    text = (ROOT / "deploy" / "compose.yaml").read_text()
    settings = (ROOT / "deploy" / "example.env").read_text()
    given = dict(re.findall(r"^([A-Z_]+)=(.*)$", settings, re.M))
    known = set(re.findall(r"\$\{([A-Z_]+)", text))
    assert set(re.findall(r"^(?:# )?([A-Z_]+)=", settings, re.M)) <= known

    def value(match: re.Match[str]) -> str:
        name, rule, default = match.groups()
        assert rule == ":-" or name in given
        return given.get(name, default)

    file = yaml.safe_load(re.sub(r"\$\{([A-Z_]+)(?:(:[-?])([^}]*))?\}", value, text))
    services = file["services"]
    program, *words = shlex.split(services["crossroads"]["entrypoint"])
    assert program == "crossroads"
    check_command(words)
    for name in ("small", "large"):
        arguments = shlex.split(services[name]["command"])
        port = arguments[arguments.index("--port") + 1]
        assert f"http://{name}:{port}" in words
        assert arguments[arguments.index("--model") + 1] in words
        assert f":{port}/" in services[name]["healthcheck"]["test"]
    assert set(services["crossroads"]["depends_on"]) < set(services)
    assert set(services["crossroads"]["secrets"]) == set(file["secrets"])
    assert all(":" in address for address in services["crossroads"]["ports"])
    assert {s["ports"][0].split(":")[0] for s in services.values() if "ports" in s} == {"127.0.0.1"}


def test_every_readme_command_is_one_of_ours() -> None:
    from crossroads.cli.main import VERBS

    used = set(re.findall(r"^crossroads (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert used <= set(VERBS)
    for script in ("quickstart", "test", ".ci/run"):
        assert (ROOT / script).stat().st_mode & 0o100
