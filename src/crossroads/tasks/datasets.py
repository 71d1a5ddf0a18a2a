"""Problems from whatever the `datasets` library opens: files, saved folders, hub data sets.

Rows count from 0, as they do in the library. Code that a data set brings along is never run.
"""

from __future__ import annotations

import csv
import difflib
import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import cache
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from crossroads.errors import ConfigError, CrossroadsError, DataError, EngineError
from crossroads.types import Message, Problem

_FORMATS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_SECONDS = 3.0
_SILENT = 100  # above every level of logging: what goes wrong is in the error


@dataclass(frozen=True, slots=True)
class DatasetOptions:
    """Where the rows are and which columns make a problem.

    `path` is a file, a folder, or the OWNER/NAME of a hub data set; `name` its configuration.
    `split` is `train` unless given. `prompt` is the column with the text or the messages; None
    takes `prompt`, or else `messages`. `instruction` is put after the last message.
    """

    path: str
    name: str | None = None
    revision: str | None = None
    split: str | None = None
    prompt: str | None = None
    answer: str | None = None
    domain: str | None = None
    id: str | None = None
    instruction: str | None = None

    @property
    def stem(self) -> str:
        """Return the data set's own name, which ids and domains take where no column has them."""
        path = Path(self.path)
        return path.stem if path.suffix in _FORMATS else path.name


def parse_options(text: str) -> DatasetOptions:
    r"""Return the options in `KEY=VALUE,KEY=VALUE`; `\,` is a comma that belongs to a value.

    Raises:
        ConfigError: an unknown or repeated key, a key without a value, or no `path`.
    """
    known = [field.name for field in fields(DatasetOptions)]
    values: dict[str, str] = {}
    for part in re.split(r"(?<!\\),", text):
        key, _, value = part.replace("\\,", ",").partition("=")
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.5) or known
            raise ConfigError(f"data sets have no option {key!r}; known: {', '.join(close)}")
        if key in values or not value:
            found = "twice" if key in values else "without a value"
            raise ConfigError(f"the option `{key}` of the data set is given {found}; give it once")
        values[key] = value
    if "path" not in values:
        raise ConfigError(
            f"the data set {text!r} has no path; give path=FILE, FOLDER or a hub name"
        )
    return DatasetOptions(**values)


def load_dataset_problems(text: str, count: int, _seed: int) -> list[Problem]:
    """Return the first `count` problems that options name; the seed has nothing to decide."""
    return dataset_problems(parse_options(text), count)


def dataset_problems(options: DatasetOptions, count: int | None = None) -> list[Problem]:
    """Return the first `count` problems of a data set in order, None for all of them.

    Without columns for them, the id is `<stem>-<row>` and the domain is the stem. A reply at the
    end of a conversation is left off: the models are to write it. Effects: a hub data set stays
    in the library's own cache; files are read where they are.

    Raises:
        DataError: the data set cannot be opened or has no such column, or a row is no problem.
        EngineError: `datasets` is not installed.
    """
    if count is not None and count < 1:
        raise DataError(f"asked {options.path} for {count} problems; ask for at least one")
    with opened(options) as table:
        columns = list(table.column_names or next(iter(table), {}))
        wanted = _wanted(options, columns)
        rows = list(islice(table.select_columns(list(wanted.values())), count))
    if not rows:
        raise DataError(f"{options.path} has no rows; take another split or data set")
    problems = [_problem(options, wanted, row, i) for i, row in enumerate(rows)]
    _check_ids(options.path, problems)
    return problems


@contextmanager
def opened(options: DatasetOptions) -> Iterator[Any]:
    """Open what options name as the library's table; whatever goes wrong in it is one sentence.

    Raises:
        DataError: it cannot be opened or read.
        EngineError: `datasets` is not installed.
    """
    library = _import_library()
    with _quiet(library), _one_sentence(options.path), TemporaryDirectory() as scratch:
        yield _open(library, options, scratch)


def _import_library() -> Any:
    try:
        import datasets  # noqa: PLC0415  takes a second, and only this task needs it
    except ImportError as error:
        raise EngineError(
            "opening data sets needs the package datasets; "
            'install it with `pip install "crossroads-lm[data]"`'
        ) from error
    return datasets


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Keep the library's bars, logs and warnings off stderr for the length of a block."""
    from huggingface_hub.utils.tqdm import (  # noqa: PLC0415  half a second that other tasks never need
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    bars, hub_bars = library.is_progress_bar_enabled(), not are_progress_bars_disabled()
    level = library.logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library.disable_progress_bars()
        disable_progress_bars()
        library.logging.set_verbosity(_SILENT)
        try:
            yield
        finally:
            library.logging.set_verbosity(level)
            if bars:
                library.enable_progress_bars()
            if hub_bars:
                enable_progress_bars()


@contextmanager
def _one_sentence(path: str) -> Iterator[None]:
    """Turn what the library and the hub's client raise into a DataError of one line."""
    try:
        yield
    except CrossroadsError:
        raise
    # The library hands on errors of the hub's client, of pyarrow and of pandas, whose classes
    # share no root and change with their versions.
    except Exception as error:
        raise DataError(f"cannot open the data set {path}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    """Return the first line of an error, and of its cause where it only says that there is one."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    cause = error.__cause__
    return f"{line}: {_first_line(cause)}" if cause is not None else line


def _open(library: Any, options: DatasetOptions, scratch: str) -> Any:
    """Return the rows of a data set; what is on this machine is streamed and not copied.

    The library writes locks even then: they go to the folder `scratch`.
    """
    path, split = Path(options.path), options.split or "train"
    if path.is_file():
        _refuse(options, "a file", "name", "revision")
        kind, text = _format(path), _as_text(library, path)
        return library.load_dataset(
            kind, data_files=str(path), split=split, streaming=True, cache_dir=scratch, **text
        )
    if path.is_dir() and ((path / "dataset_dict.json").exists() or (path / "state.json").exists()):
        _refuse(options, "a folder that save_to_disk wrote", "name", "revision")
        return _saved(library.load_from_disk(str(path)), options)
    if path.is_dir():
        _refuse(options, "a folder", "revision")
        return library.load_dataset(
            str(path), options.name, split=split, streaming=True, cache_dir=scratch
        )
    if path.suffix in _FORMATS or not _HUB_NAME.fullmatch(options.path):
        raise DataError(
            f"no data set at {path}; give a file, a folder, or the OWNER/NAME of a hub data set"
        )
    with _offline_if_silent(library, options):
        return library.load_dataset(
            options.path, options.name, split=split, revision=options.revision
        )


def _refuse(options: DatasetOptions, what: str, *keys: str) -> None:
    for key in keys:
        if getattr(options, key) is not None:
            raise ConfigError(f"{options.path} is {what}, which has no `{key}`; leave it away")


def _format(path: Path) -> str:
    """Return what the library calls the format of a file that is not empty."""
    if path.suffix not in _FORMATS:
        known = ", ".join(_FORMATS)
        raise DataError(f"cannot tell the format of {path} from its name; known: {known}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} has no rows; it is an empty file")
    return _FORMATS[path.suffix]


def _as_text(library: Any, path: Path) -> dict[str, Any]:
    """Return the options that leave a CSV's cells the text they are; only empty ones are missing.

    Left to guess, the library would make 2 a 2.0 beside an empty cell, and nothing of `None`.
    """
    if path.suffix != ".csv":
        return {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file), [])
    features = library.Features({column: library.Value("string") for column in header})
    return {"features": features, "keep_default_na": False, "na_values": [""]}


def _saved(saved: Any, options: DatasetOptions) -> Any:
    """Return one split of what `save_to_disk` wrote: all splits, or a single one."""
    if isinstance(saved, Mapping):
        if (split := options.split or "train") not in saved:
            raise DataError(f"{options.path} has no split {split!r}; it has {', '.join(saved)}")
        return saved[split]
    if options.split not in {None, str(saved.split)}:
        raise DataError(
            f"{options.path} holds one split, and it is not named {options.split!r}; "
            "leave `split` away"
        )
    return saved


@contextmanager
def _offline_if_silent(library: Any, options: DatasetOptions) -> Iterator[None]:
    """Take the library's cache at once where the hub does not answer.

    Left alone it would ask six times, for half a minute, before it looked there.

    Raises:
        DataError: a revision is wanted; the library cannot tell revisions in its cache apart.
    """
    config = library.config
    before = config.HF_HUB_OFFLINE
    if not before and hub_answers(config.HF_ENDPOINT):
        yield
        return
    if options.revision is not None:
        raise DataError(
            f"the hub cannot be reached, and without it nothing tells whether a copy of "
            f"{options.path} is revision {options.revision}; give a file that is here"
        )
    config.HF_HUB_OFFLINE = True
    try:
        yield
    except (ConnectionError, FileNotFoundError) as error:
        why = "HF_HUB_OFFLINE is set" if before else "the hub cannot be reached"
        raise DataError(
            f"{why} and {options.path} was never fetched here; connect, or give a file that is here"
        ) from error
    finally:
        config.HF_HUB_OFFLINE = before


@cache
def hub_answers(endpoint: str, seconds: float = _HUB_SECONDS) -> bool:
    """Return whether the hub answers anything within `seconds`; the process asks it only once."""
    from huggingface_hub import get_session  # noqa: PLC0415

    answered = threading.Event()

    def ask() -> None:
        with suppress(Exception):  # whatever the client's version raises, there was no answer
            get_session().head(endpoint, timeout=seconds)
            answered.set()

    # In a thread: no timeout of the client bounds the look-up of the host's name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def _wanted(options: DatasetOptions, columns: list[str]) -> dict[str, str]:
    """Return the column of each part of a problem.

    Raises:
        DataError: there is no such column.
    """
    fallback = "messages" if "messages" in columns and "prompt" not in columns else "prompt"
    wanted = {"prompt": options.prompt or fallback}
    for part in ("answer", "domain", "id"):
        if (column := getattr(options, part)) is not None:
            wanted[part] = column
    for part, column in wanted.items():
        if column not in columns:
            raise DataError(
                f"{options.path} has no column {column!r} for `{part}`; "
                f"it has {', '.join(columns) or 'no rows'}"
            )
    return wanted


def _problem(
    options: DatasetOptions, wanted: Mapping[str, str], row: Mapping[str, Any], number: int
) -> Problem:
    where = f"{options.path} row {number}"
    messages = _messages(row.get(wanted["prompt"]), wanted["prompt"], where)
    if options.instruction is not None:
        last = messages[-1]
        with_instruction = Message(last.role, f"{last.content}\n\n{options.instruction}")
        messages = (*messages[:-1], with_instruction)
    answer = row.get(wanted["answer"]) if "answer" in wanted else None
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
        raise DataError(
            f"{where}: `{wanted['answer']}` must be text or a number, got {_kind(answer)}"
        )
    return Problem(
        id=_name(row, wanted, "id", where) or f"{options.stem}-{number}",
        messages=messages,
        answer=_written(answer),
        domain=_name(row, wanted, "domain", where) or options.stem,
    )


def _written(answer: str | int | float | None) -> str | None:
    """Return an answer as text; a column with a fraction in it holds whole numbers as 2.0, too."""
    if isinstance(answer, float) and answer.is_integer():
        return f"{answer:.0f}"
    return None if answer is None else str(answer)


def _messages(value: Any, column: str, where: str) -> tuple[Message, ...]:
    """Return one user's message for a text, the messages for a list, without a reply at the end."""
    if not isinstance(value, list):
        return (Message("user", _text(value, column, where)),)
    messages = [_message(item, column, where) for item in value]
    while messages and messages[-1].role == "assistant":
        messages.pop()
    if not messages:
        raise DataError(f"{where}: `{column}` has no message to answer")
    return tuple(messages)


def _message(value: Any, column: str, where: str) -> Message:
    if not isinstance(value, Mapping) or "role" not in value or "content" not in value:
        raise DataError(f"{where}: each message of `{column}` needs `role` and `content`")
    return Message(_text(value["role"], "role", where), _text(value["content"], "content", where))


def _name(row: Mapping[str, Any], wanted: Mapping[str, str], part: str, where: str) -> str | None:
    """Return an id or a domain as text, None without a column for it; whole numbers are taken."""
    if part not in wanted:
        return None
    value = row.get(wanted[part])
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(value, wanted[part], where)


def _text(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: `{column}` must be text, got {_kind(value)}")
    if not value.strip():
        raise DataError(f"{where}: `{column}` is empty")
    return value


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a value of type {type(value).__name__}"


def _check_ids(path: str, problems: list[Problem]) -> None:
    row_of: dict[str, int] = {}
    for number, problem in enumerate(problems):
        if problem.id in row_of:
            raise DataError(
                f"{path} row {number} repeats the id {problem.id!r} of row {row_of[problem.id]}; "
                "name a column of unique ids, or none"
            )
        row_of[problem.id] = number
