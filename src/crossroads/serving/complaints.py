"""What pydantic finds wrong with a request, as one sentence that begins with the field's path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from crossroads.serving.api_error import ApiError, invalid_request, shown
from crossroads.serving.json_body import join, short_path

_MUST_BE = {
    "string_type": "a string",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "literal_error": "{expected}",
    "greater_than": "> {gt}",
    "greater_than_equal": ">= {ge}",
    "less_than": "< {lt}",
    "less_than_equal": "<= {le}",
}


def complaint(predicate: str, *location: str | int) -> PydanticCustomError:
    """Return what a validator raises to say "FIELD predicate".

    The field is the validated value itself, or what stands at `location` below it.
    """
    context = {"location": location, "predicate": predicate}
    return PydanticCustomError("complaint", "{predicate}", context)


def refusal(error: ValidationError, body: dict[str, Any]) -> ApiError:
    """Return the first thing that is wrong with `body` as a 400."""
    first = error.errors(include_url=False)[0]
    context = first.get("ctx", {})
    path = _path(first["loc"], body)
    for part in context.get("location", ()):
        path = join(path, part)
    path = short_path(path)
    return invalid_request(f"{path} {_predicate(first, context)}", path)


def _predicate(error: ErrorDetails, context: dict[str, Any]) -> str:
    match error["type"]:
        case "complaint":
            return str(context["predicate"])
        case "missing":
            return "is required"
        case "too_short":
            return "must not be empty"
        case kind if kind in _MUST_BE:
            bounds = {name: _plain(value) for name, value in context.items()}
            return f"must be {_MUST_BE[kind].format(**bounds)}, got {shown(error['input'])}"
        case _:  # a discriminator's own words
            return f"{error['msg']}, got {shown(error['input'])}"


def _plain(bound: object) -> str:
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


def _path(location: Sequence[int | str], body: Any) -> str:
    """Return the path of an error's location, without the names of a union's branches.

    Those are the parts that stand nowhere in the body, except for a last one, which is missing.
    """
    path, here = "", body
    for number, part in enumerate(location, start=1):
        if _has(here, part):
            here = here[part]
        elif not (isinstance(here, dict) and number == len(location)):
            continue
        path = join(path, part)
    return path


def _has(value: Any, part: int | str) -> bool:
    if isinstance(value, dict):
        return part in value
    return isinstance(value, list) and isinstance(part, int)
