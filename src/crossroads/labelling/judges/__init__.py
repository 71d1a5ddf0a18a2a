"""Judges: a new one is one file and one row of `JUDGES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from crossroads.errors import ConfigError
from crossroads.labelling.judges.base import Judge, JudgeContext
from crossroads.labelling.judges.convergence import ConvergenceJudge
from crossroads.labelling.judges.embedding import EmbeddingJudge
from crossroads.labelling.judges.likelihood import LikelihoodJudge
from crossroads.labelling.judges.llm import LLMJudge
from crossroads.labelling.judges.local import LocalLLMJudge
from crossroads.labelling.judges.outcome import OutcomeJudge

JudgeFactory = Callable[..., Judge]


def _likelihood(_context: JudgeContext, **settings: Any) -> Judge:
    return LikelihoodJudge(**settings)


def _convergence(_context: JudgeContext, **settings: Any) -> Judge:
    return ConvergenceJudge(**settings)


def _outcome(context: JudgeContext, **settings: Any) -> Judge:
    if context.pair is None:
        raise ConfigError("the outcome judge continues answers, so it needs a loaded pair")
    return OutcomeJudge(context.pair, context.max_rows, **settings)


def _llm(context: JudgeContext, **settings: Any) -> Judge:
    return LLMJudge(cache=context.cache, **settings)


def _local(context: JudgeContext, **settings: Any) -> Judge:
    return LocalLLMJudge.of(context, **settings)


def _embedding(_context: JudgeContext, **settings: Any) -> Judge:
    return EmbeddingJudge(**settings)


JUDGES: Mapping[str, JudgeFactory] = {
    "likelihood": _likelihood,
    "convergence": _convergence,
    "outcome": _outcome,
    "llm": _llm,
    "local": _local,
    "embedding": _embedding,
}


NEED_PAIR = frozenset({"outcome", "local"})
"""Judges that work with the pair of the run, and so are built when it is loaded."""


def judge_by_name(name: str, context: JudgeContext | None = None, /, **settings: Any) -> Judge:
    """Return a judge.

    Raises:
        ConfigError: unknown name or setting, or a value that the judge cannot work with.
    """
    if name not in JUDGES:
        raise ConfigError(f"there is no judge {name!r}; known: {', '.join(JUDGES)}")
    try:
        return JUDGES[name](context or JudgeContext(), **settings)
    except TypeError as error:
        raise ConfigError(f"judge {name!r}: {error}") from error


def parse_judge(text: str) -> tuple[str, dict[str, Any]]:
    """Return name and settings of `NAME` or `NAME:KEY=VALUE,KEY=VALUE`.

    Values are read as numbers, true or false where they look like it, else as text.

    Raises:
        ConfigError: a setting without a value.
    """
    name, _, rest = text.partition(":")
    settings: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"judge {text!r}: {part!r} is not KEY=VALUE")
        settings[key.strip()] = _value(value.strip())
    return name.strip(), settings


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
