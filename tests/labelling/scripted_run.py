"""A small labelled run of a scripted pair, as `label` leaves it in a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossroads.artifacts import read_json, sha256_file, write_json
from crossroads.dataset import CARD, TOKENS
from crossroads.labelling.cases import CaseSource
from crossroads.labelling.continue_ import Continuations
from crossroads.labelling.judges import judge_by_name
from crossroads.labelling.judges.base import Judgement, Verdict
from crossroads.labelling.records import Case
from crossroads.labelling.respond import RespondConfig, open_responses
from crossroads.labelling.run import LabelConfig, label
from crossroads.labelling.sentences import SentenceRule
from crossroads.types import Message, Problem, SilentProgress
from laws.pairs import scripted_pair

HOSTILE = "<script>alert(1)</script>"


@dataclass(frozen=True)
class PickyJudge:
    """Fails at every third position, else finds even positions divergent."""

    name: str = "picky"
    needs_continuations: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)

    def judge(self, cases: Iterable[Case]) -> Iterator[Judgement]:
        for case in cases:
            position = case.mismatch.position
            failed = Verdict(None, None, f"position {position} is | odd")
            found = Verdict(position % 2 == 0, 0.75, "even & <b>")
            yield Judgement(case.id, failed if position % 3 == 0 else found)


def problems() -> list[Problem]:
    texts = [f"{HOSTILE} WHAT IS {i * i}" for i in range(9)]
    return [
        Problem(f"p{i}<b>", (Message("user", text),), str(i), f"d{i % 2}")
        for i, text in enumerate(texts)
    ]


def write_run(folder: Path) -> Path:
    """Label nine problems with two judges; long answers stay unfinished."""
    judges = [judge_by_name("likelihood"), PickyJudge()]
    config = LabelConfig(RespondConfig(max_tokens=48))
    return label(scripted_pair(), problems(), judges, folder, SilentProgress(), config)


def cases(folder: Path) -> dict[str, Case]:
    """Return every case of the run, as judges saw it."""
    pair, asked = scripted_pair(), problems()
    render = pair.tokenizer.render
    prompts = {problem.id: tuple(render(problem.messages)) for problem in asked}
    source = CaseSource(
        problems={problem.id: problem for problem in asked},
        responses=open_responses(pair.large, asked, prompts, folder / "respond", 1),
        compare_folder=folder / "compare",
        tokenizer=pair.tokenizer,
        eos_ids=pair.large.info.eos_ids,
        rule=SentenceRule(),
        continuations=Continuations(folder / "continue", 1),
    )
    return {case.id: case for case in source}


def set_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Give the dataset other texts for some of its tokens."""
    write_json(folder / TOKENS, {**read_json(folder / TOKENS, "texts"), **texts})
    restamp(folder)


def restamp(folder: Path) -> None:
    """Write the hashes of the files that are there into the card."""
    card = read_json(folder / CARD, "card")
    there = [name for name in card["sha256"] if (folder / name).exists()]
    card["sha256"] = {name: sha256_file(folder / name) for name in there}
    write_json(folder / CARD, card)


def state(folder: Path) -> dict[str, str]:
    """Return a hash of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
