"""Chat templates: from messages to the text that a model was trained to answer.

A template is a jinja2 program that came with somebody's weights, so it runs in a sandbox. What a
user wrote must never end up as a special token ("<|im_end|>" would end their own message and
begin another role's), and tokenizing the rendered text as a whole would do just that. So the
special tokens' texts are taken out of the messages before the template runs and put back as
segments of plain text afterwards. Messages without such text, which is nearly all of them, give
one segment, whose ids are exactly the ones that the model was trained on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from crossroads.errors import RequestError
from crossroads.types import Message

_FIRST_PRIVATE = 0xE000  # Unicode's private use area: 6400 characters that mean nothing
_LAST_PRIVATE = 0xF8FF


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a rendered chat; `plain` text must not be read as special tokens."""

    text: str
    plain: bool


def render_chat(template: str, messages: Sequence[Message], bos: str = "", eos: str = "") -> str:
    """Return the text of the template over the messages, up to where the model answers.

    Raises:
        RequestError: no messages, or messages that the template refuses.
    """
    if not messages:
        raise RequestError("there are no messages to render; give at least one")
    try:
        text: str = _compiled(template).render(
            messages=[{"role": m.role, "content": m.content} for m in messages],
            add_generation_prompt=True,
            tools=None,
            documents=None,
            bos_token=bos,
            eos_token=eos,
        )
    # A template is a program; besides its own errors it can add a string to a number.
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise RequestError(f"the model's chat template refuses these messages: {error}") from error
    return text


def render_segments(
    template: str,
    messages: Sequence[Message],
    special_texts: Iterable[str],
    bos: str = "",
    eos: str = "",
) -> list[Segment]:
    """Return the rendered chat cut into template text and users' special-token texts.

    Raises:
        RequestError: as `render_chat` says.
    """
    special = _any_of(special_texts)
    written = [text for message in messages for text in (message.role, message.content)]
    found = sorted({text for part in written for text in special.findall(part)}) if special else []
    if special is None or not found:
        return [Segment(render_chat(template, messages, bos, eos), plain=False)]
    stand_ins = dict(zip(found, _unused_characters([template, *written]), strict=False))
    if len(stand_ins) < len(found):
        raise RequestError("the messages hold too many private Unicode characters; remove them")

    def hidden(text: str) -> str:
        return special.sub(lambda match: stand_ins[match[0]], text)

    safe = [Message(hidden(message.role), hidden(message.content)) for message in messages]
    texts = {character: text for text, character in stand_ins.items()}
    parts: list[str] = re.split(f"([{''.join(texts)}])", render_chat(template, safe, bos, eos))
    return [Segment(texts.get(part, part), part in texts) for part in parts if part]


def _any_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    """Return a pattern of any of the texts, the longest first, since one may begin another."""
    longest_first = sorted({text for text in texts if text}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _unused_characters(texts: Sequence[str]) -> Iterator[str]:
    """Yield private characters that occur in none of the texts."""
    used = set().union(*texts)
    return (c for c in map(chr, range(_FIRST_PRIVATE, _LAST_PRIVATE + 1)) if c not in used)


@lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    # The settings and globals are the ones for which published templates are written.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    return environment.from_string(template)


def _to_json(value: Any, indent: int | None = None) -> str:
    # jinja2's own filter escapes HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
