"""The web application: routes, errors, and what guards them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crossroads.serving.api_error import (
    ApiError,
    internal,
    invalid_request,
    method_not_allowed,
    not_found,
)
from crossroads.serving.generation import chat, complete
from crossroads.serving.metrics import Refusal
from crossroads.serving.openapi import document
from crossroads.serving.safety import (
    ApiKey,
    BodyLimit,
    HostCheck,
    JsonCheck,
    OriginCheck,
    SecurityHeaders,
)
from crossroads.serving.service import MODELS, Service, check_model
from crossroads.serving.state import routing_state
from crossroads.serving.stream import dump

_PAGE = Path(__file__).parent / "page"
_OPEN_PATHS = ("/", "/page/*", "/health")


@dataclass(frozen=True, slots=True)
class Safety:
    """Who may speak to the server; see `serving.safety`.

    hosts: None allows every Host header. body_seconds: how long a request's body may take.
    """

    key: str | None = None
    hosts: Collection[str] | None = None
    origins: Collection[str] = ()
    most_bytes: int = 4 * 1024 * 1024
    body_seconds: float = 60.0


def create_app(service: Service, safety: Safety = Safety()) -> Starlette:
    """Return the application; it closes the engine when it shuts down."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await service.engine.close()

    app = Starlette(
        routes=[
            Route("/", _page),
            Route("/health", _health),
            Route("/metrics", _metrics),
            Route("/openapi.json", _openapi),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", complete, methods=["POST"]),
            Route("/v1/models", _models),
            Route("/v1/models/{model}", _model),
            Route("/v1/routing", _routing),
            Mount("/page", StaticFiles(directory=_PAGE)),
        ],
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_error,
            Exception: _internal,
        },
        middleware=_middleware(service, safety),
        lifespan=lifespan,
    )
    app.state.service = service
    return app


def _middleware(service: Service, safety: Safety) -> list[Middleware]:
    layers = [
        Middleware(_Refusals, service),
        Middleware(SecurityHeaders),
        Middleware(HostCheck, safety.hosts),
        Middleware(OriginCheck, safety.origins),
    ]
    if safety.key is not None:
        layers.append(Middleware(ApiKey, safety.key, _OPEN_PATHS))
    limit = Middleware(BodyLimit, safety.most_bytes, safety.body_seconds)
    return [*layers, limit, Middleware(JsonCheck)]


class _Refusals:
    """Counts what is refused before it has a meter of its own, by whichever layer."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._metrics = service.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start" and not state.get("metered"):
                status: int = message["status"]
                if status >= 400:
                    self._metrics.refused(None, Refusal.of(status))
            await send(message)

        await self._app(scope, receive, counted)


# Errors


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    """Word what Starlette itself refuses as the API does."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return not_found(request.url.path).response()
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "GET").split(", ")
        return method_not_allowed(request.method, allowed).response()
    return invalid_request(error.detail).response()


async def _internal(_: Request, error: Exception) -> Response:
    del error  # the server's log has it
    return internal().response()


# The small endpoints


def _json(value: object, status: int = 200) -> Response:
    return Response(dump(value), status, media_type="application/json")


async def _page(_: Request) -> Response:
    return FileResponse(_PAGE / "index.html")


async def _health(request: Request) -> Response:
    service: Service = request.app.state.service
    closed = service.engine.closed
    return _json({"status": "ok"}) if closed is None else _json({"status": "closed"}, 503)


async def _metrics(request: Request) -> Response:
    metrics = request.app.state.service.metrics
    return Response(metrics.render(), media_type=metrics.content_type)


async def _openapi(_: Request) -> Response:
    return _json(document(version("crossroads-lm")))


async def _models(request: Request) -> Response:
    cards = [_model_card(request, name) for name in MODELS]
    return _json({"object": "list", "data": cards})


async def _model(request: Request) -> Response:
    name = request.path_params["model"]
    check_model(name)
    return _json(_model_card(request, name))


def _model_card(request: Request, name: str) -> dict[str, object]:
    service: Service = request.app.state.service
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "crossroads",
        "root": service.root(name),
        "max_model_len": service.context_length(name),
    }


async def _routing(request: Request) -> Response:
    return _json(routing_state(request.app.state.service))
