r"""What an evaluation task is: the keys of one small TOML file.

    name = "gsm8k"                # ids begin with it
    about = "Word problems ..."   # one sentence for reports
    answer = "math"               # the rule that grades an answer: math, choice, code or text
    max_tokens = 1024             # of one answer
    stop = ["Question:"]          # texts that end an answer; may be left away
    system = "You are ..."        # may be left away
    prompt = '''$question

    Put the answer in \boxed{}.'''

    [source]                      # where the rows are, see `Source`
    [columns]                     # which of their columns holds what, see `Columns`
    [gold]                        # how the gold answer is read from its column, see `Gold`
    [choices]                     # the options of a multiple choice, see `Choices`
    [[few_shot]]                  # `user` and `assistant`: a question answered beforehand

A prompt is written as Python's `string.Template`, so that the braces of LaTeX mean nothing:
`$question` is the question's column, `$choices` the options with their letters, `$name` or
`${any name}` the column of that name, and `$$` a dollar sign.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RULES = ("math", "choice", "code", "text")
LETTERS = string.ascii_uppercase


class PromptTemplate(string.Template):
    """A template whose braced names may be any column's, with spaces in it."""

    braceidpattern = r"[^{}\n]+"


def placeholders(template: str | None) -> list[str]:
    """Return the names that a template asks for."""
    return PromptTemplate(template or "").get_identifiers()


@dataclass(frozen=True, slots=True)
class Source:
    """Where a task's data are.

    kind: `hub` (path OWNER/NAME, split, config, revision), `file` (path of JSON lines, also with
    .gz, or whatever else `crossroads.tasks.datasets` opens), `package` (a file of an installed
    package, by the path inside its module; `install` is what to give to pip where it is missing),
    `generated` (a data set of reasoning-gym with its settings) or `problems` (path of a file as
    `crossroads.tasks.jsonl` reads it). The last two hold whole prompts.
    """

    kind: str
    path: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    package: str | None = None
    module: str | None = None
    install: str | None = None
    dataset: str | None = None
    settings: Mapping[str, Any] | None = None

    @property
    def whole(self) -> bool:
        """Whether it gives whole problems instead of rows to fill a prompt from."""
        return self.kind in {"generated", "problems"}


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column of the data holds what; `entry_point` is the function that a program defines.

    Without a column for them, the id is `<name>-<split or file>-<row>`, rows from 0 in the whole
    data, and the domain is the task's name.
    """

    question: str
    answer: str | None = None
    id: str | None = None
    domain: str | None = None
    entry_point: str | None = None


@dataclass(frozen=True, slots=True)
class Gold:
    """How the gold answer is read from the answer's column; by default it is the whole text.

    after: the answer follows the last such mark. pattern: it is the last match of this regular
    expression, or the match's first group. without_commas: 1,234 becomes 1234. append: a text to
    add, with placeholders as in the prompt.
    """

    after: str | None = None
    pattern: str | None = None
    without_commas: bool = False
    append: str | None = None


@dataclass(frozen=True, slots=True)
class Choices:
    """The options of a multiple choice.

    Either the columns of the `right` option and of the `wrong` ones, which are shuffled and get
    letters, or, where the question shows its options and the answer is a letter, the `letters`.
    """

    right: str | None = None
    wrong: tuple[str, ...] = ()
    letters: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns of the options, the right one first."""
        return () if self.right is None else (self.right, *self.wrong)


@dataclass(frozen=True, slots=True)
class Example:
    """A question answered beforehand (few-shot), as two messages of the conversation."""

    user: str
    assistant: str


@dataclass(frozen=True, slots=True)
class Definition:
    """One definition file; `where` is the file's name, for errors."""

    where: str
    name: str
    about: str
    answer: str
    max_tokens: int
    source: Source
    prompt: str | None = None
    system: str | None = None
    stop: tuple[str, ...] = ()
    columns: Columns | None = None
    gold: Gold = field(default_factory=Gold)
    choices: Choices | None = None
    few_shot: tuple[Example, ...] = ()

    @property
    def used_columns(self) -> list[str]:
        """Return the columns that are read, each once."""
        if self.columns is None:
            return []
        columns = self.columns
        parts = (columns.question, columns.answer, columns.id, columns.domain, columns.entry_point)
        options = () if self.choices is None else self.choices.columns
        placed = [name for name in placeholders(self.prompt) if name != "choices"]
        placed += placeholders(self.gold.append)
        names = [*parts, *options, *(name for name in placed if name != "question")]
        return list(dict.fromkeys(name for name in names if name is not None))
