"""Step 1: the large model answers every problem. Its ids are kept as generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crossroads.artifacts import ResumableLog
from crossroads.decoding.progress import AnswerProgress
from crossroads.decoding.request import Request
from crossroads.decoding.single import generate_alone
from crossroads.models.base import CausalLM, Tokenizer
from crossroads.types import FinishReason, Problem, Progress, Role


@dataclass(frozen=True, slots=True)
class Response:
    """One greedy answer of the large model; an ending eos is part of `response_ids`."""

    problem_id: str
    domain: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    finish_reason: FinishReason
    text: str


def respond(
    large: CausalLM,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    log_path: Path,
    progress: Progress,
    *,
    max_tokens: int,
    max_rows: int,
) -> list[Response]:
    """Return one response per problem, in the problems' order.

    Effects: each finished response is added to the log at `log_path`; those already there are
    not generated again.
    """
    log = ResumableLog(log_path)
    done = {record["problem_id"]: _from_json(record) for record in log}
    missing = [problem for problem in problems if problem.id not in done]
    requests = [
        Request(tuple(tokenizer.render(problem.messages)), max_tokens=max_tokens)
        for problem in missing
    ]
    progress.start("large model answers", len(problems), "problems")
    progress.advance(len(problems) - len(missing))
    shown = AnswerProgress(progress, max_tokens)
    answers = generate_alone(
        large, Role.LARGE, tokenizer, requests, max_rows=max_rows, on_token=shown.token
    )
    for index, trace in answers:
        problem = missing[index]
        response = Response(
            problem.id,
            problem.domain,
            trace.prompt_ids,
            trace.token_ids,
            trace.finish_reason,
            trace.text,
        )
        log.append(_to_json(response))
        done[problem.id] = response
        shown.answer(len(trace.records))
    progress.finish()
    return [done[problem.id] for problem in problems]


def _to_json(response: Response) -> dict[str, object]:
    return {
        "problem_id": response.problem_id,
        "domain": response.domain,
        "prompt_ids": list(response.prompt_ids),
        "response_ids": list(response.response_ids),
        "finish_reason": response.finish_reason,
        "text": response.text,
    }


def _from_json(record: dict[str, object]) -> Response:
    prompt, response = record["prompt_ids"], record["response_ids"]
    assert isinstance(prompt, list)
    assert isinstance(response, list)
    return Response(
        str(record["problem_id"]),
        str(record["domain"]),
        tuple(prompt),
        tuple(response),
        FinishReason(str(record["finish_reason"])),
        str(record["text"]),
    )
