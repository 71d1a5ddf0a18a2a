"""The systems that an evaluation compares, and what they are called on the command line.

    small, large                  each model alone
    router, entropy, margin, ...  a router at its threshold
    router@0.4                    at another threshold
    router~0.2                    at the threshold that gives this large_fraction
    entropy~router                at the large_fraction that another system had
    lossless, lossless:6          speculation without loss, drafts of 4 (or 6) tokens
    oracle, oracle:0.1            the likelihood judge itself decides (decoding.oracle)

A matched threshold is chosen for each task, before it is run (evaluation.matching).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from crossroads.decoding.oracle import ORACLE_RATIO
from crossroads.errors import ConfigError
from crossroads.evaluation.kinds import SystemKind
from crossroads.names import nearest
from crossroads.routing.choose import HEURISTIC_THRESHOLD, ChosenRouter
from crossroads.routing.policy import check_threshold
from crossroads.routing.routers.base import Router
from crossroads.routing.routers.heuristics import HEURISTICS
from crossroads.routing.routers.neural import NeuralRouter
from crossroads.types import Role

DRAFT_TOKENS = 4
TRAINED = "router"


@dataclass(frozen=True, slots=True)
class System:
    """What answers the problems.

    role: one model alone. router: both with this one; threshold: its, or None where it is matched:
    like: to the large_fraction of that system; fraction: to this one. options: of the requests
    (max_lag, lossless, ...). oracle_ratio: the judge's, for the oracle. recall and positive_rate
    are what calibration promised at the threshold. identity: what tells the router's weights.
    score_quantiles: its scores on calibration tokens at every percent; empty where not known.
    """

    name: str
    kind: SystemKind
    role: Role | None = None
    router: Router | None = None
    threshold: float | None = None
    like: str | None = None
    fraction: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    oracle_ratio: float | None = None
    recall: float | None = None
    positive_rate: float | None = None
    identity: str = ""
    score_quantiles: tuple[float, ...] = ()

    @property
    def matched(self) -> bool:
        """Whether its threshold has yet to be found."""
        return self.like is not None or self.fraction is not None


def default_systems(sweep: Sequence[float], *, trained: bool) -> list[str]:
    """Return what is compared unless the user says otherwise; `sweep` are large_fractions."""
    first = TRAINED if trained else "entropy"
    others = [name for name in ("entropy", "margin", "random") if name != first]
    systems = ["small", "large", first, *(f"{name}~{first}" for name in others), "lossless"]
    for fraction in sweep:
        systems += [f"{name}~{fraction:g}" for name in (first, *others) if name != "margin"]
    return systems


def parse_systems(
    texts: Sequence[str], vocab_size: int, trained: ChosenRouter | None
) -> list[System]:
    """Return the systems in an order in which each is matched to one before it.

    Raises:
        ConfigError: an unknown name or number, a name given twice, a match to a system that is
            not there or is itself no measure, or `router` without a trained router.
    """
    systems = [_parse(text.strip(), vocab_size, trained) for text in texts]
    names = [system.name for system in systems]
    for system in systems:
        if names.count(system.name) > 1:
            raise ConfigError(f"the system {system.name!r} is given twice; give it once")
        if system.like is not None and system.like not in names:
            raise ConfigError(
                f"{system.name!r} is matched to {system.like!r}, which is not among the systems; "
                f"add --system {system.like}"
            )
    bound = {system.name for system in systems if system.like is not None}
    for system in systems:
        if system.like in bound:
            raise ConfigError(
                f"{system.name!r} is matched to a system that is itself matched; "
                "match it to that one's own measure"
            )
    return _in_order(systems)


def _in_order(systems: Sequence[System]) -> list[System]:
    """Return the systems as they were given, but each after the one that it is matched to."""
    ordered: list[System] = []
    early: list[System] = []
    for system in systems:
        if system.like is not None and system.like not in {other.name for other in ordered}:
            early.append(system)
            continue
        ordered += [system, *(s for s in early if s.like == system.name)]
    return ordered


def _parse(text: str, vocab_size: int, trained: ChosenRouter | None) -> System:
    if text in (Role.SMALL, Role.LARGE):
        return System(text, SystemKind(text), role=Role(text))
    for name, parse in (("lossless", _lossless), ("oracle", _oracle)):
        if text == name or text.startswith(f"{name}:"):
            return parse(text, text[len(name) + 1 :])
    name, mark, value = _split(text)
    base = _router(text, name, vocab_size, trained)
    if mark == "@":
        threshold = _number(text, value)
        check_threshold(threshold)
        return _changed(base, text, threshold=threshold)
    if mark == "~":
        fraction = _fraction(text, value)
        like = None if fraction is not None else value
        return _changed(base, text, fraction=fraction, like=like)
    return base


def _split(text: str) -> tuple[str, str, str]:
    """Return the router's name, the first `@` or `~`, and what follows it."""
    for at, letter in enumerate(text):
        if letter in "@~":
            return text[:at], letter, text[at + 1 :]
    return text, "", ""


def _router(text: str, name: str, vocab_size: int, trained: ChosenRouter | None) -> System:
    if name == TRAINED:
        if trained is None:
            raise ConfigError(
                f"the system {text!r} needs a trained router; give --router FOLDER, or leave it out"
            )
        return trained_system(trained, text)
    if name in HEURISTICS:
        router = HEURISTICS[name](vocab_size)
        return System(
            text, SystemKind.BASELINE, router=router, threshold=HEURISTIC_THRESHOLD, identity=name
        )
    known = [Role.SMALL.value, Role.LARGE.value, TRAINED, "lossless", "oracle", *HEURISTICS]
    raise ConfigError(f"there is no system {text!r}; {nearest(name, known)}")


def trained_system(chosen: ChosenRouter, name: str = TRAINED) -> System:
    """Return the system of a trained router at its own threshold."""
    calibration = chosen.card.calibration if chosen.card else {}
    point = calibration.get("point", {})
    return System(
        name,
        SystemKind.ROUTER,
        router=chosen.router,
        threshold=chosen.threshold,
        recall=point.get("recall"),
        positive_rate=point.get("positive_rate"),
        identity=fingerprint(chosen.router),
        score_quantiles=tuple(calibration.get("score_quantiles") or ()),
    )


def fingerprint(router: Router) -> str:
    """Return what tells a router's numbers from any other's; a heuristic's is its name."""
    if not isinstance(router, NeuralRouter):
        return router.name
    digest = hashlib.sha256(repr((router.name, router.scale, router.bias)).encode())
    for name, tensor in sorted(router.network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _changed(
    system: System,
    name: str,
    *,
    threshold: float | None = None,
    fraction: float | None = None,
    like: str | None = None,
) -> System:
    """Return the router at another place of its curve, of which calibration promised nothing."""
    return System(
        name,
        system.kind,
        router=system.router,
        threshold=threshold,
        fraction=fraction,
        like=like,
        identity=system.identity,
        score_quantiles=system.score_quantiles,
    )


def _lossless(text: str, value: str) -> System:
    draft = DRAFT_TOKENS
    if value or text.endswith(":"):
        if not value.isdecimal() or int(value) < 1:
            raise ConfigError(f"{text!r}: give a whole number of draft tokens, as in lossless:4")
        draft = int(value)
    return System(
        text,
        SystemKind.BASELINE,
        router=HEURISTICS["never"](2),
        threshold=1.0,
        options={"lossless": True, "max_lag": draft},
        identity="lossless",
    )


def _oracle(text: str, value: str) -> System:
    ratio = _number(text, value) if value or text.endswith(":") else ORACLE_RATIO
    if not 0 < ratio <= 1:
        raise ConfigError(f"{text!r}: the judge's ratio must be in (0, 1]")
    return System(text, SystemKind.ORACLE, oracle_ratio=ratio, identity=f"oracle {ratio:g}")


def _number(text: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ConfigError(
            f"the system {text!r} ends in {value!r}; a number must stand there"
        ) from None


def _fraction(text: str, value: str) -> float | None:
    """Return the large_fraction after `~`; None if the name of a system stands there."""
    try:
        fraction = float(value)
    except ValueError:
        if not value:
            raise ConfigError(
                f"the system {text!r}: give a large_fraction or a system after ~"
            ) from None
        return None
    if not 0 < fraction < 1:
        raise ConfigError(f"the system {text!r}: a large_fraction lies between 0 and 1")
    return fraction
