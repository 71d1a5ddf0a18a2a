"""Step 1: the large model answers every problem. Its ids are kept as generated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from crossroads.artifacts import IndexedLog, canonical_hash, ensure_writable, pin_config
from crossroads.decoding.progress import AnswerProgress
from crossroads.decoding.request import Request
from crossroads.decoding.served import drawn_by
from crossroads.decoding.single import generate_alone
from crossroads.errors import ConfigError
from crossroads.labelling.records import Response, response_key
from crossroads.models.base import CausalLM, Tokenizer
from crossroads.sampling import SamplingParams
from crossroads.types import Problem, Progress, Role


@dataclass(frozen=True, slots=True)
class RespondConfig:
    """What the responses depend on. Temperature 0 is greedy; more samples need a temperature."""

    max_tokens: int = 512
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what would waste a run.

        Raises:
            ConfigError: names the setting.
        """
        if self.samples < 1 or self.max_tokens < 1:
            raise ConfigError("samples and max_tokens must be at least 1")
        if self.samples > 1 and self.temperature == 0:
            raise ConfigError(
                f"{self.samples} greedy samples of a problem would all be the same; "
                "give a temperature above 0"
            )


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that a stage could not do, and why; the rest went on."""

    stage: str
    key: str
    reason: str


class Responses:
    """The responses of a run, on disk, in the order of the problems and then of the samples.

    Finished and unfinished ones (which hit the token limit) are kept apart: labels are made of
    finished ones.
    """

    def __init__(self, folder: Path, keys: Sequence[str], failures: Sequence[Failure]) -> None:
        """Read what `respond` wrote to `folder`; `keys` are those it should have."""
        self._finished = IndexedLog(folder / "responses.jsonl")
        self._unfinished = IndexedLog(folder / "unfinished.jsonl")
        self.failures = tuple(failures)
        self._failed = frozenset(failure.key for failure in failures)
        self._keys = tuple(keys)

    def __contains__(self, key: object) -> bool:
        """Return whether the response is there, finished or not."""
        return key in self._finished or key in self._unfinished

    @property
    def missing(self) -> list[str]:
        """Keys that are not there yet."""
        return [key for key in self._keys if key not in self and key not in self._failed]

    @property
    def finished_keys(self) -> list[str]:
        """Keys of the finished responses, in order."""
        return [key for key in self._keys if key in self._finished]

    @property
    def unfinished_keys(self) -> list[str]:
        """Keys of those that hit the token limit, in order."""
        return [key for key in self._keys if key in self._unfinished]

    def get(self, key: str) -> Response:
        """Return one response, read from the disk."""
        log = self._finished if key in self._finished else self._unfinished
        return Response.from_json(log.get(key))

    def finished(self) -> Iterator[Response]:
        """Yield the finished responses in order, one in memory at a time."""
        return (self.get(key) for key in self.finished_keys)

    def append(self, response: Response) -> None:
        """Add a response."""
        log = self._finished if response.finished else self._unfinished
        log.append(response.to_json())


def respond(
    large: CausalLM,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    folder: Path,
    progress: Progress,
    config: RespondConfig = RespondConfig(),
    *,
    max_rows: int = 16,
) -> Responses:
    """Return the large model's responses to `problems`, `config.samples` for each.

    Effects: every response is added to a log in `folder` as it ends; those already there are not
    generated again. A prompt that fills the context is a failure of its own.

    Raises:
        ConfigError: the folder holds responses of another model, other problems or settings.
    """
    ensure_writable(folder)
    pinned = {
        "large": large.info.fingerprint,
        "problems": problems_hash(problems),
        **asdict(config),
        **drawn_by(large, SamplingParams(temperature=config.temperature)),
    }
    pin_config(folder / "config.json", pinned, "responses")
    prompts = {problem.id: tuple(tokenizer.render(problem.messages)) for problem in problems}
    responses = open_responses(large, problems, prompts, folder, config.samples)
    missing = _missing(problems, responses, config.samples)
    requests = [_request(prompts[p.id], p, sample, config) for p, sample in missing]
    total = len(problems) * config.samples
    progress.start("large model answers", total, "answers")
    progress.advance(total - len(missing))
    shown = AnswerProgress(progress, config.max_tokens)
    for index, trace in generate_alone(
        large, Role.LARGE, tokenizer, requests, max_rows=max_rows, on_token=shown.token
    ):
        problem, sample = missing[index]
        responses.append(
            Response(
                problem.id,
                sample,
                problem.domain,
                trace.prompt_ids,
                trace.token_ids,
                trace.finish_reason,
                trace.text,
            )
        )
        shown.answer(len(trace.records))
    progress.finish()
    return responses


def problems_hash(problems: Sequence[Problem]) -> str:
    """Return what a run folder is pinned to: these problems in this order."""
    return canonical_hash([asdict(problem) for problem in problems])


def open_responses(
    large: CausalLM,
    problems: Sequence[Problem],
    prompts: dict[str, tuple[int, ...]],
    folder: Path,
    samples: int,
) -> Responses:
    """Return what is there of the responses to `problems`."""
    room = large.info.context_length
    keys = [response_key(p.id, sample) for p in problems for sample in range(samples)]
    failures = [
        Failure(
            "respond",
            response_key(p.id, sample),
            f"the prompt has {len(prompts[p.id])} tokens, the context holds {room}",
        )
        for p in problems
        if len(prompts[p.id]) >= room
        for sample in range(samples)
    ]
    return Responses(folder, keys, failures)


def _missing(
    problems: Sequence[Problem], responses: Responses, samples: int
) -> list[tuple[Problem, int]]:
    wanted = frozenset(responses.missing)
    return [
        (problem, sample)
        for problem in problems
        for sample in range(samples)
        if response_key(problem.id, sample) in wanted
    ]


def _request(
    prompt_ids: tuple[int, ...], problem: Problem, sample: int, config: RespondConfig
) -> Request:
    # The stream is the problem's and the sample's own: a resumed run draws what a whole one draws.
    digest = canonical_hash([config.seed, problem.id, sample])
    sampling = SamplingParams(
        temperature=config.temperature, top_p=config.top_p, seed=int(digest[:8], 16)
    )
    return Request(prompt_ids, max_tokens=config.max_tokens, sampling=sampling)
