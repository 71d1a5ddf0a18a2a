"""Options that several verbs share, and what they mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from crossroads.decoding.request import Request

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed")
_Verb = TypeVar("_Verb", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class PairOptions:
    """The models that a verb works with."""

    pair: str | None
    small: str | None
    large: str | None
    context: int
    threads: int | None

    def load(self, *, max_rows: int, progress: Any = None) -> Any:
        """Load the pair; see models.pairs.load_pair."""
        from crossroads.models.pairs import load_pair, resolve_pair

        spec = resolve_pair(self.pair, small=self.small, large=self.large)
        return load_pair(
            spec,
            context_length=self.context,
            max_rows=max_rows,
            threads=self.threads,
            progress=progress,
        )


def pair_options(context: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add --pair, --small, --large, --context and --threads; pass them as `models`."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @click.option("--pair", default=None, help="Pair by name; see `crossroads pairs`.")
        @click.option("--small", default=None, help="Small model: name, .gguf, folder or hub repo.")
        @click.option(
            "--large",
            default=None,
            help="Large model: name, .gguf, folder or hub repo; @URL behind it if servers run it, "
            "@vllm if one is to be started.",
        )
        @click.option(
            "--context",
            default=context,
            show_default=True,
            type=click.IntRange(1),
            help="Tokens per row, prompt included.",
        )
        @click.option(
            "--threads", default=None, type=click.IntRange(1), help="CPU threads [default: cores]."
        )
        @wraps(function)
        def wrapper(
            *,
            pair: str | None,
            small: str | None,
            large: str | None,
            context: int,
            threads: int | None,
            **rest: Any,
        ) -> None:
            function(models=PairOptions(pair, small, large, context, threads), **rest)

        return wrapper

    return decorate


_ROUTER_OPTIONS = (
    click.option(
        "--router",
        default=None,
        help="Router folder, pretrained, or entropy, margin, max-probability, random, always, "
        "never [default: pretrained if the package has a router for the pair, else entropy].",
    ),
    click.option(
        "--threshold",
        type=float,
        default=None,
        help="Score from which the large model writes; 0 = large alone, above 1 = small alone "
        "[default: the router's own; 0.15 for a heuristic].",
    ),
)
_REQUEST_OPTIONS = (
    click.option("--temperature", default=0.0, show_default=True, help="0 = greedy."),
    click.option("--top-p", default=1.0, show_default=True),
    click.option("--top-k", default=0, show_default=True, help="0 = off."),
    click.option("--min-p", default=0.0, show_default=True, help="0 = off."),
    click.option("--seed", default=0, show_default=True),
    click.option("--stop", multiple=True, help="Stop string; may be given again."),
    click.option(
        "--policy",
        default="immediate",
        show_default=True,
        help="How scores become decisions: immediate, momentum, rolling; NAME:KEY=VALUE,...",
    ),
    click.option(
        "--max-lag", type=int, help="Most small tokens in a row before the large is asked."
    ),
    click.option("--large-budget", type=int, help="Most tokens that the large model writes."),
    click.option(
        "--max-large-fraction",
        type=float,
        help="Share of an answer that the large model's tokens never pass, at any token.",
    ),
    click.option(
        "--revise-below",
        default=0.0,
        show_default=True,
        help="When asked, the large model takes small tokens back that it gives less probability.",
    ),
    click.option(
        "--lossless",
        is_flag=True,
        help="Take tokens back so that the output is the large model's own in distribution.",
    ),
)


def router_options(function: _Verb) -> _Verb:
    """Add --router and --threshold."""
    return _with(_ROUTER_OPTIONS, function)


def request_options(max_tokens: int) -> Callable[[_Verb], _Verb]:
    """Add what a request says beyond its prompt and threshold; `request_of` reads the values."""
    longest = click.option(
        "--max-tokens", default=max_tokens, show_default=True, help="Tokens to write at most."
    )
    return lambda function: _with((longest, *_REQUEST_OPTIONS), function)


def _with(options: Sequence[Callable[[_Verb], _Verb]], function: _Verb) -> _Verb:
    for option in reversed(options):  # click lists the last one that was added first
        function = option(function)
    return function


def request_of(values: Mapping[str, Any], threshold: float | None) -> Request:
    """Return the request that the options mean, but for its prompt.

    Raises:
        RequestError: a value out of range; names it.
    """
    from crossroads.decoding.request import Request, check_request
    from crossroads.routing.policy import policy_by_name
    from crossroads.sampling import SamplingParams

    rest = {name: value for name, value in values.items() if name not in _SAMPLING}
    request = Request(
        (0,),
        threshold=threshold,
        sampling=SamplingParams(**{name: values[name] for name in _SAMPLING}),
        **{**rest, "policy": policy_by_name(values["policy"])},
    )
    check_request(request, [])
    return request


def check_router(name: str | None) -> None:
    """Refuse a router that no pair could have, before models are loaded.

    Raises:
        RouterError: neither a known name nor a router folder.
    """
    from crossroads.routing.checkpoint import load_router
    from crossroads.routing.routers.heuristics import HEURISTICS

    if name is not None and name not in ("pretrained", *HEURISTICS):
        load_router(Path(name))


def on_loss_option(function: _Verb) -> _Verb:
    """Add --on-loss."""
    return click.option(
        "--on-loss",
        default="fail",
        show_default=True,
        type=click.Choice(["fail", "small"]),
        help="What an answer does when no server of the large model answers: fail, or go on with "
        "the small model alone and say so in the trace.",
    )(function)


FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
