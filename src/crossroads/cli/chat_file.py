"""A chat in a file: everything that is needed to read it, to count it, and to go on with it.

The file may come from anybody, so every value that is used later is checked when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from crossroads.artifacts import canonical_hash, read_json, write_json
from crossroads.cli.conversation import MODELS, Conversation, Settings, Turn, messages_of
from crossroads.decoding.request import Request, check_request
from crossroads.errors import ConfigError, CrossroadsError, DataError
from crossroads.provenance import provenance
from crossroads.routing.policy import policy_by_name, policy_text
from crossroads.sampling import SamplingParams
from crossroads.types import Role, TokenRecord, Trace

FORMAT = "crossroads-chat-1"
_REQUEST = ("threshold", "max_tokens", "max_lag", "large_budget", "max_large_fraction",
            "revise_below", "lossless")  # fmt: skip
_OPEN = (KeyError, TypeError, ValueError, AttributeError, CrossroadsError, OverflowError)
"""What reading values of any kind may raise."""


@dataclass(frozen=True, slots=True)
class SavedChat:
    """What a file holds: its settings and turns, and who wrote it."""

    settings: Settings
    turns: tuple[Turn, ...]
    models: Mapping[str, Mapping[str, str]]
    router: Mapping[str, Any]


def save_chat(conversation: Conversation, path: Path, *, overwrite: bool) -> None:
    """Write a conversation as JSON, atomically.

    Raises:
        ConfigError: there is such a file already, or it cannot be written.
    """
    try:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder; give a file")
        if path.exists() and not overwrite:
            raise ConfigError(f"{path} is there already; /save! {path} writes over it")
        write_json(path, _content(conversation))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write {str(path)!r}: {error}") from error


def identity(conversation: Conversation) -> dict[str, Any]:
    """Return which models and which router a conversation is with."""
    chosen, models = conversation.chosen, conversation.models
    return {
        "models": {
            str(role): {
                "name": info.name,
                "engine": info.engine,
                "fingerprint": info.fingerprint,
                "tokenizer_fingerprint": info.tokenizer_fingerprint,
            }
            for role, info in ((Role.SMALL, models.small.info), (Role.LARGE, models.large.info))
        },
        "router": {
            "name": models.router.name,
            "threshold": chosen.threshold,
            "card_sha256": None if chosen.card is None else canonical_hash(asdict(chosen.card)),
        },
    }


def _content(conversation: Conversation) -> dict[str, Any]:
    settings, turns = conversation.settings, conversation.turns
    request = replace(settings.request, threshold=conversation.threshold)
    return {
        "format": FORMAT,
        "messages": [asdict(message) for message in messages_of(settings.system, turns)],
        "settings": {
            "model": settings.model,
            "system": settings.system,
            **{name: getattr(request, name) for name in _REQUEST},
            "stop": list(request.stop),
            "policy": policy_text(request.policy),
            "sampling": asdict(request.sampling),
        },
        "turns": [{**asdict(turn), "trace": turn.trace.to_json()} for turn in turns],
        **identity(conversation),
        "provenance": provenance(),
    }


def load_chat(path: Path, vocab_size: int) -> SavedChat:
    """Read a saved conversation.

    Raises:
        DataError: no such file, something else, or a value that no chat has.
    """
    try:
        content = read_json(path, "saved chat")
    except RecursionError as error:
        raise DataError(f"the saved chat {path} is nested too deeply to be one") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise DataError(f"{path} has format {found!r}, a saved chat has {FORMAT!r}; see /save")
    try:
        # Numbers that are none, and halves of characters, could not be written again.
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
        turns = tuple(_turn(value, vocab_size) for value in content["turns"])
        settings = _settings(content["settings"])
        said = [asdict(message) for message in messages_of(settings.system, turns)]
        if content["messages"] != said:
            raise ValueError("its messages are not those of its turns")
        models = {str(role): _texts(content["models"][role]) for role in Role}
        return SavedChat(settings, turns, models, dict(content["router"]))
    except _OPEN as error:
        raise DataError(f"the saved chat {path} is damaged or was edited: {error!r}") from error


def _settings(value: Mapping[str, Any]) -> Settings:
    sampling = SamplingParams(**_like(SamplingParams(), value["sampling"]))
    request = Request(
        (0,),
        sampling=sampling,
        stop=tuple(value["stop"]),
        policy=policy_by_name(value["policy"]),
        **{name: value[name] for name in _REQUEST},
    )
    check_request(request, [])
    if value["model"] not in MODELS or type(request.lossless) is not bool:
        raise ValueError(f"model {value['model']!r}, lossless {request.lossless!r}")
    return Settings(request, value["model"], _optional_text(value["system"]))


def _like(default: Any, value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values, each of the kind of number that `default` has under its name."""
    kinds = {field.name: type(getattr(default, field.name)) for field in fields(default)}
    for name, number in value.items():
        if type(number) not in (kinds[name], int):
            raise TypeError(f"{name} is {number!r}")
    return dict(value)


def _turn(value: Mapping[str, Any], vocab_size: int) -> Turn:
    trace = Trace.from_json(value["trace"])
    for position, record in enumerate(trace.records):
        _check_record(record, position, vocab_size)
    if not trace.records or value["model"] not in MODELS or type(trace.seed) is not int:
        raise ValueError(f"a turn of {len(trace.records)} tokens by {value['model']!r}")
    seconds, first = (_at_least_0(value[name]) for name in ("seconds", "first"))
    return Turn(_text(value["text"]), replace(trace, text=_text(trace.text)), value["model"],
                seconds, first)  # fmt: skip


def _check_record(record: TokenRecord, position: int, vocab_size: int) -> None:
    """Refuse a record with a value that counting, decoding or drawing it could stumble over."""
    ids = [i for i in (record.token_id, record.proposed_id) if i is not None]
    if any(type(i) is not int or not 0 <= i < vocab_size for i in ids) or not ids:
        raise ValueError(f"token ids {ids!r}")
    if record.position != position:
        raise ValueError(f"position {record.position!r} at {position}")
    for count in (record.lag, record.discarded):
        if type(count) is not int or count < 0:
            raise ValueError(f"count {count!r}")
    if record.score is not None and not _at_least_0(record.score) <= 1:
        raise ValueError(f"score {record.score!r}")


def _at_least_0(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < float("inf"):
        raise ValueError(f"{value!r} is no number >= 0")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _optional_text(value: Any) -> str | None:
    return None if value is None else _text(value)


def _texts(value: Mapping[str, Any]) -> Mapping[str, str]:
    return {name: _text(text) for name, text in value.items()}


def adopt(conversation: Conversation, saved: SavedChat) -> Sequence[str]:
    """Go on from a saved chat; return what is otherwise here than where it was written.

    A threshold belongs to its router: with another one, the present threshold stays.

    Raises:
        DataError: models with another tokenizer wrote it, so its tokens mean something else here.
    """
    here, notes, settings = identity(conversation), [], saved.settings
    for role, model in saved.models.items():
        own = here["models"][role]
        names = f"{model.get('name')!r} wrote it as the {role} model, here that is {own['name']!r}"
        if model.get("tokenizer_fingerprint") != own["tokenizer_fingerprint"]:
            raise DataError(f"{names}, with another tokenizer; start the chat with that pair")
        if model.get("fingerprint") != own["fingerprint"]:
            notes.append(f"{names}, which goes on from the text")
    if saved.router != here["router"]:
        kept = replace(settings.request, threshold=conversation.threshold)
        settings = replace(settings, request=kept)
        notes.append(
            f"router {saved.router.get('name')!r} wrote it, here that is "
            f"{here['router']['name']!r} at another threshold of its own or by other training; "
            f"the threshold stays {conversation.threshold:g}"
        )
    conversation.turns[:] = saved.turns
    conversation.settings = settings
    return notes
