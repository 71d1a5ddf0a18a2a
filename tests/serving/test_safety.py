"""Nobody speaks to the server who should not, and nobody says too much."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crossroads.errors import ConfigError
from crossroads.serving.api_error import ApiError
from crossroads.serving.safety import (
    LOOPBACK_HOSTS,
    ApiKey,
    BodyLimit,
    HostCheck,
    JsonCheck,
    OriginCheck,
    SecurityHeaders,
    check_binding,
    hosts_of,
    is_loopback,
    read_key,
)

KEY = "a-key-of-more-than-16-characters"


@dataclass
class Inside:
    """The app behind a layer: reads the whole body and tells what reached it."""

    content_type: str = "application/json"
    reached: int = 0
    read: bytes = b""
    cut_off: bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.reached += 1
        if scope["type"] != "http":
            return
        more = True
        while more:
            message = await receive()
            self.cut_off = message["type"] == "http.disconnect"
            self.read += message.get("body", b"")
            more = message.get("more_body", False)
        headers = [(b"content-type", self.content_type.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})


@dataclass
class Reply:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    received: int = 0

    @property
    def error(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.body)["error"]
        return value


def ask(
    app: ASGIApp,
    method: str = "GET",
    path: str = "/",
    headers: Iterable[tuple[str, str]] = (),
    pieces: Iterable[Message] | None = None,
) -> Reply:
    """Return what the app answers; `pieces` are the messages of the request's body."""
    reply = Reply()
    messages = iter([{"type": "http.request", "body": b""}] if pieces is None else pieces)

    async def receive() -> Message:
        reply.received += 1
        return next(messages, {"type": "http.disconnect"})

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            assert not reply.status
            reply.status = message["status"]
            reply.headers = {k.decode(): v.decode() for k, v in message["headers"]}
        else:
            reply.body += message.get("body", b"")

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers],
    }
    asyncio.run(app(scope, receive, send))
    return reply


def body(*pieces: bytes) -> list[Message]:
    last = len(pieces) - 1
    return [
        {"type": "http.request", "body": piece, "more_body": index < last}
        for index, piece in enumerate(pieces)
    ]


@pytest.mark.parametrize(
    "layer",
    [
        lambda app: ApiKey(app, KEY),
        lambda app: BodyLimit(app, 10),
        JsonCheck,
        lambda app: HostCheck(app, LOOPBACK_HOSTS),
        OriginCheck,
        lambda app: OriginCheck(app, ["https://example.org"]),
        SecurityHeaders,
    ],
)
def test_the_start_of_the_server_passes_every_layer(layer: Any) -> None:
    inside = Inside()

    async def nothing(*_arguments: object) -> Any:
        raise AssertionError

    asyncio.run(layer(inside)({"type": "lifespan"}, nothing, nothing))
    assert inside.reached == 1


class TestApiKey:
    @given(st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=40))
    def test_only_the_key_lets_in(self, given_key: str) -> None:
        inside = Inside()
        reply = ask(ApiKey(inside, KEY), headers=[("Authorization", f"Bearer {given_key}")])
        assert (reply.status == 200) == (given_key.strip() == KEY) == bool(inside.reached)

    @pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
    def test_the_key_lets_in(self, scheme: str) -> None:
        assert (
            ask(ApiKey(Inside(), KEY), headers=[("Authorization", f"{scheme} {KEY}")]).status == 200
        )

    @pytest.mark.parametrize(
        "headers",
        [
            [],
            [("Authorization", KEY)],
            [("Authorization", f"Basic {KEY}")],
            [("Authorization", f"Bearer{KEY}")],
            [("Authorization", f"Bearer {KEY[:-1]}")],
            [("Authorization", f"Bearer {KEY}x")],
            [("Authorization", "Bearer wrong"), ("Authorization", f"Bearer {KEY}")],
            [("X-Api-Key", KEY)],
        ],
    )
    def test_nothing_else_does(self, headers: list[tuple[str, str]]) -> None:
        inside = Inside()
        reply = ask(ApiKey(inside, KEY), "POST", headers=headers)
        assert (reply.status, inside.reached) == (401, 0)
        assert reply.headers["www-authenticate"] == "Bearer"
        assert reply.error["code"] == "invalid_api_key"
        assert KEY not in reply.body.decode()

    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("GET", "/", 200),
            ("HEAD", "/health", 200),
            ("GET", "/page/app.js", 200),
            ("GET", "/page", 401),
            ("GET", "/pages/app.js", 401),
            ("GET", "/page/../v1/models", 401),
            ("GET", "/health/", 401),
            ("GET", "//", 401),
            ("GET", "/v1/models", 401),
            ("POST", "/", 401),
            ("POST", "/page/app.js", 401),
        ],
    )
    def test_open_paths_are_open_to_readers(self, method: str, path: str, status: int) -> None:
        app = ApiKey(Inside(), KEY, ["/", "/health", "/page/*"])
        assert ask(app, method, path).status == status


class TestBodyLimit:
    @given(st.lists(st.binary(max_size=6), min_size=1, max_size=6))
    def test_the_limit_is_in_bytes_that_came(self, pieces: list[bytes]) -> None:
        inside = Inside()
        reply = ask(BodyLimit(inside, 10), "POST", pieces=body(*pieces))
        whole = b"".join(pieces)
        if len(whole) <= 10:
            assert (reply.status, inside.read) == (200, whole)
        else:
            assert reply.status == 413
            assert len(inside.read) <= 10

    def test_no_more_is_read_than_the_piece_that_is_too_much(self) -> None:
        reply = ask(BodyLimit(Inside(), 10), "POST", pieces=body(*[b"12345678"] * 100))
        assert (reply.status, reply.received) == (413, 2)

    @pytest.mark.parametrize(
        ("length", "status"),
        [
            ("10", 200), ("0010", 200), ("11", 413), ("9" * 5000, 413),
            ("-1", 400), ("", 400), ("x", 400), ("1e3", 400), ("\xb2", 400),
        ],
    )  # fmt: skip
    def test_a_length_that_is_stated_is_believed_before_reading(
        self, length: str, status: int
    ) -> None:
        inside = Inside()
        reply = ask(BodyLimit(inside, 10), "POST", headers=[("Content-Length", length)])
        assert reply.status == status
        assert (reply.received, inside.reached) == ((1, 1) if status == 200 else (0, 0))

    def test_a_length_that_is_a_lie_is_counted(self) -> None:
        headers = [("Content-Length", "3")]
        app = BodyLimit(Inside(), 10)
        assert ask(app, "POST", headers=headers, pieces=body(b"1" * 11)).status == 413

    def test_a_body_that_is_cut_off_is_the_apps_to_see(self) -> None:
        inside = Inside()
        piece: Message = {"type": "http.request", "body": b"12", "more_body": True}
        ask(BodyLimit(inside, 10), "POST", pieces=[piece])
        assert (inside.read, inside.cut_off) == (b"12", True)

    def test_errors_of_the_app_are_its_own(self) -> None:
        async def broken(scope: Scope, receive: Receive, send: Send) -> None:
            raise RuntimeError("mine")

        with pytest.raises(RuntimeError, match="mine"):
            ask(BodyLimit(broken, 10), "POST")

    @pytest.mark.parametrize("handled", [True, False])
    def test_a_starlette_app_need_not_know_of_it(self, handled: bool) -> None:
        async def endpoint(request: Request) -> Response:
            return Response(await request.body())

        async def tell(_request: Request, error: Exception) -> Response:
            assert isinstance(error, ApiError)
            return error.response()

        app = Starlette(
            routes=[Route("/", endpoint, methods=["POST"])],
            middleware=[Middleware(BodyLimit, 10)],
            exception_handlers={ApiError: tell} if handled else {},
        )
        assert ask(app, "POST", pieces=body(b"12345", b"678")).body == b"12345678"
        assert ask(app, "POST", pieces=body(b"12345", b"678910")).error["code"] == "body_too_large"

    def test_a_reply_that_has_begun_is_not_begun_again(self) -> None:
        async def eager(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await receive()

        with pytest.raises(Exception, match="larger than 10 bytes"):
            ask(BodyLimit(eager, 10), "POST", pieces=body(b"1" * 11))


class TestJsonCheck:
    @pytest.mark.parametrize(
        "content_type", ["application/json", "Application/JSON", "application/json; charset=utf-8"]
    )
    def test_json_passes(self, content_type: str) -> None:
        app = JsonCheck(Inside())
        assert ask(app, "POST", headers=[("Content-Type", content_type)]).status == 200

    @pytest.mark.parametrize(
        "content_type",
        [
            None,
            "",
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "text/plain; application/json",
            "application/jsonp",
        ],
    )
    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
    def test_what_a_browser_sends_unasked_does_not(
        self, method: str, content_type: str | None
    ) -> None:
        inside = Inside()
        headers = [] if content_type is None else [("Content-Type", content_type)]
        reply = ask(JsonCheck(inside), method, headers=headers)
        assert (reply.status, inside.reached) == (415, 0)
        assert "application/json" in reply.error["message"]

    def test_reading_needs_no_type(self) -> None:
        assert ask(JsonCheck(Inside())).status == 200


class TestHostCheck:
    @pytest.mark.parametrize(
        "host",
        ["127.0.0.1", "127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]", "[::1]:8000"],
    )
    def test_the_machines_own_names_pass(self, host: str) -> None:
        assert ask(HostCheck(Inside(), LOOPBACK_HOSTS), headers=[("Host", host)]).status == 200

    @pytest.mark.parametrize(
        "hosts",
        [
            [],
            [""],
            ["evil.example"],
            ["127.0.0.1.evil.example"],
            ["localhost.evil.example:8000"],
            ["evil.example:127.0.0.1"],
            ["localhost@evil.example"],
            ["localhost:8000@evil.example"],
            ["localhost/evil"],
            ["localhost:"],
            ["::1"],
            ["127.0.0.1", "evil.example"],
            ["127.0.0.1\n"],
            ["0.0.0.0:8000"],
        ],
    )
    @pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
    def test_no_other_does(self, hosts: list[str], method: str) -> None:
        inside = Inside()
        headers = [("Host", host) for host in hosts]
        reply = ask(HostCheck(inside, LOOPBACK_HOSTS), method, headers=headers)
        assert (reply.status, inside.reached) == (421, 0)

    def test_a_server_for_all_has_any_name(self) -> None:
        assert ask(HostCheck(Inside(), None), headers=[("Host", "example.org")]).status == 200


class TestOriginCheck:
    OWN = ("Host", "127.0.0.1:8000")
    SITE = "https://example.org"

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
    @pytest.mark.parametrize(
        "origin",
        [
            "https://evil.example",
            "null",
            "",
            "http://127.0.0.1",
            "http://127.0.0.1:8001",
            "http://localhost:8000",
            "http://127.0.0.1:8000.evil.example",
            "https://example.org",
        ],
    )
    def test_other_sites_may_not_send(self, method: str, origin: str) -> None:
        inside = Inside()
        reply = ask(OriginCheck(inside), method, headers=[self.OWN, ("Origin", origin)])
        assert (reply.status, inside.reached) == (403, 0)
        assert "access-control-allow-origin" not in reply.headers

    def test_a_missing_host_is_nobodys_origin(self) -> None:
        assert ask(OriginCheck(Inside()), "POST", headers=[("Origin", "null")]).status == 403

    @pytest.mark.parametrize("origin", ["http://127.0.0.1:8000", "https://127.0.0.1:8000", None])
    def test_its_own_page_and_programs_may(self, origin: str | None) -> None:
        headers = [self.OWN] if origin is None else [self.OWN, ("Origin", origin)]
        assert ask(OriginCheck(Inside()), "POST", headers=headers).status == 200

    def test_no_site_may_read_by_default(self) -> None:
        reply = ask(OriginCheck(Inside()), headers=[self.OWN, ("Origin", self.SITE)])
        assert "access-control-allow-origin" not in reply.headers
        preflight = [self.OWN, ("Origin", self.SITE), ("Access-Control-Request-Method", "POST")]
        reply = ask(OriginCheck(Inside()), "OPTIONS", headers=preflight)
        assert "access-control-allow-origin" not in reply.headers

    @pytest.mark.parametrize("allowed", [SITE, "*"])
    def test_an_allowed_site_may_send_and_read(self, allowed: str) -> None:
        app = OriginCheck(Inside(), [allowed])
        reply = ask(app, "POST", headers=[self.OWN, ("Origin", self.SITE)])
        assert reply.status == 200
        assert reply.headers["access-control-allow-origin"] == allowed
        assert "access-control-allow-credentials" not in reply.headers

    def test_a_browser_that_asks_beforehand_is_told(self) -> None:
        inside = Inside()
        app = OriginCheck(ApiKey(inside, KEY), [self.SITE])
        asked = [
            ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", "authorization, content-type, x-stainless-os"),
        ]
        reply = ask(app, "OPTIONS", headers=[self.OWN, ("Origin", self.SITE), *asked])
        assert reply.status == 200
        assert "authorization" in reply.headers["access-control-allow-headers"]
        reply = ask(app, "OPTIONS", headers=[self.OWN, ("Origin", "https://evil.example"), *asked])
        assert reply.status == 400
        assert "access-control-allow-origin" not in reply.headers
        assert inside.reached == 0

    def test_an_allowed_site_can_read_why_it_was_refused(self) -> None:
        app = OriginCheck(ApiKey(Inside(), KEY), [self.SITE])
        reply = ask(app, "POST", headers=[self.OWN, ("Origin", self.SITE)])
        assert reply.status == 401
        assert reply.headers["access-control-allow-origin"] == self.SITE

    def test_allowing_one_site_allows_no_other(self) -> None:
        app = OriginCheck(Inside(), [self.SITE])
        headers = [self.OWN, ("Origin", "https://example.org.evil.example")]
        assert ask(app, "POST", headers=headers).status == 403

    @pytest.mark.parametrize(
        "origin",
        [
            "example.org",
            "https://example.org/",
            "https://Example.org",
            "null",
            "",
            "https://*.org/x",
        ],
    )
    def test_what_no_browser_sends_cannot_be_allowed(self, origin: str) -> None:
        with pytest.raises(ConfigError, match="must look like"):
            OriginCheck(Inside(), [origin])


class TestSecurityHeaders:
    @pytest.mark.parametrize(
        "content_type", ["text/html; charset=utf-8", "text/css", "text/javascript", "image/svg+xml"]
    )
    def test_pages_run_their_own_files_only(self, content_type: str) -> None:
        headers = ask(SecurityHeaders(Inside(content_type))).headers
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-frame-options"] == "DENY"

    def test_data_is_left_alone(self) -> None:
        assert set(ask(SecurityHeaders(Inside())).headers) == {"content-type"}


class TestBinding:
    @pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1", "[::1]"])
    def test_loopback_needs_no_key_and_knows_its_names(self, host: str) -> None:
        check_binding(host, has_key=False)
        hosts = hosts_of(host)
        assert hosts is not None
        assert set(LOOPBACK_HOSTS) <= set(hosts)
        own = f"[{host}]" if host == "::1" else host
        assert ask(HostCheck(Inside(), hosts), headers=[("Host", f"{own}:80")]).status == 200

    @pytest.mark.parametrize(
        "host", ["0.0.0.0", "::", "192.168.0.7", "example.org", "", "localhost.example.org"]
    )
    def test_other_machines_need_a_key(self, host: str) -> None:
        assert not is_loopback(host)
        assert hosts_of(host) is None
        check_binding(host, has_key=True)
        with pytest.raises(ConfigError, match="API key"):
            check_binding(host, has_key=False)


class TestReadKey:
    @pytest.mark.parametrize("end", ["", "\n", "\r\n"])
    def test_the_line_break_is_not_part_of_it(self, tmp_path: Path, end: str) -> None:
        path = tmp_path / "key.txt"
        for key in (KEY, "k" * 16, "k" * 512):
            path.write_bytes((key + end).encode())
            assert read_key(path) == key

    @pytest.mark.parametrize(
        "content",
        [
            b"", b"\n", b"k" * 15, b"k" * 513, b"k" * 100_000, b"a key of several words",
            b"two-lines-of-sixteen\nmore-characters", b"caf\xc3\xa9-and-many-more-letters",
            b"k" * 16 + b"\x00", b"k" * 16 + b"\n\n",
        ],
    )  # fmt: skip
    def test_what_is_no_key_is_refused_and_not_told(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "key.txt"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="the API key in") as caught:
            read_key(path)
        assert not content.strip() or content.decode().strip() not in str(caught.value)

    def test_a_file_that_cannot_be_read(self, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / "missing"):
            with pytest.raises(ConfigError, match="cannot read the API key file"):
                read_key(path)
