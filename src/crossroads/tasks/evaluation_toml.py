"""Reading the TOML file that defines an evaluation task, key by key."""

from __future__ import annotations

import json
import re
import reprlib
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossroads.errors import DataError
from crossroads.names import nearest
from crossroads.tasks.evaluation_definition import (
    LETTERS,
    RULES,
    Choices,
    Columns,
    Definition,
    Example,
    Gold,
    PromptTemplate,
    Source,
    placeholders,
)


@dataclass(frozen=True, slots=True)
class _Key:
    """What stands under a key of a definition."""

    kind: str
    required: bool = False


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_list(value: Any, check: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and bool(value) and all(check(item) for item in value)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


_TEXT, _COUNT, _SWITCH = "text that is not empty", "a whole number above 0", "true or false"
_TEXTS, _TABLE, _TABLES = "a list of texts", "a table", "a list of tables"
_SETTINGS = "a table without dates and without nan or inf"
_KINDS: Mapping[str, Callable[[Any], bool]] = {
    _TEXT: _is_text,
    _COUNT: lambda value: type(value) is int and value > 0,
    _SWITCH: lambda value: isinstance(value, bool),
    _TEXTS: lambda value: _is_list(value, lambda item: isinstance(item, str) and item != ""),
    _TABLE: lambda value: isinstance(value, dict),
    _SETTINGS: lambda value: isinstance(value, dict) and _is_json(value),
    _TABLES: lambda value: _is_list(value, lambda item: isinstance(item, dict)),
}

_TOP = {
    "name": _Key(_TEXT, required=True),
    "about": _Key(_TEXT, required=True),
    "answer": _Key(_TEXT, required=True),
    "max_tokens": _Key(_COUNT, required=True),
    "source": _Key(_TABLE, required=True),
    "prompt": _Key(_TEXT),
    "system": _Key(_TEXT),
    "stop": _Key(_TEXTS),
    "columns": _Key(_TABLE),
    "gold": _Key(_TABLE),
    "choices": _Key(_TABLE),
    "few_shot": _Key(_TABLES),
}
_KIND = {"kind": _Key(_TEXT, required=True)}
_SOURCES: dict[str, dict[str, _Key]] = {
    "hub": {
        "path": _Key(_TEXT, required=True),
        "split": _Key(_TEXT, required=True),
        "config": _Key(_TEXT),
        "revision": _Key(_TEXT),
    },
    "file": {"path": _Key(_TEXT)},
    "package": {
        "package": _Key(_TEXT, required=True),
        "module": _Key(_TEXT, required=True),
        "path": _Key(_TEXT, required=True),
        "install": _Key(_TEXT),
    },
    "generated": {"dataset": _Key(_TEXT), "settings": _Key(_SETTINGS)},
    "problems": {"path": _Key(_TEXT)},
}
_COLUMNS = {
    "question": _Key(_TEXT, required=True),
    "answer": _Key(_TEXT),
    "id": _Key(_TEXT),
    "domain": _Key(_TEXT),
    "entry_point": _Key(_TEXT),
}
_GOLD = {
    "after": _Key(_TEXT),
    "pattern": _Key(_TEXT),
    "without_commas": _Key(_SWITCH),
    "append": _Key(_TEXT),
}
_CHOICES = {"right": _Key(_TEXT), "wrong": _Key(_TEXTS), "letters": _Key(_TEXT)}
_EXAMPLE = {"user": _Key(_TEXT, required=True), "assistant": _Key(_TEXT, required=True)}


def read_definition(path: Path) -> Definition:
    """Return the task that a TOML file defines; a relative `source.path` starts at its folder.

    Raises:
        DataError: the file cannot be read; an unknown, missing or wrong key; keys that contradict
            each other. Names the file.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"no task definition at {path}") from error
    except OSError as error:
        raise DataError(f"cannot read the task definition {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the task definition {path} is not UTF-8 text: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"the task definition {path} is not TOML: {error}") from error
    definition = _definition(values, str(path), path.parent)
    if (complaint := next(_complaints(definition), None)) is not None:
        raise DataError(f"{path}: {complaint}")
    return definition


def _definition(values: Mapping[str, Any], where: str, folder: Path) -> Definition:
    top = _checked(values, _TOP, where)
    if "columns" in top:
        top["columns"] = Columns(**_checked(top["columns"], _COLUMNS, where, "columns."))
    if "gold" in top:
        top["gold"] = Gold(**_checked(top["gold"], _GOLD, where, "gold."))
    if "choices" in top:
        choices = _checked(top["choices"], _CHOICES, where, "choices.")
        top["choices"] = Choices(**choices | {"wrong": tuple(choices.get("wrong", ()))})
    examples = [
        Example(**_checked(example, _EXAMPLE, where, f"few_shot[{number}]."))
        for number, example in enumerate(top.pop("few_shot", []))
    ]
    top["source"] = _source(top["source"], where, folder)
    top["stop"] = tuple(top.get("stop", ()))
    return Definition(where=where, few_shot=tuple(examples), **top)


def _source(values: Mapping[str, Any], where: str, folder: Path) -> Source:
    kind_only = {key: value for key, value in values.items() if key == "kind"}
    kind = _checked(kind_only, _KIND, where, "source.")["kind"]
    if kind not in _SOURCES:
        raise DataError(f"{where}: there is no source kind {kind!r}; {nearest(kind, _SOURCES)}")
    source = Source(**_checked(values, _KIND | _SOURCES[kind], where, "source."))
    if source.kind in {"file", "problems"} and source.path is not None:
        return Source(source.kind, str(folder / source.path))
    return source


def _checked(
    values: Mapping[str, Any], keys: Mapping[str, _Key], where: str, prefix: str = ""
) -> dict[str, Any]:
    """Return a table whose keys are known, complete, and of the right kind.

    Raises:
        DataError: they are not; names the first.
    """
    for name in values:
        if name not in keys:
            raise DataError(f"{where}: there is no key `{prefix}{name}`; {nearest(name, keys)}")
    for name, key in keys.items():
        if key.required and name not in values:
            raise DataError(f"{where} has no `{prefix}{name}`; it must be {key.kind}")
    for name, value in values.items():
        if not _KINDS[keys[name].kind](value):
            raise DataError(
                f"{where}: `{prefix}{name}` must be {keys[name].kind}, got {reprlib.repr(value)}"
            )
    return dict(values)


def _complaints(definition: Definition) -> Iterator[str]:
    """Yield what each key alone does not show to be wrong."""
    if definition.answer not in RULES:
        rule = definition.answer
        yield f"there is no answer rule {rule!r}; {nearest(rule, RULES)}"
    yield from _source_complaints(definition)
    yield from _choice_complaints(definition)
    yield from _gold_complaints(definition)
    if not definition.source.whole:
        yield from _prompt_complaints(definition)


def _source_complaints(definition: Definition) -> Iterator[str]:
    kind, columns = definition.source.kind, definition.columns
    if definition.source.whole:
        if definition.answer == "code":
            yield f"the rule code needs columns, which the source {kind} does not have"
        for key, given in (
            ("prompt", definition.prompt is not None),
            ("columns", columns is not None),
            ("gold", definition.gold != Gold()),
            ("choices.right", definition.choices is not None and bool(definition.choices.columns)),
        ):
            if given:
                yield f"the source {kind} gives whole prompts and answers; leave `{key}` away"
        return
    for key, value in (("prompt", definition.prompt), ("columns", columns)):
        if value is None:
            yield f"the source {kind} needs `{key}`"
    if columns is not None and (columns.entry_point is not None) != (definition.answer == "code"):
        yield "the rule code, and no other, needs `columns.entry_point`"


def _choice_complaints(definition: Definition) -> Iterator[str]:
    choices = definition.choices
    if (choices is not None) != (definition.answer == "choice"):
        yield "the rule choice, and no other, needs a table `choices`"
    if choices is not None:
        if (choices.right is None) != (not choices.wrong):
            yield "`choices.right` and `choices.wrong` need each other"
        if (choices.right is None) == (choices.letters is None):
            yield "`choices` needs either `right` and `wrong`, or `letters`"
        if len(set(choices.columns)) != len(choices.columns):
            yield "`choices` names a column twice"
        if len(choices.columns) > len(LETTERS):
            yield f"`choices` has {len(choices.columns)} options, more than there are letters"
        if choices.letters is not None and not LETTERS.startswith(choices.letters):
            yield f"`choices.letters` must be letters such as ABCD, got {choices.letters!r}"
    if definition.columns is not None:
        lettered = choices is not None and choices.right is not None
        if (definition.columns.answer is None) != lettered:
            yield "a task needs either `columns.answer`, or `choices.right`, to know the answer"


def _gold_complaints(definition: Definition) -> Iterator[str]:
    gold = definition.gold
    if gold != Gold() and definition.choices is not None and definition.choices.right is not None:
        yield "the gold answer of `choices.right` is its letter; leave `gold` away"
    if gold.after is not None and gold.pattern is not None:
        yield "`gold` takes either `after` or `pattern`, not both"
    if gold.pattern is not None:
        try:
            re.compile(gold.pattern)
        except re.error as error:
            yield f"`gold.pattern` is no regular expression: {error}"
    if not PromptTemplate(gold.append or "").is_valid():
        yield "`gold.append` has a $ without a name; write $$ for a dollar sign"


def _prompt_complaints(definition: Definition) -> Iterator[str]:
    template, columns, choices = definition.prompt, definition.columns, definition.choices
    if template is None or columns is None:
        return
    if not PromptTemplate(template).is_valid():
        yield "`prompt` has a $ without a name; write $$ for a dollar sign"
    names = placeholders(template)
    if not names:
        yield "`prompt` shows no column, so that every item would ask the same; write $question"
    lettered = choices is not None and choices.right is not None
    if ("choices" in names) != lettered:
        yield "`prompt` needs $choices where there is `choices.right`, and nowhere else"
    given_away = {columns.answer} | ({choices.right} if choices is not None else set())
    for name in names:
        if name != "question" and name in given_away:
            yield f"`prompt` shows the column {name!r}, which holds the answer"
