"""Errors as OpenAI's API words them: one sentence, the field that was wrong, an HTTP status.

Nothing of the server's inside is in a reply: no traceback, no path, no engine's own words.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from starlette.responses import JSONResponse

from crossroads.errors import (
    BusyError,
    ClosedError,
    ConfigError,
    CrossroadsError,
    EngineError,
    RequestError,
    StoppedError,
)
from crossroads.names import nearest

_REQUEST, _LIMIT, _SERVER = "invalid_request_error", "rate_limit_error", "server_error"

_RETRY_SECONDS = 1.0  # after a full queue, where nobody knows better

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60


class ApiError(Exception):
    """What a client is told instead of an answer; `headers` go with it."""

    def __init__(
        self,
        status: int,
        message: str,
        type: str = _REQUEST,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Describe the error; `param` is the path of the field that was wrong."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the JSON value of the reply, or of the event in a stream that has begun."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """Return the reply."""
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def shown(value: object) -> str:
    """Return what a client sent as a few characters of plain text, for a sentence about it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return _short.repr(value)


def invalid_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return a 400: the request is wrong and would be wrong again."""
    return ApiError(400, message, param=param, code=code)


def unauthorised() -> ApiError:
    """Return a 401: no key came with the request, or a wrong one."""
    return ApiError(
        401,
        "this server needs its API key; send it as `Authorization: Bearer KEY`",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def forbidden_origin(origin: str) -> ApiError:
    """Return a 403: a page of another site asks."""
    return ApiError(
        403,
        f"pages of {shown(origin)} may not use this server; allow that origin when starting it",
        code="origin_not_allowed",
    )


def not_found(path: str) -> ApiError:
    """Return a 404: nothing is served under the path."""
    return ApiError(
        404,
        f"there is nothing at {shown(path)}; /openapi.json lists what there is",
        code="not_found",
    )


def model_not_found(name: str, known: Iterable[str]) -> ApiError:
    """Return a 404: no model has the name."""
    return ApiError(
        404,
        f"there is no model {shown(name)}; {nearest(name, known)}",
        param="model",
        code="model_not_found",
    )


def method_not_allowed(method: str, allowed: Iterable[str]) -> ApiError:
    """Return a 405: the path is served, but not for this method."""
    methods = ", ".join(sorted(allowed))
    return ApiError(
        405,
        f"{shown(method)} is not served here; use {methods}",
        code="method_not_allowed",
        headers={"Allow": methods},
    )


def too_slow(seconds: float) -> ApiError:
    """Return a 408: the body had not come after so many seconds."""
    return ApiError(
        408,
        f"the body had not come after {seconds:g} s, the longest that this server waits for one",
        code="body_too_slow",
        headers={"Connection": "close"},
    )


def too_large(most_bytes: int) -> ApiError:
    """Return a 413: the body has more than `most_bytes` bytes."""
    return ApiError(
        413,
        f"the body is larger than {most_bytes} bytes, the most that this server reads; shorten it",
        code="body_too_large",
    )


def unsupported_media_type(got: str | None) -> ApiError:
    """Return a 415: the body is not said to be JSON."""
    found = "none" if got is None else shown(got)
    return ApiError(
        415,
        f"Content-Type must be application/json, got {found}",
        code="unsupported_media_type",
    )


def misdirected(host: str | None) -> ApiError:
    """Return a 421: the request is for a host that this server is not."""
    found = "none" if host is None else shown(host)
    return ApiError(
        421,
        f"the Host header must be an address that this server listens on, got {found}; use the "
        "address that it printed when it started",
        code="misdirected_request",
    )


def queue_full(retry_after: float = _RETRY_SECONDS) -> ApiError:
    """Return a 429: too many requests wait; `retry_after` in seconds."""
    seconds = max(1, math.ceil(retry_after))
    return ApiError(
        429,
        f"too many requests are waiting; try again in {seconds} s",
        type=_LIMIT,
        code="queue_full",
        headers={"Retry-After": str(seconds)},
    )


def internal() -> ApiError:
    """Return a 500: the server's own mistake."""
    return ApiError(
        500,
        "the server made a mistake; its log says more",
        type=_SERVER,
        code="internal_error",
    )


def shutting_down() -> ApiError:
    """Return a 503: the server takes no requests any more."""
    return ApiError(
        503,
        "the server is shutting down; try again later",
        type=_SERVER,
        code="shutting_down",
    )


def engine_failed() -> ApiError:
    """Return a 503: the engine failed while it worked."""
    return ApiError(
        503,
        "the engine failed; try again, and see the server's log",
        type=_SERVER,
        code="engine_failed",
    )


def timed_out(seconds: float) -> ApiError:
    """Return a 504: the answer took longer than `seconds`."""
    return ApiError(
        504,
        f"the answer took longer than {seconds:g} s; ask for fewer tokens",
        type=_SERVER,
        code="timeout",
    )


def from_error(error: CrossroadsError, retry_after: float = _RETRY_SECONDS) -> ApiError:
    """Return what a client is told about `error`; `retry_after` (seconds) is for a full queue.

    Only errors about the request keep their own words: those of an engine may name files.
    """
    match error:
        case RequestError() | ConfigError():
            return invalid_request(str(error))
        case BusyError():
            return queue_full(retry_after)
        case StoppedError():
            return engine_failed()
        case ClosedError():
            return shutting_down()
        case EngineError():
            return engine_failed()
        case _:
            return internal()
