"""A scripted evaluation: the gold answers are what the large model writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from crossroads.decoding.request import Request
from crossroads.evaluation.folder import RunFolder
from crossroads.evaluation.run import Bench, RunSettings
from crossroads.evaluation.systems import System, parse_systems
from crossroads.models.pairs import Pair
from crossroads.sampling import SamplingParams
from crossroads.tasks.evaluation import EvaluationTask, Item
from crossroads.types import Message, Problem, Role, SilentProgress
from laws.pairs import VOCAB, alone, scripted_pair

SETTINGS = RunSettings(rows=3)
SAMPLED = RunSettings(rows=3, samples=3, sampling=SamplingParams(temperature=1.0, seed=5))
MAX_TOKENS = 30


def task(count: int = 6, name: str = "scripted") -> EvaluationTask:
    """Return problems whose gold answers are the large model's own greedy texts."""
    pair = scripted_pair()
    asked = [(Message("user", f"Q {i}"),) for i in range(2 * count)]
    requests = [
        Request(tuple(pair.tokenizer.render(messages)), max_tokens=MAX_TOKENS) for messages in asked
    ]
    texts = [trace.text for trace in alone(pair, Role.LARGE, requests)]
    said = [(m, text) for m, text in zip(asked, texts, strict=True) if text.strip()][:count]
    items = tuple(
        Item(Problem(f"p{i}", messages, text, name), {}) for i, (messages, text) in enumerate(said)
    )
    return EvaluationTask(name, "text", items, MAX_TOKENS, (), {"about": "scripted"})


def bench(folder: Path, pair: Pair | None = None, settings: RunSettings = SETTINGS) -> Bench:
    """Return a bench on a scripted pair."""
    return Bench(pair or scripted_pair(), RunFolder(folder), settings, SilentProgress())


def systems(*names: str) -> list[System]:
    """Return systems without a trained router."""
    return parse_systems(names, VOCAB, None)


def texts_of(folder: RunFolder, task_name: str, system: str) -> dict[str, tuple[int, ...]]:
    """Return the token ids of every answer by its key."""
    return {a.key: a.trace.token_ids for a in folder.answers(task_name, system)}


def files_of(folder: Path) -> Sequence[str]:
    """Return every file below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
