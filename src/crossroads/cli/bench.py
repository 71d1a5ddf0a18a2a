"""`crossroads bench`: what a pair does in time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossroads.cli.options import FILE, PairOptions, pair_options
from crossroads.errors import ConfigError

if TYPE_CHECKING:
    from crossroads.evaluation.speed.bench import SpeedResult
    from crossroads.evaluation.speed.systems import NativePair
    from crossroads.models.pairs import Pair
    from crossroads.routing.routers.base import Router


@click.group()
def bench() -> None:
    """Measure a pair on this machine."""


@bench.command()
@pair_options(context=1024)
@click.option("--router", default=None, help="As for generate.")
@click.option("--max-tokens", default=128, show_default=True, type=click.IntRange(2))
@click.option("--prompts", default=5, show_default=True, type=click.IntRange(1))
@click.option(
    "--fraction",
    "fractions",
    multiple=True,
    type=float,
    default=(0.1, 0.2, 0.3),
    show_default=True,
    help="large_fraction to aim at; may be given again.",
)
@click.option("--batch", default=8, show_default=True, help="Rows at once; below 2: not measured.")
@click.option(
    "--long",
    "longest",
    type=click.IntRange(256),
    help="Also a text of so many tokens: is a late token as cheap as an early one?",
)
@click.option("--no-lookup", is_flag=True, help="Leave llama.cpp's prompt lookup out.")
@click.option(
    "--assisted",
    is_flag=True,
    help="Also transformers' assisted generation on the same weights (slow to load).",
)
@click.option("--out", type=FILE, help="Write every number (JSON).")
def speed(models: PairOptions, router: str | None, out: Path | None, **options: Any) -> None:
    """Tokens per second: each model alone, ours, others' ways, in turns on the same prompts."""
    from crossroads.cli.console import RichProgress, console
    from crossroads.evaluation.speed.bench import SpeedConfig, bench_speed
    from crossroads.evaluation.speed.systems import NativePair

    wrong = [fraction for fraction in options["fractions"] if not 0 < fraction < 1]
    if wrong:
        raise ConfigError(f"a fraction must be between 0 and 1, got {wrong[0]}")
    longest = options["longest"]
    config = SpeedConfig(
        max_tokens=options["max_tokens"],
        prompts=options["prompts"],
        fractions=tuple(options["fractions"]),
        batch=options["batch"],
        places=() if longest is None else _places(longest),
        lookup=not options["no_lookup"],
    )
    room = max(models.context, (longest or 0) + 512)
    with PairOptions(models.pair, models.small, models.large, room, models.threads).load(
        max_rows=max(config.batch, config.prompts, 2)
    ) as pair:
        native = NativePair.of(pair)
        more = _assisted(native) if options["assisted"] else None
        with RichProgress() as progress:
            result = bench_speed(
                native,
                _chosen(pair, router),
                config,
                progress,
                threads=models.threads,
                more=more,
            )
    _print(result, console())
    if out is not None:
        from crossroads.artifacts import write_json

        write_json(out, result.to_json())


def _places(longest: int) -> tuple[int, ...]:
    places = [256]
    while places[-1] * 2 <= longest:
        places.append(places[-1] * 2)
    return tuple(places)


def _chosen(pair: Pair, name: str | None) -> Router:
    from crossroads.routing.choose import choose_router

    return choose_router(name, pair.small.info, pair.large.info).router


def _assisted(native: NativePair) -> Any:
    from crossroads.evaluation.speed.assisted import assisted

    return assisted(native.small, native.large)


def _print(result: SpeedResult, screen: Any) -> None:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("system", no_wrap=True)
    for column in ("tokens\n/s", "x\nlarge", "large_\nfraction", "calls\n/token", "dropped\n/token",
                   "time /\nideal"):  # fmt: skip
        table.add_column(column, justify="right", no_wrap=True)
    for row in result.rows:
        shares = (row.large_fraction, row.large_calls_per_token, row.discarded_per_token)
        table.add_row(
            row.system,
            f"{row.tokens_per_second:.1f}",
            f"{row.versus_large:.2f}",
            *("" if share is None else f"{share:.3f}" for share in shares),
            "" if row.over_ideal is None else f"{row.over_ideal:.2f}",
        )
    screen.print(table)
    if result.batch is not None:
        batch = result.batch
        screen.print(
            f"{batch.rows} rows at once: {batch.tokens_per_second:.1f} tokens/s, "
            f"{batch.versus_one:.2f} times as many as one by one"
        )
        for rows, parts in ((batch.rows, batch.ms_per_token), (1, batch.ms_per_token_one)):
            spent = ", ".join(f"{name} {ms:.1f}" for name, ms in parts.items())
            screen.print(f"  ms a token, prompts included, {rows} at a time: {spent}")
    for place in result.flat:
        screen.print(
            f"after {place.tokens} tokens: {place.ms_small:.1f} ms a token in the small model, "
            f"{place.ms_loop:.2f} ms in the loop itself"
        )
    memory = result.memory
    caches = (memory["small_cache_bytes_per_token"], memory["large_cache_bytes_per_token"])
    weights = memory["small_weights_mib"] + memory["large_weights_mib"]
    screen.print(
        f"caches: {caches[0]:,.0f} + {caches[1]:,.0f} bytes a token; "
        f"peak {memory['peak_mib']:,.0f} MiB, weights {weights:,.0f} MiB"
    )
