"""The `crossroads` command: one file per verb, loaded when the verb is used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping

import click

from crossroads.errors import CrossroadsError

VERBS: Mapping[str, str] = {
    "quickstart": "the whole line on a real pair, from labels to a report",
    "pairs": "list the known pairs",
    "pull": "fetch and verify the weights of a pair",
    "label": "label the tokens of a set of problems",
    "audit": "check that every label stands beside what it is about",
    "export": "write a labelled dataset in R2R's columns",
    "import-r2r": "read R2R's columns into a labelled dataset",
    "import-r2r-router": "read R2R's trained router into a router folder",
    "inspect": "look at a labelled dataset, token by token",
    "agreement": "how far the judges of a dataset agree",
    "train": "train, calibrate and report a router",
    "calibrate": "choose a router's threshold anew, and see how far it drifted",
    "ablate": "which inputs and recipes are worth what",
    "learning-curve": "positive_rate against the number of training tokens",
    "search": "look for better training settings",
    "diagnose": "why a positive_rate differs from another one",
    "simulate": "write labelled data whose best router is known",
    "generate": "answer a prompt with both models",
    "chat": "talk with both models in the terminal",
    "serve": "serve a pair behind OpenAI's API, with a page to chat on",
    "evaluate": "quality and cost of a routed pair beside its baselines",
    "report": "draw an evaluation again from its stored traces",
    "bench": "measure how fast a pair is, beside the engines' own loops",
}


class LazyGroup(click.Group):
    """A group that imports a verb's module when it runs: `--help` must not wait for torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order in which one meets them."""
        del ctx
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return one verb's command."""
        del ctx
        if cmd_name not in VERBS:
            return None
        name = cmd_name.replace("-", "_")
        module = importlib.import_module(f"crossroads.cli.{name}")
        command: click.Command = getattr(module, name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="crossroads-lm", prog_name="crossroads")
def cli() -> None:
    """Token-level routing between a small and a large language model."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 the user's mistake in one sentence, 130 ctrl-C."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    try:
        cli.main(arguments, standalone_mode=False)
    except CrossroadsError as error:
        click.secho(f"error: {error}", fg="red", err=True)
        return 2
    except click.ClickException as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        click.echo(
            "\ninterrupted; finished work is kept, and the same command goes on from there",
            err=True,
        )
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nothing is wrong, nobody can be told.
        sys.stderr.close()
        return 0
    return 0
