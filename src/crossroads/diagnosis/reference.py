"""The number that one compares with, and what R2R's paper publishes about its own data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crossroads.errors import ConfigError
from crossroads.names import nearest
from crossroads.rates import R2R_BASE_RATES

PUBLISHED_SOURCE = "arXiv 2505.21600"
PUBLISHED_ENTROPY_RATE = (0.33, 0.36)
"""positive_rate of entropy alone at 95 % recall, read off that paper's entropy histogram."""
PUBLISHED_LIVE = (0.11, 0.15)
"""large_fraction of that paper's live runs: another population than positive_rate."""
SHIPPED_THRESHOLDS = {"AIME": 0.40595959595959596, "LiveCodeBench": 0.1387}
"""Of R2R's released router, in script/evaluate/eval_configs/r2r_configs.json of its repository."""

_POPULATIONS = ("offline", "live")
_NUMBERS = ("positive_rate", "large_fraction", "recall", "divergent", "neutral")


@dataclass(frozen=True, slots=True)
class Reference:
    """What somebody else got.

    positive_rate, recall: at one threshold. divergent, neutral: base rates of that data, those of
    R2R's paper unless `own_rates`. population: `offline` (scored tokens of a dataset), `live`
    (generated tokens), or None where nobody said. domains: shares of the tokens, where known.
    """

    positive_rate: float
    recall: float = 0.95
    divergent: float = R2R_BASE_RATES["divergent"]
    neutral: float = R2R_BASE_RATES["neutral"]
    own_rates: bool = False
    population: str | None = None
    domains: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Refuse shares out of range, and a positive_rate that no router can have.

        Raises:
            ConfigError: names the value.
        """
        for name in ("positive_rate", "recall", "divergent", "neutral"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"the reference's {name} is a share in [0, 1], got {value}")
        if self.recall == 0:
            raise ConfigError("the reference's recall must be above 0")
        if self.divergent + self.neutral > 1:
            raise ConfigError("the reference's divergent and neutral shares sum to more than 1")

    @property
    def identical(self) -> float:
        """Share of tokens on which both models agree."""
        return 1 - self.divergent - self.neutral

    @property
    def rates_source(self) -> str:
        """Whose base rates these are."""
        return "the reference's" if self.own_rates else f"R2R's published ({PUBLISHED_SOURCE})"


def published() -> Mapping[str, float]:
    """Return R2R's published base rates: identical, neutral, divergent."""
    return R2R_BASE_RATES


def read_reference(values: Mapping[str, Any]) -> Reference:
    """Return the reference of plain values, as `--reference` gives them.

    `large_fraction` is a positive_rate of the live population. `domain.NAME` gives a domain's
    share of the tokens.

    Raises:
        ConfigError: an unknown key, no rate or two, or a value out of range.
    """
    known = (*_NUMBERS, "population", "domain.NAME")
    numbers: dict[str, Any] = {}
    for key, value in values.items():
        if key not in (*_NUMBERS, "population", "domain"):
            raise ConfigError(f"unknown reference key {key!r}; {nearest(key, known)}")
        numbers[key] = value
    if ("positive_rate" in numbers) == ("large_fraction" in numbers):
        raise ConfigError(
            "a reference needs positive_rate (offline) or large_fraction (live), one of the two: "
            "--reference positive_rate=0.124,recall=0.95"
        )
    population = numbers.pop("population", None)
    if "large_fraction" in numbers:
        if population == "offline":
            raise ConfigError("a large_fraction is live, not offline; drop one of the two keys")
        numbers["positive_rate"], population = numbers.pop("large_fraction"), "live"
    if population not in (None, *_POPULATIONS):
        raise ConfigError(f"the reference's population is offline or live, got {population!r}")
    domains = numbers.pop("domain", None)
    return Reference(
        **{key: _number(key, value) for key, value in numbers.items()},
        own_rates="divergent" in numbers or "neutral" in numbers,
        population=population,
        domains=_shares(domains),
    )


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"the reference's {key} is a number, got {value!r}")
    return float(value)


def _shares(domains: Any) -> dict[str, float] | None:
    if domains is None:
        return None
    if not isinstance(domains, Mapping):
        raise ConfigError("a reference's domains are given as domain.NAME=SHARE")
    shares = {name: _number(f"domain.{name}", share) for name, share in domains.items()}
    if min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 0.01:
        raise ConfigError(f"a reference's domain shares sum to 1, got {sum(shares.values()):g}")
    return shares
