"""Write docs/cli.md from the commands' own help; a test checks that it is current."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from crossroads.cli.main import VERBS, cli

TARGET = Path(__file__).parent.parent / "docs" / "cli.md"


def render() -> str:
    """Return the page."""
    parts = ["# The command line\n\nWritten by `scripts/write_cli_docs.py`; do not edit.\n"]
    for verb in VERBS:
        context = click.Context(cli, info_name="crossroads", **cli.context_settings)
        command = cli.get_command(context, verb)
        assert command is not None
        inner = click.Context(command, info_name=verb, parent=context, terminal_width=90)
        parts.append(f"## crossroads {verb}\n\n```\n{command.get_help(inner)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
    sys.stdout.write(f"wrote {TARGET}\n")
