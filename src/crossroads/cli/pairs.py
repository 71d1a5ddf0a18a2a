"""`crossroads pairs`: the pairs that are known by name, and which of them are in the cache."""

from __future__ import annotations

import click
from rich.box import SIMPLE_HEAD
from rich.table import Table

from crossroads.cli.console import amount, console
from crossroads.models.catalogue import MODELS, PAIRS, ModelSpec
from crossroads.models.store import ModelState, model_state
from crossroads.models.weights import cache_root


@click.command()
def pairs() -> None:
    """List the known pairs and models, their sizes, and whether they are in the cache."""
    states = {model.name: model_state(model) for model in MODELS.values()}
    out = console()
    table = Table(box=SIMPLE_HEAD)
    for heading in ("pair", "small", "large", "in cache", "about"):
        table.add_column(heading, overflow="fold")
    for pair in PAIRS.values():
        table.add_row(
            pair.name,
            _size(pair.small, states[pair.small.name]),
            _size(pair.large, states[pair.large.name]),
            _cached([states[pair.small.name], states[pair.large.name]]),
            "; ".join(text for text in (pair.description, pair.note) if text),
        )
    out.print(table)
    paired = {model.name for pair in PAIRS.values() for model in (pair.small, pair.large)}
    for model in MODELS.values():
        if model.name not in paired:
            state = states[model.name]
            size = _size(model, state)
            out.print(f"also {model.name} ({size}), in cache: {state.words}", soft_wrap=True)
    out.print(f"models by name: {', '.join(MODELS)}", soft_wrap=True)
    out.print(f"cache: {cache_root()}", soft_wrap=True)


def _size(model: ModelSpec, state: ModelState) -> str:
    parameters = f"{model.approx_parameters / 1e9:.3g}B"
    return f"{parameters}, {amount(state.size, 'B')}" if state.size else parameters


def _cached(states: list[ModelState]) -> str:
    words = [state.words for state in states]
    return words[0] if words[0] == words[1] else f"small {words[0]}, large {words[1]}"
