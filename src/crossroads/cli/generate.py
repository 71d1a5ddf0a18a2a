"""`crossroads generate`: answer a prompt with both models, streaming, coloured by writer."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossroads.cli.options import (
    PairOptions,
    check_router,
    on_loss_option,
    pair_options,
    request_of,
    request_options,
    router_options,
)
from crossroads.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from crossroads.decoding.mixed import MixedModels
    from crossroads.decoding.request import Request
    from crossroads.models.base import Tokenizer
    from crossroads.models.pairs import Pair
    from crossroads.types import Trace


@click.command()
@click.argument("prompt")
@pair_options(context=4096)
@router_options
@on_loss_option
@click.option("--system", default=None, help="System message.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without chat template.")
@request_options(max_tokens=512)
@click.option("--logprobs", type=int, help="Log-probabilities of so many tokens, for --trace.")
@click.option(
    "--trace", "trace_path", type=click.Path(dir_okay=False), help="Write the trace (JSON)."
)
def generate(
    prompt: str,
    models: PairOptions,
    router: str | None,
    threshold: float | None,
    on_loss: str,
    system: str | None,
    raw: bool,
    trace_path: str | None,
    **sampling: Any,
) -> None:
    """Answer PROMPT; tokens that the large model wrote are coloured."""
    if not prompt.strip():
        raise RequestError("the prompt is empty; write what the models should answer")
    # Checked before the models load: a user should not wait for a sentence about a typo.
    settings = request_of(sampling, threshold)
    check_router(router)
    with models.load(max_rows=1) as pair:
        mixed = _mixed(pair, router, threshold)
        prompt_ids = tuple(_prompt_ids(pair.tokenizer, prompt, system, raw=raw))
        trace = asyncio.run(_run(mixed, replace(settings, prompt_ids=prompt_ids), on_loss))
    if trace_path is not None:
        from crossroads.artifacts import write_json

        write_json(Path(trace_path), trace.to_json())


def _prompt_ids(tokenizer: Tokenizer, prompt: str, system: str | None, *, raw: bool) -> list[int]:
    from crossroads.types import Message

    if raw:
        if system is not None:
            raise ConfigError("--raw has no chat template, so --system means nothing with it")
        return tokenizer.encode(prompt)
    messages = [Message("system", system)] if system is not None else []
    return tokenizer.render([*messages, Message("user", prompt)])


def _mixed(pair: Pair, router: str | None, threshold: float | None) -> MixedModels:
    from crossroads.decoding.mixed import MixedModels
    from crossroads.routing.choose import choose_router

    chosen = choose_router(router, pair.small.info, pair.large.info)
    return MixedModels(
        pair.small,
        pair.large,
        chosen.router,
        pair.tokenizer,
        chosen.threshold if threshold is None else threshold,
    )


async def _run(models: MixedModels, request: Request, on_loss: str) -> Trace:
    """Stream one answer to the terminal, then its usage; return the trace."""
    from crossroads.cli.answer import TokenPrinter, is_coloured, usage_line
    from crossroads.decoding.engine import Engine
    from crossroads.types import OnLoss

    printer = TokenPrinter(models.tokenizer, request.stop, coloured=is_coloured())
    started = time.perf_counter()
    first: float | None = None
    trace: Trace | None = None
    async with Engine(models, max_rows=1, on_loss=OnLoss(on_loss)) as engine:
        async for event in engine.generate(request):
            first = first or time.perf_counter() - started
            if event.record is not None:
                printer.add(event.record)
            trace = event.trace
    assert trace is not None
    printer.end()
    seconds = time.perf_counter() - started
    click.echo(usage_line(models, trace, seconds, first or 0.0), err=True)
    return trace
