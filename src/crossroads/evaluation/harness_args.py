"""The harness's `--model_args`, and the models that they mean. No lm_eval in here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from crossroads.decoding.mixed import MixedModels
from crossroads.errors import ConfigError
from crossroads.models.base import CausalLM, Tokenizer
from crossroads.models.catalogue import PairSpec
from crossroads.models.pairs import (
    check_pair,
    load_model,
    load_pair,
    load_tokenizer,
    resolve_pair,
)
from crossroads.models.store import locate
from crossroads.names import nearest
from crossroads.routing.choose import choose_router
from crossroads.routing.policy import check_threshold
from crossroads.types import Role

MIXED = "mixed"
MAX_ROWS = 8
MAX_TOKENS = 256
"""For tasks that set no limit; what the harness's own models take."""

SYSTEMS = (MIXED, *(role.value for role in Role))

_TEXTS = ("pair", "small", "large", "router", "system", "usage")
_COUNTS = ("max_rows", "context", "max_tokens", "threads")


@dataclass(frozen=True, slots=True)
class ModelArgs:
    """What `--model_args` may hold; the names are those of the command line where it has them.

    system: mixed, or one model of the pair alone. max_tokens: for tasks that set no limit. usage:
    a JSON file for who wrote how much.
    """

    pair: str | None = None
    small: str | None = None
    large: str | None = None
    router: str | None = None
    threshold: float | None = None
    system: str = MIXED
    max_rows: int = MAX_ROWS
    context: int = 4096
    max_tokens: int = MAX_TOKENS
    threads: int | None = None
    usage: str | None = None


def read_model_args(arguments: Mapping[str, Any]) -> ModelArgs:
    """Return checked model arguments.

    The harness always adds `device`, `batch_size` and `max_batch_size`. The first and the last
    are ignored: engines choose their device, and there is no batch to search for. A batch size
    above 1 is another name of `max_rows`.

    Raises:
        ConfigError: an unknown name, or a value that cannot be.
        RequestError: a threshold out of range.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    _drop_harness_args(given)
    known = [field.name for field in fields(ModelArgs)]
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"there is no model argument {name!r}; {nearest(name, known)}")
        if name in _COUNTS and (type(value) is not int or value < 1):
            raise ConfigError(f"{name} must be a whole number >= 1, got {value!r}")
    # The harness reads a folder named 2026 as a number.
    values: dict[str, Any] = {name: str(v) if name in _TEXTS else v for name, v in given.items()}
    args = ModelArgs(**values)
    if args.system not in SYSTEMS:
        raise ConfigError(f"system must be one of {', '.join(SYSTEMS)}, got {args.system!r}")
    if args.threshold is not None:
        check_threshold(args.threshold)
    for name in ("router", "threshold"):
        if args.system != MIXED and name in given:
            raise ConfigError(f"{name} means nothing with system={args.system}; leave it out")
    return args


def _drop_harness_args(given: dict[str, Any]) -> None:
    """Take out what the harness adds to every model's arguments; turn a batch size into rows."""
    given.pop("device", None)
    given.pop("max_batch_size", None)
    size = str(given.pop("batch_size", 1))
    if size == "1":  # also the harness's default
        return
    if not size.isdecimal() or "max_rows" in given:
        raise ConfigError(
            f"batch_size={size} cannot be kept; give the number of rows once, as max_rows=..."
        )
    given["max_rows"] = int(size)


# What answers


@dataclass(frozen=True, slots=True)
class AloneModel:
    """One model of a pair, with the pair's tokenizer."""

    model: CausalLM
    role: Role
    tokenizer: Tokenizer


Answerer = MixedModels | AloneModel


def load_answerer(args: ModelArgs) -> Answerer:
    """Load what the arguments mean. Every system of a pair reads the same prompts.

    Raises:
        PairError, WeightsError, EngineError: as `models.pairs.load_pair` says.
        RouterError: no such router, or it belongs to other models.
    """
    spec = resolve_pair(args.pair, small=args.small, large=args.large)
    if args.system != MIXED:
        return _load_alone(spec, Role(args.system), args)
    pair = load_pair(
        spec, context_length=args.context, max_rows=args.max_rows, threads=args.threads
    )
    try:
        chosen = choose_router(args.router, pair.small.info, pair.large.info)
    except BaseException:
        pair.close()
        raise
    threshold = chosen.threshold if args.threshold is None else args.threshold
    return MixedModels(pair.small, pair.large, chosen.router, pair.tokenizer, threshold)


def _load_alone(spec: PairSpec, role: Role, args: ModelArgs) -> AloneModel:
    """Load one model of the pair; its tokenizer is the large one's, as in `load_pair`."""
    model = spec.small if role is Role.SMALL else spec.large
    tokenizer = load_tokenizer(spec.large, locate(spec.large, pull=spec.name))
    if role is Role.SMALL:
        own = load_tokenizer(spec.small, locate(spec.small, pull=spec.name))
        check_pair(own.pieces(), tokenizer.pieces(), spec.small.name, spec.large.name)
    loaded = load_model(
        model, context_length=args.context, max_rows=args.max_rows, threads=args.threads
    )
    return AloneModel(loaded.model, role, tokenizer)
