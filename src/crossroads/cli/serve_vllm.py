"""`crossroads serve --backend vllm`: the same server in front of two kinds of vLLM servers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from crossroads.cli.options import FOLDER, PairOptions, on_loss_option
from crossroads.errors import ConfigError

if TYPE_CHECKING:
    from crossroads.decoding.mixed import MixedModels
    from crossroads.models.remote_client import VllmClient
    from crossroads.models.vllm_server import RunningServer, ServerPlan
    from crossroads.vllm.between import Servers
    from crossroads.vllm.engine import VllmEngine
    from crossroads.vllm.pair import ElsewherePair

_OF_BACKEND = "with --backend vllm: "
RUN_AHEAD, ASK_AHEAD = 16, 0


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """Where the vLLM servers are, or how to start them."""

    small_url: str | None
    large_url: tuple[str, ...]
    small_args: str
    large_args: str
    small_devices: str | None
    large_devices: str | None
    vllm_python: str
    vllm_logs: Path
    startup_timeout: float
    run_ahead: int
    ask_ahead: int
    prompt_ahead: bool
    on_loss: str

    @property
    def connects(self) -> bool:
        """Whether the servers run already."""
        return self.small_url is not None or bool(self.large_url)


def vllm_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of the vLLM backend; pass them as `vllm`."""

    @click.option("--small-url", help=f"{_OF_BACKEND}a running server of the small model.")
    @click.option(
        "--large-url",
        multiple=True,
        help=f"{_OF_BACKEND}a running server of the large model; more for replicas, with commas.",
    )
    @click.option("--small-args", default="", help="More arguments for the small model's vLLM.")
    @click.option("--large-args", default="", help="More arguments for the large model's vLLM.")
    @click.option("--small-devices", help="CUDA_VISIBLE_DEVICES of the small model's vLLM.")
    @click.option("--large-devices", help="CUDA_VISIBLE_DEVICES of the large model's vLLM.")
    @click.option(
        "--vllm-python",
        default=sys.executable,
        envvar="CROSSROADS_VLLM_PYTHON",
        help="Python that has vLLM [default: this one].",
    )
    @click.option(
        "--vllm-logs",
        default=Path("vllm-logs"),
        show_default=True,
        type=FOLDER,
        help="Folder for the logs of the vLLM servers.",
    )
    @click.option(
        "--startup-timeout",
        default=900.0,
        show_default=True,
        type=click.FloatRange(0, min_open=True),
        help="Seconds that the vLLM servers may take to load.",
    )
    @click.option(
        "--run-ahead",
        default=RUN_AHEAD,
        show_default=True,
        type=click.IntRange(0),
        help=f"{_OF_BACKEND}tokens that the small model writes on while the large one answers.",
    )
    @click.option(
        "--ask-ahead",
        default=ASK_AHEAD,
        show_default=True,
        type=click.IntRange(0),
        help=f"{_OF_BACKEND}of those, tokens that the large model is asked about meanwhile.",
    )
    @click.option(
        "--prompt-ahead/--no-prompt-ahead",
        default=True,
        show_default=True,
        help=f"{_OF_BACKEND}the large model reads a prompt while the small one begins to write.",
    )
    @on_loss_option
    @wraps(function)
    def wrapper(**options: Any) -> None:
        own = {name: options.pop(name) for name in VllmOptions.__dataclass_fields__}
        if options["backend"] != "vllm":
            _refuse_given(own.keys() - {"on_loss"})
        function(vllm=VllmOptions(**own), **options)

    return wrapper


def _refuse_given(names: Collection[str]) -> None:
    """Refuse options of the vLLM backend where that does not run, if they were typed.

    Raises:
        ConfigError: names one.
    """
    context = click.get_current_context()
    for option in context.command.params:
        typed = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if option.name in names and typed:
            raise ConfigError(f"{option.opts[0]} is for --backend vllm; add that, or leave it out")


def check_models(models: PairOptions) -> tuple[str, str]:
    """Return the names of the two models, folders or hub repositories.

    Raises:
        ConfigError: they are not given.
    """
    if models.small is None or models.large is None:
        raise ConfigError(
            "--backend vllm needs --small and --large: folders or hub repositories of safetensors"
        )
    return models.small, models.large


@contextmanager
def servers_of(
    options: VllmOptions, models: PairOptions, router: str | None, rows: int, context: int
) -> Iterator[VllmOptions]:
    """Yield the options with the addresses of running servers, started here if need be."""
    from crossroads.models.vllm_server import RunningServer, ServerPlan, free_port, wait_until_ready

    if options.connects:
        if options.small_url is None or not options.large_url:
            raise ConfigError("give --small-url and --large-url together, or neither")
        yield options
        return
    small, large = check_models(models)

    def plan(name: str, model: str, plugin: str, arguments: str, devices: str | None) -> ServerPlan:
        return ServerPlan(
            name, model, plugin, context, rows,
            options.vllm_logs / f"{name}.log", arguments, devices, options.vllm_python,
        )  # fmt: skip

    plans = [
        plan("small", small, router or "entropy", options.small_args, options.small_devices),
        plan("large", large, "never", options.large_args, options.large_devices),
    ]
    running: dict[str, RunningServer] = {}
    try:
        for each in plans:
            running[each.name] = RunningServer(each, free_port())
        click.echo(f"starting vLLM twice; logs in {options.vllm_logs}", err=True)
        wait_until_ready(
            running, options.startup_timeout, lambda text: click.echo(f"  {text}", err=True)
        )
        yield _at(options, running)
    finally:
        for server in running.values():
            server.stop()


def _at(options: VllmOptions, running: dict[str, RunningServer]) -> VllmOptions:
    from dataclasses import replace

    return replace(options, small_url=running["small"].url, large_url=(running["large"].url,))


async def make_engine(
    options: VllmOptions, pair: ElsewherePair, rows: int, queue: int
) -> VllmEngine:
    """Return the engine over running servers.

    Raises:
        EngineError: a server does not answer, or lacks the plugin.
    """
    from crossroads.models.remote_client import VllmClient
    from crossroads.vllm.between import Ahead
    from crossroads.vllm.engine import VllmEngine

    assert options.small_url is not None
    replicas = [url for given in options.large_url for url in given.split(",")]
    small, large = VllmClient([options.small_url]), VllmClient(replicas)
    try:
        servers, models = await _connect(options, pair, small, large)
    except BaseException:
        await small.close()
        await large.close()
        raise
    ahead = Ahead(options.run_ahead, options.ask_ahead, options.prompt_ahead)
    return VllmEngine(models, servers, max_rows=rows, max_waiting=queue, ahead=ahead)


async def _connect(
    options: VllmOptions, pair: ElsewherePair, small: VllmClient, large: VllmClient
) -> tuple[Servers, MixedModels]:
    from crossroads.errors import EngineError
    from crossroads.types import OnLoss
    from crossroads.vllm.asking import has_plugin
    from crossroads.vllm.between import Servers

    contexts = [(await client.connect()).context_length for client in (small, large)]
    models = pair.within(contexts).models
    if not await has_plugin(small, pair.models):
        raise EngineError(
            f"the server at {options.small_url} has no Crossroads plugin; install crossroads-lm "
            "beside its vLLM, set CROSSROADS_ROUTER, and start it with "
            "--logprobs-mode processed_logits"
        )
    servers = Servers(small, large, await has_plugin(large, models), OnLoss(options.on_loss))
    return servers, models
