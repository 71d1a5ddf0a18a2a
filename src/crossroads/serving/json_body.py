"""A request's body as a JSON object, strictly: what two readers could take differently is refused.

JSON leaves open what a key means that stands twice, and Python's parser takes NaN, numbers beyond
all range and halves of surrogate pairs, which then fail somewhere deep inside. Here each is one
sentence with the path of the value.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

from crossroads.serving.api_error import ApiError, invalid_request, shown

_MOST_LEVELS = 32
_MOST_DIGITS = 40
_MOST_PATH = 200


class _KeyTwice(dict[str, Any]):
    """An object in which `key` stands twice; its path is known only to who walks there."""

    key = ""


def read_object(body: bytes) -> dict[str, Any]:
    """Return the object that `body` holds, UTF-8 with or without a byte order mark.

    Its numbers are finite, its texts valid Unicode, its keys unique.

    Raises:
        ApiError: 400, one sentence, with the path of the value where it is known.
    """
    value = _parsed(_text(body))
    if not isinstance(value, dict):
        raise invalid_request(f"the body must be a JSON object, got {shown(value)}")
    _check(value, "", 0)
    return value


def join(path: str, key: str | int) -> str:
    """Return the path of what stands under `key` at `path`: `messages[2].content`."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    if not key.isidentifier():  # a client's own, which may hold dots, or control characters
        return f"{path}[{shown(key)}]"
    return f"{path}.{key}" if path else key


def short_path(path: str) -> str:
    """Return the path, its end left out where a client's own key makes it very long."""
    return path if len(path) <= _MOST_PATH else path[:_MOST_PATH] + "..."


def _text(body: bytes) -> str:
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise invalid_request(
            f"the body is not UTF-8 (byte {error.start}); send JSON in UTF-8"
        ) from error
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise invalid_request("the body is empty; send a JSON object")
    return text


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, parse_int=_whole_number, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise invalid_request(
            f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except RecursionError as error:
        raise _too_deep() from error


def _whole_number(digits: str) -> int | float:
    # Python refuses to read thousands of digits, and no field has use for more than these.
    return int(digits) if len(digits) <= _MOST_DIGITS else math.inf


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    twice = _KeyTwice(value)
    twice.key = next(key for key, count in Counter(k for k, _ in pairs).items() if count > 1)
    return twice


def _check(value: dict[str, Any] | list[Any], path: str, level: int) -> None:
    """Refuse the first value below `path` that is not what `read_object` promises."""
    if level > _MOST_LEVELS:
        raise _too_deep()
    if isinstance(value, dict):
        _check_keys(value, path)
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(item, dict | list):
            _check(item, join(path, key), level + 1)
        elif (flaw := _flaw(item)) is not None:
            where = short_path(join(path, key))
            raise invalid_request(f"{where} {flaw}", where)


def _check_keys(value: dict[str, Any], path: str) -> None:
    for key in value:
        if _is_broken(key):
            where = short_path(path)
            raise invalid_request(
                f"{where or 'the body'} has the key {shown(key)}, which is not valid Unicode",
                where or None,
            )
    if isinstance(value, _KeyTwice):
        where = short_path(join(path, value.key))
        raise invalid_request(f"{where} stands twice; give it once", where)


def _flaw(value: Any) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number that fits; neither NaN nor Infinity is JSON"
    if isinstance(value, str) and _is_broken(value):
        return "holds half a surrogate pair; give valid Unicode"
    return None


def _is_broken(text: str) -> bool:
    """Whether no encoding has bytes for the text: it holds half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _too_deep() -> ApiError:
    return invalid_request(f"the body nests deeper than {_MOST_LEVELS} levels; flatten it")
