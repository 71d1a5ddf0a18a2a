"""`crossroads generate`: answer a prompt with both models, streaming, coloured by writer."""

from __future__ import annotations

import asyncio
import codecs
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossroads.cli.options import PairOptions, pair_options
from crossroads.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from crossroads.decoding.mixed import MixedModels
    from crossroads.decoding.request import Request
    from crossroads.models.base import Tokenizer
    from crossroads.models.pairs import Pair
    from crossroads.types import TokenRecord, Trace

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed")


@click.command()
@click.argument("prompt")
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
    help="Score from which the large model writes; 0 = large alone, above 1 = small alone "
    "[default: the router's own; 0.15 for a heuristic].",
)
@click.option("--system", default=None, help="System message.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without chat template.")
@click.option("--max-tokens", default=512, show_default=True, help="Tokens to write at most.")
@click.option("--temperature", default=0.0, show_default=True, help="0 = greedy.")
@click.option("--top-p", default=1.0, show_default=True)
@click.option("--top-k", default=0, show_default=True, help="0 = off.")
@click.option("--min-p", default=0.0, show_default=True, help="0 = off.")
@click.option("--seed", default=0, show_default=True)
@click.option("--stop", multiple=True, help="Stop string; may be given again.")
@click.option(
    "--policy",
    default="immediate",
    show_default=True,
    help="How scores become decisions: immediate, momentum, rolling; NAME:KEY=VALUE,...",
)
@click.option("--max-lag", type=int, help="Most small tokens in a row before the large is asked.")
@click.option("--large-budget", type=int, help="Most tokens that the large model writes.")
@click.option(
    "--revise-below",
    default=0.0,
    show_default=True,
    help="When asked, the large model takes small tokens back that it gives less probability.",
)
@click.option(
    "--lossless",
    is_flag=True,
    help="Take tokens back so that the output is the large model's own in distribution.",
)
@click.option("--logprobs", type=int, help="Log-probabilities of so many tokens, for --trace.")
@click.option(
    "--trace", "trace_path", type=click.Path(dir_okay=False), help="Write the trace (JSON)."
)
def generate(
    prompt: str,
    models: PairOptions,
    router: str | None,
    threshold: float | None,
    system: str | None,
    raw: bool,
    trace_path: str | None,
    **sampling: Any,
) -> None:
    """Answer PROMPT; tokens that the large model wrote are coloured."""
    if not prompt.strip():
        raise RequestError("the prompt is empty; write what the models should answer")
    # Checked before the models load: a user should not wait for a sentence about a typo.
    settings = _settings(sampling, threshold)
    with models.load(max_rows=1) as pair:
        mixed = _mixed(pair, router, threshold)
        prompt_ids = tuple(_prompt_ids(pair.tokenizer, prompt, system, raw=raw))
        trace = asyncio.run(_run(mixed, replace(settings, prompt_ids=prompt_ids)))
    if trace_path is not None:
        from crossroads.artifacts import write_json

        write_json(Path(trace_path), trace.to_json())


def _settings(values: dict[str, Any], threshold: float | None) -> Request:
    """Return the request, but for its prompt."""
    from crossroads.decoding.request import Request, check_request
    from crossroads.routing.policy import policy_by_name
    from crossroads.sampling import SamplingParams

    sampled = {name: values.pop(name) for name in SAMPLING}
    request = Request(
        (0,),
        threshold=threshold,
        sampling=SamplingParams(**sampled),
        policy=policy_by_name(values.pop("policy")),
        **values,
    )
    check_request(request, [])
    return request


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


async def _run(models: MixedModels, request: Request) -> Trace:
    """Stream one answer to the terminal, then its usage; return the trace."""
    from crossroads.decoding.engine import Engine

    printer = _Printer(models.tokenizer, request.stop, coloured=sys.stdout.isatty())
    started = time.perf_counter()
    first: float | None = None
    trace: Trace | None = None
    async with Engine(models, max_rows=1) as engine:
        async for event in engine.generate(request):
            first = first or time.perf_counter() - started
            if event.record is not None:
                printer.add(event.record)
            trace = event.trace
    assert trace is not None
    printer.end()
    seconds = time.perf_counter() - started
    click.echo(_usage_line(models, trace, seconds, first or 0.0), err=True)
    return trace


def _usage_line(models: MixedModels, trace: Trace, seconds: float, first: float) -> str:
    from crossroads.decoding.cost import active_parameters

    usage = trace.usage
    active = active_parameters(
        trace.records,
        models.small.info.active_parameters,
        models.large.info.active_parameters,
        models.router.parameters,
    )
    taken_back = f", {usage.discarded_tokens} taken back" if usage.discarded_tokens else ""
    calls = f", asked {usage.large_calls} times" if usage.large_calls != usage.large_tokens else ""
    return (
        f"[{usage.generated_tokens} tokens: {usage.small_tokens} small, {usage.large_tokens} large"
        f"{calls}{taken_back} | large_fraction {usage.large_fraction:.3f}"
        f" | {usage.generated_tokens / seconds:.1f} tokens/s, first after {first:.2f} s"
        f" | {active / 1e9:.2f} B active parameters per token"
        f" | {trace.finish_reason}]"
    )


class _Printer:
    """Writes tokens as they come; holds back what may still become a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...], *, coloured: bool) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._coloured = coloured
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held: list[tuple[str, bool]] = []

    def add(self, record: TokenRecord) -> None:
        from crossroads.types import Role

        text = self._decoder.decode(self._tokenizer.text_bytes(record.token_id))
        self._held.extend((character, record.writer is Role.LARGE) for character in text)
        held = "".join(character for character, _ in self._held)
        cut = _stop_at(held, self._stop)
        self._write(len(held) - _possible_start(held, self._stop) if cut is None else cut)
        if cut is not None:
            self._held.clear()
            self._stop = ("",)

    def end(self) -> None:
        """Write what was held back, unless a stop string ended the text."""
        if self._stop != ("",):
            tail = self._decoder.decode(b"", final=True)
            self._held.extend((character, False) for character in tail)
            self._write(len(self._held))
        click.echo()

    def _write(self, count: int) -> None:
        ready, self._held = self._held[:count], self._held[count:]
        for character, by_large in ready:
            if by_large and self._coloured:
                click.secho(character, fg="bright_magenta", bold=True, nl=False)
            else:
                click.echo(character, nl=False)
        sys.stdout.flush()


def _stop_at(text: str, stop: tuple[str, ...]) -> int | None:
    found = [at for s in stop if s and (at := text.find(s)) >= 0]
    return min(found) if found else None


def _possible_start(text: str, stop: tuple[str, ...]) -> int:
    """Return how many characters at the end of `text` may begin a stop string."""
    lengths = (
        n for s in stop for n in range(min(len(s) - 1, len(text)), 0, -1) if text.endswith(s[:n])
    )
    return max(lengths, default=0)
