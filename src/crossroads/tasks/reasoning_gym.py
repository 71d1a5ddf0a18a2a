"""Problems that reasoning-gym generates from a seed, without a network."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from crossroads.errors import DataError, EngineError
from crossroads.types import Message, Problem

INSTRUCTION = "Think step by step, then give the final answer in \\boxed{}."

# Levels at which models of about a billion parameters neither always fail nor always succeed.
LEVELS: dict[str, dict[str, Any]] = {
    "chain_sum": {"min_terms": 4, "max_terms": 5, "min_digits": 3, "max_digits": 3},
}

# How many candidates are looked at for each problem wanted before a data set counts as exhausted.
_CANDIDATES_PER_PROBLEM = 20


def generate_problems(
    dataset: str,
    count: int,
    seed: int,
    settings: Mapping[str, Any] | None = None,
    exclude: Collection[Problem] = (),
) -> list[Problem]:
    """Return `count` problems with different questions; the same call gives the same problems.

    A smaller `count` gives a prefix of a larger one's problems.

    Args:
        dataset: reasoning-gym's name, for example `gsm_symbolic`.
        count: how many problems.
        seed: which ones; different seeds share no problems but by chance.
        settings: the data set's own options; None takes `LEVELS`, or reasoning-gym's defaults.
        exclude: problems whose questions must not come again, such as those a router was
            trained on.

    Raises:
        DataError: an unknown data set or option, a data set whose answers are not text, or one
            with fewer different questions than asked for.
        EngineError: reasoning-gym is not installed.
    """
    if count < 1:
        raise DataError(f"asked {dataset} for {count} problems; ask for at least one")
    seen = {problem.messages for problem in exclude}
    problems: list[Problem] = []
    for index, entry in enumerate(_entries(dataset, count + len(seen), seed, settings)):
        problem = _problem(dataset, seed, index, entry)
        if problem.messages in seen:
            continue
        seen.add(problem.messages)
        problems.append(problem)
        if len(problems) == count:
            return problems
    raise DataError(
        f"{dataset} gave only {len(problems)} different problems at these settings, "
        f"{count} were asked for; ask for fewer or make its ranges wider"
    )


def _entries(
    dataset: str, count: int, seed: int, settings: Mapping[str, Any] | None
) -> Iterator[dict[str, Any]]:
    gym = _import_gym()
    _check_name(dataset, list(gym.factory.DATASETS))
    chosen = dict(LEVELS.get(dataset, {}) if settings is None else settings)
    size = count * _CANDIDATES_PER_PROBLEM
    try:
        source = gym.create_dataset(dataset, seed=_spread(dataset, seed), size=size, **chosen)
    except (TypeError, ValueError, AssertionError) as error:
        raise DataError(f"{dataset} refuses the settings {chosen}: {error}") from error
    return (source[index] for index in range(size))


def _import_gym() -> Any:
    try:
        import reasoning_gym  # noqa: PLC0415  takes seconds, and only generated tasks need it
        import reasoning_gym.factory  # noqa: PLC0415
    except ImportError as error:
        raise EngineError(
            "generated problems need the package reasoning-gym; "
            'install it with `pip install "crossroads-lm[evaluate]"`'
        ) from error
    return reasoning_gym


def _check_name(dataset: str, known: list[str]) -> None:
    if dataset in known:
        return
    close = difflib.get_close_matches(dataset, known, n=5) or sorted(known)
    raise DataError(f"reasoning-gym has no data set {dataset!r}; known: {', '.join(close)}")


def _spread(dataset: str, seed: int) -> int:
    """Return the seed for reasoning-gym.

    It seeds problem i with `seed + i`, so that problem 1 of seed 0 would be problem 0 of seed 1
    and training problems would turn up in the evaluation. A hash keeps neighbours far apart.
    """
    digest = hashlib.sha256(f"{dataset}/{seed}".encode()).digest()
    return int.from_bytes(digest[:6])


def _problem(dataset: str, seed: int, index: int, entry: Mapping[str, Any]) -> Problem:
    question, answer = entry["question"], entry["answer"]
    if not isinstance(answer, str):
        raise DataError(f"{dataset} has no answers in text to grade against; take another data set")
    return Problem(
        id=f"{dataset}-{seed}-{index}",
        messages=(Message("user", f"{question.strip()}\n\n{INSTRUCTION}"),),
        answer=answer.strip(),
        domain=dataset,
    )
