"""Who may speak to the server, and how much they may say: small ASGI layers around the app.

A server on one's own machine is not alone with its owner: any web page that they open can make
their browser send requests to it. So by default it answers only to its own names (HostCheck), to
its own pages (OriginCheck), and to JSON (JsonCheck), which a page of another site cannot send
without being asked first; beyond this machine it answers to a key (ApiKey). They are to stand in
this order, outermost first: SecurityHeaders, HostCheck, OriginCheck, ApiKey, BodyLimit, JsonCheck.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crossroads.errors import ConfigError
from crossroads.serving.api_error import (
    ApiError,
    forbidden_origin,
    invalid_request,
    misdirected,
    too_large,
    too_slow,
    unauthorised,
    unsupported_media_type,
)

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")
"""The names under which a browser finds a server on its own machine."""

_SHORTEST_KEY, _LONGEST_KEY = 16, 512
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\sA-Z:@/\[\]]+)(?::\d{1,5})?")
_ORIGIN = re.compile(r"https?://" + _HOST.pattern)

_PAGE_TYPES = frozenset(
    {
        "text/html",
        "text/css",
        "text/javascript",
        "application/javascript",
        "image/svg+xml",
    }
)
_PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "object-src 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class ApiKey:
    """Lets in who knows the key: `Authorization: Bearer KEY`.

    `open_paths` need none to be read: exact paths, or "/page/*" for all that lies below /page/.
    """

    def __init__(self, app: ASGIApp, key: str, open_paths: Collection[str] = ()) -> None:
        """Guard `app`."""
        self._app = app
        self._key = key.encode()
        self._open = frozenset(path for path in open_paths if not path.endswith("/*"))
        self._open_below = tuple(path[:-1] for path in open_paths if path.endswith("/*"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        if scope["type"] == "http" and not (self._is_open(scope) or self._knows_key(scope)):
            await unauthorised().response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        path: str = scope["path"]
        if scope["method"] not in _READING or ".." in path.split("/"):
            return False
        return path in self._open or path.startswith(self._open_below)

    def _knows_key(self, scope: Scope) -> bool:
        given = _values(scope, b"authorization")
        scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        # In constant time: how long a comparison takes must not tell how much of it was right.
        return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._key)


class BodyLimit:
    """Refuses bodies of more than `most_bytes` bytes, by what they say and by what they are.

    And those that take longer than `seconds`: who sends little by little holds a connection.
    """

    def __init__(self, app: ASGIApp, most_bytes: int, seconds: float = 60.0) -> None:
        """Guard `app`."""
        self._app = app
        self._most = most_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and answer 413 or 408 once its body is too large or too slow."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if (at_once := self._stated(scope)) is not None:
            await at_once.response()(scope, receive, send)
            return
        large, slow = too_large(self._most), too_slow(self._seconds)
        read, started, whole = 0, False, False
        until = asyncio.get_running_loop().time() + self._seconds

        async def counted() -> Message:
            nonlocal read, whole
            try:
                # What is received after the body is that the client has left, whenever it does.
                async with asyncio.timeout_at(None if whole else until):
                    message = await receive()
            except TimeoutError:
                raise slow from None
            whole = whole or not message.get("more_body", False)
            read += len(message.get("body", b""))
            if read > self._most:
                raise large
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, counted, watched)
        except ApiError as error:
            if error not in (large, slow) or started:
                raise
            await error.response()(scope, receive, send)

    def _stated(self, scope: Scope) -> ApiError | None:
        """Return what is wrong with the length that the request states, if anything."""
        stated = Headers(scope=scope).get("content-length", "0")
        if not (stated.isascii() and stated.isdigit()):
            return invalid_request("the Content-Length header must be a whole number")
        # Python refuses to read a number of thousands of digits.
        digits = stated.lstrip("0") or "0"
        if len(digits) > len(str(self._most)) or int(digits) > self._most:
            return too_large(self._most)
        return None


class JsonCheck:
    """Refuses what is sent as anything but JSON.

    A browser sends forms and plain text for any site without asking the server; JSON it does not.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Guard `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 415."""
        if scope["type"] == "http" and scope["method"] not in _READING:
            given = Headers(scope=scope).get("content-type")
            if given is None or _media_type(given) != "application/json":
                await unsupported_media_type(given).response()(scope, receive, send)
                return
        await self._app(scope, receive, send)


class HostCheck:
    """Refuses requests for a host that this server is not; its port may be any.

    A page can make its own name lead to this machine ("DNS rebinding") and would then be of the
    same origin as the server; the Host header is what still tells.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Collection[str] | None) -> None:
        """Guard `app`; None: whoever has come here may have used any name."""
        self._app = app
        self._allowed = None if allowed_hosts is None else frozenset(map(str.lower, allowed_hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 421."""
        if scope["type"] == "http" and self._allowed is not None:
            given = [value.decode("latin-1") for value in _values(scope, b"host")]
            found = _HOST.fullmatch(given[0].lower()) if len(given) == 1 else None
            if found is None or found[1] not in self._allowed:
                await misdirected(", ".join(given) or None).response()(scope, receive, send)
                return
        await self._app(scope, receive, send)


class OriginCheck:
    """Refuses what pages of other sites send, except for the origins that were allowed.

    An allowed origin ("https://example.org", or "*" for all) may also read the replies (CORS).
    """

    def __init__(self, app: ASGIApp, allowed_origins: Collection[str] = ()) -> None:
        """Guard `app`.

        Raises:
            ConfigError: something that no browser sends as an origin.
        """
        check_origins(allowed_origins)
        self._app = app
        self._allowed = frozenset(allowed_origins)
        self._entry: ASGIApp = self._check
        if self._allowed:
            self._entry = CORSMiddleware(
                self._check,
                allow_origins=sorted(self._allowed),
                allow_methods=("GET", "POST"),
                allow_headers=("*",),  # OpenAI's JavaScript client sends a dozen of its own
                expose_headers=("Retry-After",),
                allow_private_network=True,
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 403; answer a browser that asks beforehand."""
        await self._entry(scope, receive, send)

    async def _check(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in _READING:
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            if origin is not None and not self._may_send(origin, headers.get("host", "")):
                await forbidden_origin(origin).response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _may_send(self, origin: str, host: str) -> bool:
        # Not by scheme: behind a proxy that ends TLS, the server does not know its own.
        own = bool(host) and origin.lower().partition("://")[2] == host.lower()
        return own or origin in self._allowed or "*" in self._allowed


class SecurityHeaders:
    """Tells browsers that the page runs its own files only, in no frame, and leaks no address."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and add the headers to what a browser would render or run."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if _media_type(headers.get("content-type", "")) in _PAGE_TYPES:
                    headers.update(_PAGE_HEADERS)
            await send(message)

        await self._app(scope, receive, with_headers)


def is_loopback(host: str) -> bool:
    """Whether a server that listens on `host` is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def hosts_of(host: str) -> tuple[str, ...] | None:
    """Return the names that HostCheck is to allow for a server on `host`; None: all of them."""
    if not is_loopback(host):
        return None
    own = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return tuple(dict.fromkeys((*LOOPBACK_HOSTS, own)))


def check_origins(origins: Iterable[str]) -> None:
    """Refuse what no browser sends as a page's origin.

    Raises:
        ConfigError: names it.
    """
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"an allowed origin must look like https://example.org, got {origin!r}"
            )


def check_binding(host: str, has_key: bool) -> None:
    """Refuse to listen to other machines without a key.

    Raises:
        ConfigError: that was asked for.
    """
    if not has_key and not is_loopback(host):
        raise ConfigError(
            f"on host {host!r} other machines could use this server; give it an API key, or "
            "listen on 127.0.0.1"
        )


def read_key(path: Path) -> str:
    """Return the key that a file holds, without the line break at its end.

    Raises:
        ConfigError: the file cannot be read, or its text is no key; never says what it holds.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST_KEY + 3)  # a key, its line break, and one byte too many
    except OSError as error:
        raise ConfigError(f"cannot read the API key file {path}: {error.strerror}") from error
    key = content.removesuffix(b"\n").removesuffix(b"\r")
    return check_key(key.decode("latin-1"), f"the API key in {path}")


def check_key(key: str, what: str) -> str:
    """Return the key; `what` names it in the error.

    Raises:
        ConfigError: it is no key; never says what it is.
    """
    if not _SHORTEST_KEY <= len(key) <= _LONGEST_KEY:
        raise ConfigError(f"{what} must have {_SHORTEST_KEY} to {_LONGEST_KEY} characters")
    if any(not "!" <= character <= "~" for character in key):
        raise ConfigError(f"{what} must be one line of printable ASCII without spaces")
    return key


def _values(scope: Scope, name: bytes) -> list[bytes]:
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return [value for key, value in headers if key == name]


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()
