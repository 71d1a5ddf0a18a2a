"""Rules: how answers are graded. A rule is one file and one row of `RULES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from crossroads.errors import ConfigError, DataError
from crossroads.grading.base import Grade
from crossroads.grading.choice import grade_choice
from crossroads.grading.code import grade_code
from crossroads.grading.mathematics import check_mathematics, grade
from crossroads.grading.sandbox import check_sandbox
from crossroads.grading.text import grade_text
from crossroads.names import nearest

_END_OF_REASONING = "</think>"


@dataclass(frozen=True, slots=True)
class Rule:
    """One way to grade an answer.

    `about` is one sentence for reports; `details` are the keys that a problem must give with its
    gold answer. `grade` takes a text, the gold answer and the details, and works in any thread.
    `check` raises an EngineError if what the rule needs is missing on this machine.
    """

    name: str
    about: str
    details: tuple[str, ...]
    grade: Callable[[str, str, Mapping[str, str]], Grade]
    check: Callable[[], None]


def _grade_mathematics(text: str, gold: str, _details: Mapping[str, str]) -> Grade:
    return grade(text, gold)


def _needs_nothing() -> None:
    pass


RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            "math",
            "The last boxed answer is compared with the gold answer as a number, as text or as "
            "mathematics.",
            (),
            _grade_mathematics,
            check_mathematics,
        ),
        Rule(
            "choice",
            "The letter in the last box, or else in the last statement of an answer, is compared "
            "with the gold letter.",
            ("letters",),
            grade_choice,
            _needs_nothing,
        ),
        Rule(
            "code",
            "The program in the answer is run in a sandbox and must pass the problem's tests.",
            ("entry_point", "prompt"),
            grade_code,
            check_sandbox,
        ),
        Rule(
            "text",
            "The last boxed answer, or else the last line, is compared with the gold answer as "
            "text without case and spacing.",
            (),
            grade_text,
            _needs_nothing,
        ),
    )
}


def rule_by_name(name: str) -> Rule:
    """Return a rule.

    Raises:
        ConfigError: no such rule.
    """
    if name not in RULES:
        raise ConfigError(f"there is no grading rule {name!r}; {nearest(name, RULES)}")
    return RULES[name]


def grade_by_rule(rule: str, text: str, gold: str, details: Mapping[str, str]) -> Grade:
    """Grade what a text answers: what follows `</think>`, where a model reasons before it answers.

    Works in any thread, and in many at once.

    Args:
        rule: the name of a rule.
        text: everything that the model wrote.
        gold: the gold answer, in the rule's own form.
        details: what else the rule needs to know about the problem; more is no harm.

    Raises:
        ConfigError: no such rule.
        DataError: a detail is missing, or the gold answer or a detail cannot be right.
        EngineError: what the rule needs is missing on this machine.
    """
    found = rule_by_name(rule)
    missing = [key for key in found.details if key not in details]
    if missing:
        raise DataError(
            f"the rule {rule!r} needs the details {', '.join(found.details)}, and "
            f"{', '.join(missing)} is missing; give it with the problem"
        )
    return found.grade(text.rpartition(_END_OF_REASONING)[2], gold, details)
