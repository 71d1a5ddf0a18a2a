"""`crossroads serve`: the pair behind OpenAI's API, and a page to look at."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossroads.cli.options import FILE, PairOptions, check_router, pair_options
from crossroads.cli.serve_vllm import (
    VllmOptions,
    check_models,
    make_engine,
    servers_of,
    vllm_options,
)
from crossroads.errors import ConfigError

if TYPE_CHECKING:
    from crossroads.serving.app import Safety
    from crossroads.serving.service import Service, ServiceOptions

MIB = 1024 * 1024


MakeService = Callable[[], Awaitable["Service"]]


@dataclass(frozen=True, slots=True)
class _Capacity:
    rows: int
    queue: int
    keep: int
    shutdown: float


@dataclass(frozen=True, slots=True)
class _Routing:
    router: str | None
    threshold: float | None


class _Finite(click.FloatRange):
    """A range in which neither NaN nor infinity lies."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


@click.command()
@pair_options(context=4096)
@click.option(
    "--router",
    default=None,
    help="Router folder, pretrained, or entropy, margin, max-probability, random, always, never "
    "[default: pretrained if the package has a router for the pair, else entropy].",
)
@click.option(
    "--threshold",
    type=float,
    default=None,
    help="For requests that bring none [default: the router's own; 0.15 for a heuristic].",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Others than this need a key.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535))
@click.option("--api-key", envvar="CROSSROADS_API_KEY", help="Key that requests must bring.")
@click.option("--api-key-file", type=FILE, help="File with that key.")
@click.option("--allow-origin", multiple=True, help="Web page's origin that may use the server.")
@click.option(
    "--rows", default=8, show_default=True, type=click.IntRange(1), help="Answers at once."
)
@click.option(
    "--queue", default=64, show_default=True, type=click.IntRange(0), help="Answers that may wait."
)
@click.option(
    "--keep",
    default=4,
    show_default=True,
    type=click.IntRange(0),
    help="Ended answers whose caches are kept, so that a chat's next turn is not read anew.",
)
@click.option(
    "--timeout",
    default=600.0,
    show_default=True,
    type=_Finite(0, min_open=True),
    help="Seconds that an answer may take, its wait included.",
)
@click.option(
    "--shutdown-timeout",
    default=30.0,
    show_default=True,
    type=_Finite(0),
    help="Seconds that answers may go on for once the server is told to stop.",
)
@click.option(
    "--max-body",
    default=4.0,
    show_default=True,
    type=_Finite(0, min_open=True),
    help="Largest request in MiB.",
)
@click.option(
    "--default-temperature",
    default=0.0,
    show_default=True,
    type=_Finite(0, 2),
    help="For requests that bring none; 0 = greedy, what routers are calibrated for.",
)
@click.option("--log-prompts", is_flag=True, help="Write prompts and answers into the log.")
@click.option(
    "--backend",
    default="local",
    show_default=True,
    type=click.Choice(["local", "vllm"]),
    help="Where the models run: in this process, or in vLLM servers.",
)
@vllm_options
def serve(
    models: PairOptions,
    router: str | None,
    threshold: float | None,
    host: str,
    port: int,
    api_key: str | None,
    api_key_file: Path | None,
    allow_origin: tuple[str, ...],
    rows: int,
    queue: int,
    keep: int,
    timeout: float,
    shutdown_timeout: float,
    max_body: float,
    default_temperature: float,
    log_prompts: bool,
    backend: str,
    vllm: VllmOptions,
) -> None:
    """Serve the pair: OpenAI's API under /v1, a page to chat with on /."""
    _require()
    from crossroads.routing.policy import check_threshold
    from crossroads.serving.app import Safety
    from crossroads.serving.safety import check_binding, check_origins, hosts_of
    from crossroads.serving.server import allow_many_connections, listen
    from crossroads.serving.service import ServiceOptions

    # All that a user can get wrong is looked at before the models load.
    key = _key(api_key, api_key_file)
    check_binding(host, key is not None)
    check_origins(allow_origin)
    check_router(router)
    if threshold is not None:
        check_threshold(threshold)
    safety = Safety(key, hosts_of(host), allow_origin, int(max_body * MIB))
    options = ServiceOptions(seconds=timeout, temperature=default_temperature, log_text=log_prompts)
    allow_many_connections()
    capacity = _Capacity(rows, queue, keep, shutdown_timeout)
    routing = _Routing(router, threshold)
    load = partial(_local, vllm.on_loss) if backend == "local" else partial(_vllm, vllm)
    with listen(host, port) as listener, load(models, routing, capacity, options) as make:
        _log_to_stderr()
        asyncio.run(_serve(make, listener, capacity, safety))


def _require() -> None:
    try:
        import prometheus_client  # noqa: F401
        import pydantic  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"the server needs {error.name}; install it with: pip install 'crossroads-lm[serve]'"
        ) from error


def _key(text: str | None, path: Path | None) -> str | None:
    from crossroads.serving.safety import check_key, read_key

    if text is not None and path is not None:
        raise ConfigError("--api-key and --api-key-file are two keys; give one of them")
    if path is not None:
        return read_key(path)
    return None if text is None else check_key(text, "--api-key")


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # What it has to tell when it starts and stops, we tell ourselves.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    # A line for each token of the large model is none for people.
    logging.getLogger("httpx2").setLevel(logging.WARNING)


async def _serve(
    make: MakeService, listener: socket.socket, capacity: _Capacity, safety: Safety
) -> None:
    from crossroads.serving.app import create_app
    from crossroads.serving.server import Server

    service = await make()
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    served = service.served
    click.echo(f"{served.pair} with router {served.router}: http://{shown}:{port}", err=True)
    click.echo(f"  OpenAI's API under http://{shown}:{port}/v1, Ctrl-C stops", err=True)
    app = create_app(service, safety)
    server = Server(app, service.engine, shutdown_seconds=capacity.shutdown)
    try:
        await server.serve([listener])
    finally:
        await service.engine.close()


@contextmanager
def _local(
    on_loss: str,
    models: PairOptions,
    routing: _Routing,
    capacity: _Capacity,
    options: ServiceOptions,
) -> Iterator[MakeService]:
    """Yield what makes the service of a pair in this process."""
    from crossroads.decoding.engine import Engine
    from crossroads.decoding.mixed import MixedModels
    from crossroads.models.catalogue import REMOTE
    from crossroads.routing.choose import choose_router
    from crossroads.serving.service import Served, make_service
    from crossroads.types import OnLoss

    with models.load(max_rows=capacity.rows + capacity.keep) as pair:
        chosen = choose_router(routing.router, pair.small.info, pair.large.info)
        cut = chosen.threshold if routing.threshold is None else routing.threshold
        mixed = MixedModels(pair.small, pair.large, chosen.router, pair.tokenizer, cut)

        async def make() -> Service:
            # While a server reads, the rows that are here may go on.
            elsewhere = pair.large.info.engine == REMOTE
            engine = Engine(
                mixed,
                max_rows=capacity.rows,
                max_waiting=capacity.queue,
                overlap=elsewhere,
                keep=capacity.keep,
                on_loss=OnLoss(on_loss),
            )
            served = Served(pair.name, chosen.router.name, chosen.card)
            return make_service(engine, served, options)

        yield make


@contextmanager
def _vllm(
    vllm: VllmOptions,
    models: PairOptions,
    routing: _Routing,
    capacity: _Capacity,
    options: ServiceOptions,
) -> Iterator[MakeService]:
    """Yield what makes the service of a pair in vLLM servers."""
    from crossroads.serving.service import Served, make_service
    from crossroads.vllm.pair import describe_pair

    small, large = check_models(models)
    pair = describe_pair(
        small,
        large,
        routing.router,
        routing.threshold,
        context_length=models.context,
        max_rows=capacity.rows,
    )
    infos = (pair.models.small.info, pair.models.large.info)
    context = min(info.context_length for info in infos)
    with servers_of(vllm, models, routing.router, capacity.rows, context) as at:

        async def make() -> Service:
            engine = await make_engine(at, pair, capacity.rows, capacity.queue)
            served = Served(pair.name, pair.chosen.router.name, pair.chosen.card)
            return make_service(engine, served, options)

        yield make
