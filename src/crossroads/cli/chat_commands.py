"""What can be said to a chat rather than to its models: one function per command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crossroads.cli.chat_input import BLOCK, Entry
from crossroads.cli.conversation import MODELS, Conversation
from crossroads.decoding.request import check_request
from crossroads.errors import RequestError
from crossroads.names import nearest


class QuitChat(Exception):  # noqa: N818  no error: how a chat ends
    """The chat is to end."""


@dataclass(frozen=True, slots=True)
class Command:
    """What a command does; `usage` is its arguments, `help` a line."""

    run: Callable[[Conversation, str], None]
    usage: str
    help: str


def perform(conversation: Conversation, entry: Entry) -> None:
    """Do what an entry says: a command, or a message to be answered.

    Raises:
        QuitChat: the chat is to end. CrossroadsError: it cannot be done; nothing has changed.
    """
    text = entry.text
    if entry.verbatim or not text.startswith("/"):
        conversation.ask(text)
    elif text.startswith("//"):
        conversation.ask(text[1:])
    else:
        name, *rest = text[1:].split(maxsplit=1) or [""]
        if name not in COMMANDS:
            known = nearest(f"/{name}", [f"/{known}" for known in COMMANDS])
            raise RequestError(
                f"there is no command {'/' + name!r}; {known}; // begins a message that begins "
                "with /"
            )
        COMMANDS[name].run(conversation, rest[0].strip() if rest else "")


def _help(conversation: Conversation, argument: str) -> None:
    from rich.table import Table
    from rich.text import Text

    _no_argument("help", argument)
    table = Table.grid(padding=(0, 2))
    for name, command in COMMANDS.items():
        table.add_row(Text(f"/{name} {command.usage}".rstrip()), Text(command.help))
    conversation.screen.show(
        table,
        Text(
            f"\nA line that ends in \\ goes on in the next; all between two lines of {BLOCK} is "
            "one message; // begins a message that begins with /. Ctrl-C stops an answer, Ctrl-D "
            "quits."
        ),
    )


def _threshold(conversation: Conversation, argument: str) -> None:
    from crossroads.cli.chat_text import threshold_lines

    if argument:
        _change(conversation, threshold=_number("threshold", argument))
    for line in threshold_lines(conversation):
        conversation.screen.note(line)


def _model(conversation: Conversation, argument: str) -> None:
    if argument and argument not in MODELS:
        raise RequestError(f"there is no model {argument!r}; {nearest(argument, MODELS)}")
    if argument:
        conversation.settings = replace(conversation.settings, model=argument)
    models, model = conversation.models, conversation.settings.model
    names = {
        "small": models.small.info.name,
        "large": models.large.info.name,
        "mixed": f"both, router {models.router.name} at threshold {conversation.threshold:g}",
    }
    conversation.screen.note(f"model {model}: {names[model]}")


def _large_fraction(conversation: Conversation, argument: str) -> None:
    if argument:
        value = None if argument == "off" else _number("large-fraction", argument)
        _change(conversation, max_large_fraction=value)
    most = conversation.settings.request.max_large_fraction
    conversation.screen.note(
        "large_fraction has no limit"
        if most is None
        else f"large_fraction never passes {most:g} in an answer"
    )


def _revise(conversation: Conversation, argument: str) -> None:
    if argument:
        _change(conversation, revise_below=_number("revise", argument))
    request = conversation.settings.request
    if request.lossless:
        words = "lossless: small tokens are taken back by the rule of speculative decoding"
    elif request.revise_below > 0:
        words = (
            "small tokens are taken back to which the large model, when asked, gives less than "
            f"{request.revise_below:g}"
        )
    else:
        words = "no small token is taken back"
    conversation.screen.note(words)


def _temperature(conversation: Conversation, argument: str) -> None:
    if argument:
        _sample(conversation, temperature=_number("temperature", argument))
    value = conversation.settings.request.sampling.temperature
    conversation.screen.note(f"temperature {value:g}{'' if value else ': greedy'}")


def _max_tokens(conversation: Conversation, argument: str) -> None:
    if argument:
        _change(conversation, max_tokens=_whole("max-tokens", argument))
    conversation.screen.note(f"at most {conversation.settings.request.max_tokens} tokens an answer")


def _seed(conversation: Conversation, argument: str) -> None:
    if argument:
        _sample(conversation, seed=_whole("seed", argument))
    sampling = conversation.settings.request.sampling
    idle = "; it means nothing at temperature 0" if sampling.greedy else ""
    conversation.screen.note(f"seed {sampling.seed}{idle}")


def _system(conversation: Conversation, argument: str) -> None:
    if argument:
        text = None if argument == "off" else argument
        conversation.settings = replace(conversation.settings, system=text)
    system = conversation.settings.system
    conversation.screen.note("no system message" if system is None else f"system: {system}")


def _retry(conversation: Conversation, argument: str) -> None:
    _no_argument("retry", argument)
    conversation.retry()


def _undo(conversation: Conversation, argument: str) -> None:
    _no_argument("undo", argument)
    last = conversation.last
    conversation.turns.pop()
    words = " ".join(last.text.split())
    shown = words if len(words) <= 60 else f"{words[:60]}\u2026"
    conversation.screen.note(f"took back {shown!r} and its answer; {_count(conversation)} left")


def _reset(conversation: Conversation, argument: str) -> None:
    _no_argument("reset", argument)
    conversation.turns.clear()
    conversation.screen.note("a new conversation; the settings stay")


def _stats(conversation: Conversation, argument: str) -> None:
    from crossroads.cli.chat_text import stats_parts

    _no_argument("stats", argument)
    _ = conversation.last  # refuses a conversation without turns
    conversation.screen.show(*stats_parts(conversation))


def _scores(conversation: Conversation, argument: str) -> None:
    from crossroads.cli.chat_text import axis_of, scores_parts

    _no_argument("scores", argument)
    parts = scores_parts(
        conversation.last,
        conversation.models.tokenizer,
        axis_of(conversation),
        conversation.settings.request.stop,
        coloured=conversation.screen.coloured,
    )
    conversation.screen.show(*parts)


def _save(conversation: Conversation, argument: str, *, overwrite: bool = False) -> None:
    from crossroads.cli.chat_file import save_chat

    path = _path("save! FILE" if overwrite else "save FILE", argument)
    save_chat(conversation, path, overwrite=overwrite)
    conversation.screen.note(f"{_count(conversation)} written to {path}")


def _save_over(conversation: Conversation, argument: str) -> None:
    _save(conversation, argument, overwrite=True)


def _load(conversation: Conversation, argument: str) -> None:
    from crossroads.cli.chat_file import adopt, load_chat

    saved = load_chat(_path("load FILE", argument), conversation.models.small.info.vocab_size)
    before = len(conversation.turns)
    for note in adopt(conversation, saved):
        conversation.screen.note(note)
    instead = f" in place of {before}" if before else ""
    conversation.screen.note(f"{_count(conversation)} loaded{instead}, with their settings")


def _quit(conversation: Conversation, argument: str) -> None:
    del conversation
    _no_argument("quit", argument)
    raise QuitChat


def _change(conversation: Conversation, **values: Any) -> None:
    """Change the request of the answers to come, if it can be served so."""
    request = replace(conversation.settings.request, **values)
    check_request(request, [])
    conversation.settings = replace(conversation.settings, request=request)


def _sample(conversation: Conversation, **values: Any) -> None:
    _change(conversation, sampling=replace(conversation.settings.request.sampling, **values))


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise RequestError(f"/{name} takes a number, got {text!r}") from error


def _whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise RequestError(f"/{name} takes a whole number, got {text!r}") from error


def _path(usage: str, text: str) -> Path:
    if not text:
        raise RequestError(f"which file? write /{usage}")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # the home of somebody who is not known
        raise RequestError(f"cannot find {text!r}: {error}") from error


def _no_argument(name: str, text: str) -> None:
    if text:
        raise RequestError(f"/{name} stands alone, got {text!r} after it")


def _count(conversation: Conversation) -> str:
    count = len(conversation.turns)
    return f"{count} turn" if count == 1 else f"{count} turns"


COMMANDS: Mapping[str, Command] = {
    "help": Command(_help, "", "these lines"),
    "model": Command(_model, "[mixed|small|large]", "who answers: both, or one model alone"),
    "threshold": Command(_threshold, "[VALUE]", "score from which the large model writes"),
    "large-fraction": Command(_large_fraction, "[MAX|off]", "most that the large model writes"),
    "revise": Command(_revise, "[VALUE]", "take back small tokens less probable than this"),
    "temperature": Command(_temperature, "[VALUE]", "0 = greedy"),
    "seed": Command(_seed, "[NUMBER]", "of sampling"),
    "max-tokens": Command(_max_tokens, "[NUMBER]", "longest answer"),
    "system": Command(_system, "[TEXT|off]", "system message"),
    "retry": Command(_retry, "", "answer the last message again, with a new seed if sampling"),
    "undo": Command(_undo, "", "take back the last message and its answer"),
    "reset": Command(_reset, "", "take back everything that was said"),
    "stats": Command(_stats, "", "who wrote how much, how fast; the scores"),
    "scores": Command(_scores, "", "the last answer, coloured by score"),
    "save": Command(_save, "FILE", "write the conversation (JSON)"),
    "save!": Command(_save_over, "FILE", "the same, over a file that is there"),
    "load": Command(_load, "FILE", "go on from a saved conversation"),
    "quit": Command(_quit, "", "end the chat"),
}
