"""`crossroads chat`: a conversation with both models on the terminal, coloured by writer."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from crossroads.cli.options import (
    PairOptions,
    check_router,
    pair_options,
    request_of,
    request_options,
    router_options,
)
from crossroads.errors import CrossroadsError, RequestError

if TYPE_CHECKING:
    from crossroads.cli.chat_input import ChatInput
    from crossroads.cli.conversation import Conversation, Settings
    from crossroads.models.pairs import Pair
    from crossroads.routing.choose import ChosenRouter


@click.command()
@pair_options(context=4096)
@router_options
@click.option(
    "--model",
    type=click.Choice(["mixed", "small", "large"]),
    default="mixed",
    show_default=True,
    help="Who answers: both, or one of them alone.",
)
@click.option("--system", default=None, help="System message.")
@request_options(max_tokens=1024)
@click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Colours; auto: on a terminal, unless NO_COLOR is set.",
)
def chat(
    models: PairOptions,
    router: str | None,
    threshold: float | None,
    model: str,
    system: str | None,
    color: str,
    **sampling: Any,
) -> None:
    """Talk with both models; tokens that the large model wrote are coloured.

    /help lists the commands. Without a terminal each line of the input is a turn, or a command;
    answers go to standard output, everything else to standard error.
    """
    from crossroads.cli.conversation import Settings
    from crossroads.routing.choose import choose_router

    # Checked before the models load: a user should not wait for a sentence about a typo.
    request = request_of(sampling, threshold)
    check_router(router)
    with models.load(max_rows=2) as pair:
        chosen = choose_router(router, pair.small.info, pair.large.info)
        failed = _talk(pair, chosen, Settings(request, model, system), color)
    if failed:
        lines = "entry was" if failed == 1 else "entries were"
        raise RequestError(f"{failed} {lines} refused; the sentences above say why")


def _talk(pair: Pair, chosen: ChosenRouter, settings: Settings, color: str) -> int:
    """Read and answer until the input ends; return how many entries of a pipe were refused."""
    from crossroads.cli.chat_commands import COMMANDS
    from crossroads.cli.chat_input import ChatInput
    from crossroads.cli.conversation import Conversation
    from crossroads.cli.screen import Screen
    from crossroads.decoding.mixed import MixedModels

    interactive, screen = sys.stdin.isatty(), Screen(color)
    mixed = MixedModels(pair.small, pair.large, chosen.router, pair.tokenizer, chosen.threshold)
    entries = ChatInput(
        [f"/{name}" for name in COMMANDS], interactive=interactive, coloured=screen.coloured
    )
    with Conversation(mixed, chosen, settings, screen, interactive=interactive) as conversation:
        if interactive:
            _welcome(conversation, pair.name)
        refused = _converse(conversation, entries, interactive=interactive)
    return 0 if interactive else refused


def _converse(conversation: Conversation, entries: ChatInput, *, interactive: bool) -> int:
    from crossroads.cli.chat_commands import QuitChat, perform

    refused, quitting = 0, False
    while True:
        try:
            entry = entries.read()
            if entry is None:
                return refused
            quitting = False
            perform(conversation, entry)
        except QuitChat:
            return refused
        except CrossroadsError as error:
            conversation.screen.error(str(error))
            refused += 1
        except KeyboardInterrupt:
            if not interactive:
                raise
            if quitting:
                return refused
            quitting = True
            conversation.screen.note("once more Ctrl-C, or Ctrl-D, quits")


def _welcome(conversation: Conversation, pair: str) -> None:
    models = conversation.models
    conversation.screen.note(
        f"{pair}: {models.small.info.name} and {models.large.info.name}, router "
        f"{models.router.name} at threshold {conversation.threshold:g}"
    )
    conversation.screen.note("/help lists the commands; Ctrl-C stops an answer, Ctrl-D quits")
