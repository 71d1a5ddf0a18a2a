"""The objects inside a request, and what all objects of a request keep to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from crossroads.names import nearest
from crossroads.serving.api_error import shown
from crossroads.serving.complaints import complaint


class Body(BaseModel):
    """An object of a request.

    `not_served` are OpenAI's fields without a meaning here, with the values that ask for nothing.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
    not_served: ClassVar[Mapping[str, tuple[object, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _served(cls, value: Any) -> Any:
        """Return the fields that say something; refuse the first that nobody here knows."""
        if not isinstance(value, dict):
            return value
        fields = {field.alias or name: field for name, field in cls.model_fields.items()}
        kept = {}
        for name, item in value.items():
            if name in cls.not_served:
                _check_asks_nothing(name, item, cls.not_served[name])
            elif name not in fields:
                raise complaint(f"is not a known field; {nearest(name, fields)}", name)
            elif item is not None or fields[name].is_required():
                kept[name] = item
        return kept


def _check_asks_nothing(name: str, value: object, allowed: tuple[object, ...]) -> None:
    # By type too: JSON's false is not its 0.
    if value is None or any(type(value) is type(a) and value == a for a in allowed):
        return
    served = [json.dumps(a) for a in allowed if a not in ([], {})]
    if not served:
        raise complaint("is not served; leave it out", name)
    raise complaint(f"is served only as {' or '.join(served)}; leave it out", name)


def _check_kind(value: Any, field: str, served: tuple[str, ...]) -> Any:
    """Refuse a kind that is not served before its own fields are called unknown."""
    kind = value.get(field) if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in served:
        raise complaint(f"{shown(kind)} is not served; use {', '.join(served)}", field)
    return value


def string_or_list(value: Any) -> str | None:
    """Return the tag of a union's branch; None: neither."""
    return "string" if isinstance(value, str) else "list" if isinstance(value, list) else None


class RoutingOptions(Body):
    """Ours alone: how the small and the large model share one answer, and whether to tell."""

    threshold: float | None = Field(
        None, ge=0, description="Score from which the large model writes; the server's own if null."
    )
    max_large_fraction: float | None = Field(
        None, ge=0, le=1, description="The large model's share never passes this, at any token."
    )
    revise_below: float = Field(
        0.0,
        ge=0,
        le=1,
        description="The large model takes small tokens back that it finds less likely than this.",
    )
    trace: bool = Field(False, description="Every token with who wrote it and why.")


class StreamOptions(Body):
    """What a stream brings beside the text."""

    include_usage: bool = Field(False, description="One more chunk with the usage, at the end.")
    continuous_usage_stats: bool = Field(
        False, description="The usage so far in every chunk, as vLLM's servers tell it."
    )
    include_obfuscation: bool = Field(False, description="Accepted; has no effect.")


class TextPart(Body):
    """A part of a message; several are joined by line breaks."""

    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _only_text(cls, value: Any) -> Any:
        return _check_kind(value, "type", ("text",))


_Content = Annotated[
    Annotated[str, Tag("string")]
    | Annotated[list[TextPart], Field(min_length=1, fail_fast=True), Tag("list")],
    Discriminator(
        string_or_list,
        custom_error_type="content",
        custom_error_message="must be a string or a list of text parts",
    ),
]


class ChatMessage(Body):
    """One message of a chat; `developer` is read as `system`."""

    not_served = {
        "tool_calls": ([],),
        "function_call": (),
        "audio": (),
        "annotations": ([],),
        "refusal": (),
    }

    role: Literal["system", "developer", "user", "assistant"]
    content: _Content
    name: str | None = Field(None, description="Accepted; has no effect.")
    reasoning_content: str | None = Field(
        None, description="An earlier answer's thoughts: accepted, and not read again."
    )

    @model_validator(mode="before")
    @classmethod
    def _only_speakers(cls, value: Any) -> Any:
        return _check_kind(value, "role", ("system", "developer", "user", "assistant"))

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)
