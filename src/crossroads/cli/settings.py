"""`--set key=value`, as several verbs take it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from crossroads.errors import ConfigError


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Return `key=value` texts as a dict; values are JSON where they read as JSON, else text.

    A dotted key makes nested dicts: `network.width=128`.

    Raises:
        ConfigError: no `=`, or a key given twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {text!r} is not KEY=VALUE")
        *path, last = key.strip().split(".")
        here = found
        for part in path:
            here = here.setdefault(part, {})
        if last in here:
            raise ConfigError(f"--set names {key.strip()!r} twice")
        here[last] = parse_value(value)
    return found


def parse_value(text: str) -> Any:
    """Return JSON where the text is JSON, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
