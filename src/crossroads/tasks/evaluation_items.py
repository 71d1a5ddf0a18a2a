"""From rows or whole problems to items: prompts filled, options shuffled, gold answers read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from crossroads.errors import DataError
from crossroads.tasks.evaluation_definition import LETTERS, Definition, Gold, PromptTemplate
from crossroads.tasks.evaluation_rows import Row
from crossroads.tasks.reasoning_gym import INSTRUCTION
from crossroads.types import Message, Problem

# A question this long that stands in a few-shot example is the example's own; a shorter one may
# be a part of another question, as 1 + 1 is of 1 + 1 + 1.
_LONG_QUESTION = 8  # words


@dataclass(frozen=True, slots=True)
class Item:
    """One problem of a task; `problem.answer` is the gold answer and never None.

    details: what only the answer rule reads: `letters` for choice, `entry_point` and `prompt`
    (the head of the function) for code.
    """

    problem: Problem
    details: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Entry:
    """An item, its bare question, and all that it asks, whatever the order of its options."""

    item: Item
    question: str
    asks: str


@dataclass(frozen=True, slots=True)
class _Lettered:
    """Options as the prompt shows them, one a line; `right` is the right one's letter."""

    text: str
    letters: str
    right: str


def row_entry(definition: Definition, row: Row, item_id: str, seed: int) -> Entry:
    """Return the item that a row makes; the seed and the id decide the order of its options.

    Raises:
        DataError: the row has no question or no answer; names the item.
    """
    columns = definition.columns
    assert columns is not None  # only definitions of whole problems have none
    where = f"the item {item_id!r} ({row.where})"
    question = _needed(row, columns.question, "question", where)
    texts = dict(row.texts) | {"question": question}
    details: dict[str, str] = {}
    options = _options(definition, row, where)
    if options:
        lettered = _lettered(options, item_id, seed)
        answer, details["letters"] = lettered.right, lettered.letters
        texts["choices"] = lettered.text
    else:
        assert columns.answer is not None  # only definitions with such options have none
        answer = _gold(definition.gold, _needed(row, columns.answer, "answer", where), where)
        answer += PromptTemplate(definition.gold.append or "").substitute(texts)
        details |= _own_letters(definition, answer, where)
    if columns.entry_point is not None:
        details["entry_point"] = _needed(row, columns.entry_point, "entry point", where)
        details["prompt"] = question
    template = PromptTemplate(definition.prompt or "")
    messages = _conversation(definition, (Message("user", template.substitute(texts)),))
    domain = _needed(row, columns.domain, "domain", where) if columns.domain else definition.name
    asks = template.substitute(texts | {"choices": "\n".join(sorted(options))})
    return Entry(Item(Problem(item_id, messages, answer, domain), details), question, asks)


def row_id(definition: Definition, row: Row, part: str, number: int) -> str:
    """Return the id in the row's own column, or else `<name>-<part>-<number>`.

    Raises:
        DataError: the column is empty there.
    """
    column = None if definition.columns is None else definition.columns.id
    if column is None:
        return f"{definition.name}-{part}-{number}"
    return _needed(row, column, "id", row.where)


def problem_entry(definition: Definition, problem: Problem) -> Entry:
    """Return the item that a whole problem makes.

    Raises:
        DataError: it has no answer, or a system message where the definition has one, too.
    """
    where = f"the item {problem.id!r}"
    if problem.answer is None or not problem.answer.strip():
        raise DataError(f"{where} has no answer to grade against; leave it out")
    if definition.system is not None and problem.messages[0].role == "system":
        raise DataError(
            f"{where} has a system message, and so has {definition.where}; leave one of them away"
        )
    details = _own_letters(definition, problem.answer, where)
    whole = replace(problem, messages=_conversation(definition, problem.messages))
    asks = "\n\n".join(message.content for message in problem.messages)
    question = problem.messages[-1].content.removesuffix(INSTRUCTION).strip()
    return Entry(Item(whole, details), question, asks)


def shuffled(count: int, item_id: str, seed: int) -> list[int]:
    """Return the numbers below `count` in an order that the seed and the id decide for ever.

    They are sorted by a hash (SHA-256), because no version of any generator can change that.
    """

    def key(place: int) -> bytes:
        return hashlib.sha256(f"{seed}/{item_id}/{place}".encode()).digest()

    return sorted(range(count), key=key)


def check_distinct(entries: Sequence[Entry]) -> None:
    """Check that no item comes twice.

    Raises:
        DataError: two items share an id or ask the same.
    """
    ids: set[str] = set()
    id_of: dict[str, str] = {}
    for entry in entries:
        item_id = entry.item.problem.id
        if item_id in ids:
            raise DataError(f"the id {item_id!r} occurs twice; give every item its own")
        if entry.asks in id_of:
            raise DataError(
                f"the items {id_of[entry.asks]!r} and {item_id!r} ask the same; leave one out"
            )
        ids.add(item_id)
        id_of[entry.asks] = item_id


def check_examples(definition: Definition, entries: Sequence[Entry]) -> None:
    """Check that no few-shot example gives an item away.

    Raises:
        DataError: one asks the question of an item, whatever the case and the spaces.
    """
    for number, example in enumerate(definition.few_shot):
        user = _folded(example.user)
        for entry in entries:
            question = _folded(entry.question)
            inside = question.count(" ") + 1 >= _LONG_QUESTION and f" {question} " in f" {user} "
            if inside or user in {question, _folded(entry.asks)}:
                raise DataError(
                    f"{definition.where}: few_shot[{number}] asks the question of the item "
                    f"{entry.item.problem.id!r}; take an example from other data"
                )


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _conversation(definition: Definition, asked: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return the messages that ask an item, with what goes before all of a task's items."""
    own = asked[:1] if asked[0].role == "system" else ()
    system = () if definition.system is None else (Message("system", definition.system),)
    examples = [
        message
        for example in definition.few_shot
        for message in (Message("user", example.user), Message("assistant", example.assistant))
    ]
    return (*own, *system, *examples, *asked[len(own) :])


def _needed(row: Row, column: str, what: str, where: str) -> str:
    text = row.texts[column]
    if not text.strip():
        raise DataError(f"{where} has no {what} in the column {column!r}; leave the row out")
    return text


def _options(definition: Definition, row: Row, where: str) -> list[str]:
    """Return a row's options, the right one first; none where the question shows its own."""
    columns = () if definition.choices is None else definition.choices.columns
    options = [_needed(row, column, "option", where).strip() for column in columns]
    if options and options[0] in options[1:]:
        raise DataError(f"{where} has its right option {options[0]!r} among the wrong ones, too")
    return options


def _lettered(options: Sequence[str], item_id: str, seed: int) -> _Lettered:
    """Return options in an order of their own; the right one comes first in `options`."""
    order = shuffled(len(options), item_id, seed)
    letters = LETTERS[: len(options)]
    lines = [f"{letter}) {options[i]}" for letter, i in zip(letters, order, strict=True)]
    return _Lettered("\n".join(lines), letters, letters[order.index(0)])


def _own_letters(definition: Definition, answer: str, where: str) -> dict[str, str]:
    """Return the letters of options that the question shows itself, and check the answer's."""
    if definition.choices is None or definition.choices.letters is None:
        return {}
    letters = definition.choices.letters
    if len(answer) != 1 or answer not in letters:
        raise DataError(f"{where} must have one of the letters {letters} as answer, got {answer!r}")
    return {"letters": letters}


def _gold(gold: Gold, answer: str, where: str) -> str:
    """Return the gold answer in the text of an answer's column."""
    found = answer
    if gold.after is not None:
        found = answer.rpartition(gold.after)[2] if gold.after in answer else ""
    elif gold.pattern is not None:
        matches = list(re.finditer(gold.pattern, answer))
        found = (matches[-1][min(1, matches[-1].re.groups)] or "") if matches else ""
    if gold.without_commas:
        found = found.replace(",", "")
    if not found.strip():
        mark = gold.after or gold.pattern or "its place"
        raise DataError(f"{where} has no answer at {mark!r}; its text ends in {answer[-40:]!r}")
    return found.strip()
