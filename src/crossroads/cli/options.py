"""Options that several verbs share, and what they mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click


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
        @click.option("--large", default=None, help="Large model: name, .gguf, folder or hub repo.")
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


FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
