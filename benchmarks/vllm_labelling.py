"""Labels by two vLLM servers against labels by transformers: how fast, and how much alike.

    python benchmarks/vllm_labelling.py --small SMALL --large LARGE --problems gsm8k:train.jsonl \
        --out results/vllm-labelling.json

SMALL and LARGE are folders of safetensors. The Python that runs this needs vLLM. Times are of each
stage by itself, both ways on the same machine. What is alike is found on the same answers, those of
the process: the servers get a copy of its run after `respond`. Their own answers are written to
compare them token for token. Scores are those of a router's network (by default the one that comes
with the package for the same models in 4 bits) on the features that each way stored.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossroads.artifacts import write_json
from crossroads.cli.console import RichProgress
from crossroads.dataset import LabelledDataset
from crossroads.labelling.judges import judge_by_name
from crossroads.labelling.respond import RespondConfig
from crossroads.labelling.run import STAGES, LabelConfig, label
from crossroads.models.pairs import Pair, load_pair, resolve_pair
from crossroads.provenance import provenance
from crossroads.routing.checkpoint import load_router
from crossroads.routing.pretrained import PRETRAINED
from crossroads.routing.routers.base import Router
from crossroads.tasks import load_problems
from crossroads.types import Problem

HERE, THERE = "transformers", "vllm"


def main() -> None:
    """Label both ways, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", required=True)
    parser.add_argument("--large", required=True)
    parser.add_argument("--args", default="", help="more of vLLM's arguments, for both servers")
    parser.add_argument("--problems", required=True, help="a task, such as gsm8k:train.jsonl")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=300)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--router", type=Path, default=PRETRAINED / "qwen2.5-coder")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    problems = load_problems(options.problems, options.count, 0)
    references = {
        HERE: (options.small, options.large),
        THERE: tuple(f"{m}@vllm {options.args}".strip() for m in (options.small, options.large)),
    }
    seconds: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for way, (small, large) in references.items():
            pair = resolve_pair(small=small, large=large)
            size = {"context_length": options.context, "max_rows": options.rows + 1}
            with load_pair(pair, **size) as loaded:
                run = Run(loaded, problems, options)
                seconds[way] = run.respond(folder / f"{way}-answers")
                if way == HERE:
                    shutil.copytree(folder / f"{HERE}-answers", folder / HERE)
                    shutil.copytree(folder / f"{HERE}-answers", folder / THERE)
                seconds[way] |= run.label(folder / way)
                print(way, seconds[way], flush=True)
        result = {
            "seconds": seconds,
            "answers": _answers_alike(*(folder / f"{way}-answers" for way in (HERE, THERE))),
            "labels": _labels_alike(folder / HERE, folder / THERE, options.router),
            "provenance": provenance(),
        }
    print(result)
    write_json(options.out, result)


class Run:
    """The stages of one way, timed."""

    def __init__(
        self, pair: Pair, problems: Sequence[Problem], options: argparse.Namespace
    ) -> None:
        self.pair = pair
        self.problems = problems
        self.config = LabelConfig(RespondConfig(options.max_tokens), max_rows=options.rows)

    def respond(self, folder: Path) -> dict[str, float]:
        """Let the large model answer; return the seconds of it."""
        return {"respond": self._timed(folder, "respond")}

    def label(self, folder: Path) -> dict[str, float]:
        """Do all that follows the answers; return the seconds of each stage."""
        return {stage: self._timed(folder, stage) for stage in STAGES if stage != "respond"}

    def _timed(self, folder: Path, stage: str) -> float:
        judges = [judge_by_name("likelihood"), judge_by_name("convergence")]
        with RichProgress() as progress:
            started = time.perf_counter()
            label(self.pair, self.problems, judges, folder, progress, self.config, stages=[stage])
            return time.perf_counter() - started


def _answers_alike(here: Path, there: Path) -> dict[str, Any]:
    """Return how many answers are the same, and what share of tokens comes before they part."""
    found = [_answers(folder) for folder in (here, there)]
    same = common = total = 0
    for key, tokens in found[0].items():
        other = found[1][key]
        until = next((i for i, (a, b) in enumerate(zip(tokens, other, strict=False)) if a != b),
                     min(len(tokens), len(other)))  # fmt: skip
        same, common, total = same + (tokens == other), common + until, total + len(tokens)
    return {"answers": len(found[0]), "same": same, "tokens_before_they_part": common / total}


def _answers(folder: Path) -> dict[tuple[str, int], list[int]]:
    lines = [
        json.loads(line)
        for name in ("responses", "unfinished")
        for path in folder.rglob(f"{name}.jsonl")
        for line in path.read_text().splitlines()
    ]
    return {(line["problem_id"], line["sample"]): line["response_ids"] for line in lines}


def _labels_alike(here: Path, there: Path, router: Path) -> dict[str, Any]:
    """Return in how much two datasets of the same answers differ."""
    mine, theirs = LabelledDataset.open(here), LabelledDataset.open(there)
    loaded = load_router(router)
    columns: dict[str, list[Tensor]] = {"entropy": [], "score": [], "hidden": []}
    proposals, decisions = [], []
    for row in mine.responses:
        one, other = mine.comparison(row), theirs.comparison(row)
        scores = [
            _scores(loaded.router, data, found)
            for data, found in ((mine, one), (theirs, other))
        ]  # fmt: skip
        columns["entropy"].append((one.step.entropy_N - other.step.entropy_N).abs())
        columns["score"].append((scores[0] - scores[1]).abs())
        columns["hidden"].append(_relative(one.step.hidden_NH, other.step.hidden_NH))
        proposals.append(one.proposed_N == other.proposed_N)
        reached = [score >= loaded.card.threshold for score in scores]
        decisions.append(torch.stack(reached))
    decided_2N = torch.cat(decisions, 1)
    same_label = mine.labels().label_N == theirs.labels().label_N
    return {
        "positions": len(same_label),
        "same_proposal": float(torch.cat(proposals).float().mean()),
        "same_label": float(same_label.float().mean()),
        "same_decision": float((decided_2N[0] == decided_2N[1]).float().mean()),
        "routed": decided_2N.float().mean(1).tolist(),
        "base_rates": [data.card["base_rates"]["all"] for data in (mine, theirs)],
        "differences": {
            name: {f"p{round(100 * q)}": float(torch.cat(parts).quantile(q)) for q in (0.5, 0.9, 1)}
            for name, parts in columns.items()
        },
    }


def _scores(router: Router, data: LabelledDataset, found: Any) -> Tensor:
    return router.score(found.features(router.inputs, data.embeddings()))


def _relative(one_NH: Tensor | None, other_NH: Tensor | None) -> Tensor:
    assert one_NH is not None
    assert other_NH is not None
    return (one_NH - other_NH).float().norm(dim=1) / one_NH.float().norm(dim=1)


if __name__ == "__main__":
    main()
