"""Judges: a new one is one file and one row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from crossroads.errors import ConfigError
from crossroads.labelling.judges.base import Judge
from crossroads.labelling.judges.likelihood import LikelihoodJudge

JUDGES: Mapping[str, Callable[..., Judge]] = {"likelihood": LikelihoodJudge}


def judge_by_name(name: str, **settings: float) -> Judge:
    """Return a judge.

    Raises:
        ConfigError: unknown name or setting.
    """
    if name not in JUDGES:
        raise ConfigError(f"unknown judge {name!r}; known: {', '.join(JUDGES)}")
    try:
        return JUDGES[name](**settings)
    except TypeError as error:
        raise ConfigError(f"judge {name!r}: {error}") from error
