"""The server's OpenAPI document: what there is to ask for, and what comes back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema

from crossroads.serving.protocol import ChatRequest, CompletionRequest
from crossroads.serving.reply_schemas import (
    ChatChunk,
    ChatReply,
    CompletionReply,
    Error,
    Health,
    ModelCard,
    ModelList,
    RoutingState,
)

_MODELS: tuple[type[BaseModel], ...] = (
    ChatRequest,
    CompletionRequest,
    ChatReply,
    ChatChunk,
    CompletionReply,
    Error,
    Health,
    ModelCard,
    ModelList,
    RoutingState,
)

_COMPONENTS = "#/components/schemas/"
_JSON, _STREAM, _TEXT = "application/json", "text/event-stream", "text/plain"

_ERRORS = {
    400: "The request is wrong; `param` names the field.",
    401: "The API key is missing or wrong.",
    403: "A web page of another origin asks.",
    404: "There is no such model or path.",
    405: "The path is not served for this method.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    421: "The Host header names another server.",
    429: "The queue is full.",
    500: "The server made a mistake.",
    503: "The server is shutting down, or its engine failed.",
    504: "The answer took too long.",
}
_READING = (401, 405, 421, 500)
_GENERATING = (400, 401, 403, 404, 405, 408, 413, 415, 421, 429, 500, 503, 504)

_HEADERS = {
    401: {"WWW-Authenticate": {"description": "Bearer", "schema": {"type": "string"}}},
    405: {"Allow": {"description": "The methods that are served.", "schema": {"type": "string"}}},
    429: {
        "Retry-After": {
            "description": "Seconds after which to try again.",
            "schema": {"type": "integer", "minimum": 1},
        }
    },
}

_CHAT_EXAMPLES = {
    "question": {
        "summary": "A question",
        "value": {
            "model": "mixed",
            "messages": [{"role": "user", "content": "What is 12 * 17?"}],
        },
    },
    "routing": {
        "summary": "With a threshold of its own, streamed, every token with its writer",
        "value": {
            "model": "mixed",
            "messages": [{"role": "user", "content": "What is 12 * 17?"}],
            "max_tokens": 256,
            "stream": True,
            "stream_options": {"include_usage": True},
            "routing": {"threshold": 0.02, "trace": True},
        },
    },
}
_COMPLETION_EXAMPLES = {
    "text": {
        "summary": "A text to go on with",
        "value": {"model": "mixed", "prompt": "def fibonacci(n):", "max_tokens": 64},
    },
    "alternatives": {
        "summary": "By the large model alone, with the likeliest tokens at each place",
        "value": {"model": "large", "prompt": ["1 + 1 =", "2 + 2 ="], "logprobs": 5},
    },
}


def document(version: str, url: str = "/") -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of server version `version`, reached at `url`."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Crossroads",
            "version": version,
            "summary": "Token-level routing between a small and a large language model.",
            "description": (
                "OpenAI's API for a pair of models: `mixed` is the pair with its router, `small` "
                "and `large` are each model alone. Only the field `routing` is new."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": url}],
        # A server without a key takes requests without one, hence the empty alternative.
        "security": [{"key": []}, {}],
        "tags": [
            {"name": "generation", "description": "As in OpenAI's API."},
            {"name": "server", "description": "What the server is and how it does."},
        ],
        "paths": _paths(),
        "components": {
            "schemas": _schemas(),
            "responses": {f"Error{status}": _error(status) for status in _ERRORS},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _paths() -> dict[str, Any]:
    name = {
        "name": "model",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "enum": ["mixed", "small", "large"]},
    }
    return {
        "/v1/chat/completions": {
            "post": _generation("chat", "Answer a chat", ChatRequest, ChatReply, ChatChunk)
        },
        "/v1/completions": {
            "post": _generation(
                "complete",
                "Go on with a text",
                CompletionRequest,
                CompletionReply,
                CompletionReply,
            )
        },
        "/v1/models": {"get": _reading("models", "The models", _json(ModelList))},
        "/v1/models/{model}": {
            "get": _reading("model", "One model", _json(ModelCard), more=(404,)),
            "parameters": [name],
        },
        "/v1/routing": {
            "get": _reading("routing", "The pair, its router and its load", _json(RoutingState))
        },
        "/health": {
            "get": _reading(
                "health", "Whether it works", _json(Health), more=(503,), open_to_all=True
            )
        },
        "/metrics": {"get": _reading("metrics", "Prometheus metrics", _text())},
        "/openapi.json": {
            "get": _reading("document", "This document", {_JSON: {"schema": {"type": "object"}}})
        },
    }


def _generation(
    operation: str,
    summary: str,
    request: type[BaseModel],
    reply: type[BaseModel],
    event: type[BaseModel],
) -> dict[str, Any]:
    examples = _CHAT_EXAMPLES if request is ChatRequest else _COMPLETION_EXAMPLES
    return {
        "operationId": operation,
        "tags": ["generation"],
        "summary": summary,
        "requestBody": {
            "required": True,
            "content": {_JSON: {"schema": _reference(request), "examples": examples}},
        },
        "responses": {
            "200": {
                "description": (
                    "The answer; with `stream`, events `data: JSON` and at the end `data: [DONE]`."
                ),
                "content": _json(reply) | {_STREAM: {"schema": _reference(event)}},
            },
            **_refusals(_GENERATING),
        },
    }


def _reading(
    operation: str,
    summary: str,
    content: dict[str, Any],
    *,
    more: tuple[int, ...] = (),
    open_to_all: bool = False,
) -> dict[str, Any]:
    described = {
        "operationId": operation,
        "tags": ["server"],
        "summary": summary,
        "responses": {
            "200": {"description": "As asked.", "content": content},
            **_refusals({*_READING, *more} - ({401} if open_to_all else set())),
        },
    }
    return described | ({"security": []} if open_to_all else {})


def _refusals(statuses: Iterable[int]) -> dict[str, Any]:
    return {str(s): {"$ref": f"#/components/responses/Error{s}"} for s in sorted(statuses)}


def _error(status: int) -> dict[str, Any]:
    described = {"description": _ERRORS[status], "content": _json(Error)}
    return described | ({"headers": _HEADERS[status]} if status in _HEADERS else {})


def _json(model: type[BaseModel]) -> dict[str, Any]:
    return {_JSON: {"schema": _reference(model)}}


def _text() -> dict[str, Any]:
    return {_TEXT: {"schema": {"type": "string"}}}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _COMPONENTS + model.__name__}


class _WithoutFieldTitles(GenerateJsonSchema):
    """JSON schemas in which a field is not titled by its own name once more."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Return False for every field."""
        del schema
        return False


def _schemas() -> dict[str, Any]:
    """Return the JSON schema of every request and reply, by name."""
    mode: JsonSchemaMode = "validation"
    _, schema = models_json_schema(
        [(model, mode) for model in _MODELS],
        ref_template=_COMPONENTS + "{model}",
        schema_generator=_WithoutFieldTitles,
    )
    definitions: dict[str, Any] = schema["$defs"]
    return definitions
