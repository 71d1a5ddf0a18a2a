"""The labelling line in one folder: respond, compare, continue, judge, build; all or some of it.

    OUT/problems.jsonl                what was asked
    OUT/respond/                      responses.jsonl, unfinished.jsonl
    OUT/compare/*.safetensors         both models at every position, a file per response
    OUT/continue/continuations.jsonl
    OUT/judges/NAME-HASH/verdicts.jsonl
    OUT/labels.safetensors, embeddings.safetensors, dataset.json   the dataset

Every stage adds to its log as pieces of work finish, and does only what is missing. What a stage
depends on is pinned beside its log: a run that would mix two settings is refused by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from crossroads.artifacts import exclusive
from crossroads.errors import ConfigError, DataError
from crossroads.labelling.build import BuildConfig, JudgeRecord, build
from crossroads.labelling.cases import CaseSource, load_comparison
from crossroads.labelling.compare import compare_all, comparison_path
from crossroads.labelling.continue_ import Continuations, ContinueConfig, continue_all
from crossroads.labelling.judges.base import Judge
from crossroads.labelling.respond import RespondConfig, Responses, open_responses, respond
from crossroads.labelling.verdicts import Verdicts, judge_all, judge_folder
from crossroads.models.pairs import Pair
from crossroads.tasks.jsonl import write_problems
from crossroads.types import ModelInfo, Problem, Progress

STAGES = ("respond", "compare", "continue", "judge", "build")


@dataclass(frozen=True, slots=True)
class LabelConfig:
    """What a whole run depends on, beside the pair, the problems and the judges.

    max_rows: how many answers or continuations run at once; changes the speed alone.
    continuations: whether to continue mismatches even if no judge looks at them.
    """

    respond: RespondConfig = RespondConfig()  # noqa: RUF009  frozen
    continue_: ContinueConfig = ContinueConfig()  # noqa: RUF009  frozen
    build: BuildConfig = field(default_factory=BuildConfig)
    max_rows: int = 16
    continuations: bool = False
    retry_failed: bool = False


def label(
    pair: Pair,
    problems: Sequence[Problem],
    judges: Sequence[Judge],
    folder: Path,
    progress: Progress,
    config: LabelConfig | None = None,
    *,
    stages: Collection[str] = STAGES,
) -> Path:
    """Label `problems` into the dataset `folder` and return the folder.

    Effects: finished work of every stage stays in the folder; running it again does only what is
    missing, and a finished dataset is returned as it is. With `stages`, only those run; what they
    build on must be there.

    Raises:
        DataError: duplicate ids, no problem, no finished response, or a stage's input is missing.
        ConfigError: the folder holds a run of other problems, models, judges or settings.
        EngineError: a judge cannot go on; run it again later.
    """
    check_problems(problems)
    _check_stages(stages, judges)
    _check_large(pair.large.info, stages, config or LabelConfig())
    with exclusive(folder):
        line = _Line(pair, problems, judges, folder, progress, config or LabelConfig())
        for stage in STAGES:
            if stage in stages:
                line.run(stage)
    return folder


def check_problems(problems: Sequence[Problem]) -> None:
    """Refuse problems that cannot make a run.

    Raises:
        DataError: there are none, or two have one id.
    """
    if not problems:
        raise DataError("there is no problem to label")
    twice = [problem_id for problem_id, n in Counter(p.id for p in problems).items() if n > 1]
    if twice:
        raise DataError(f"problem id {twice[0]!r} occurs more than once; ids must be unique")


def _check_stages(stages: Collection[str], judges: Sequence[Judge]) -> None:
    if unknown := [stage for stage in stages if stage not in STAGES]:
        raise ConfigError(f"there is no stage {unknown[0]!r}; known: {', '.join(STAGES)}")
    if not judges and {"judge", "build"} & set(stages):
        raise ConfigError("labels need a judge; name at least one")
    keys = Counter(judge_folder(Path(), j.name, j.settings) for j in judges)
    if twice := [str(key) for key, count in keys.items() if count > 1]:
        raise ConfigError(f"the judge {twice[0]} is named twice with the same settings")


def _check_large(info: ModelInfo, stages: Collection[str], config: LabelConfig) -> None:
    """Refuse stages that need more of the large model than its server tells, before any work.

    Raises:
        ConfigError: names the stage.
    """
    if info.looks_back:
        return
    lacks = f"the server of {info.name} does not tell"
    if "compare" in stages:
        raise ConfigError(
            f"the stage compare needs the large model's view of every token of an answer, which "
            f"{lacks}; leave the stage out, or serve the model with vLLM"
        )
    drawn = {"respond": config.respond.temperature, "continue": config.continue_.temperature}
    for stage in (stage for stage, temperature in drawn.items() if temperature > 0):
        if stage in stages:
            raise ConfigError(
                f"the stage {stage} draws from whole distributions, which {lacks}; set its "
                "temperature to 0, or serve the model with vLLM"
            )


class _Line:
    """One run: where its files are, and what each stage reads and writes."""

    def __init__(
        self,
        pair: Pair,
        problems: Sequence[Problem],
        judges: Sequence[Judge],
        folder: Path,
        progress: Progress,
        config: LabelConfig,
    ) -> None:
        self._pair = pair
        self._problems = {problem.id: problem for problem in problems}
        self._judges = judges
        self._folder = folder
        self._progress = progress
        self._config = config
        self._continue_folder = folder / "continue"

    def run(self, stage: str) -> None:
        stages = {
            "respond": self._respond,
            "compare": self._compare,
            "continue": self._continue,
            "judge": self._judge,
            "build": self._build,
        }
        stages[stage]()

    def _respond(self) -> None:
        problems = list(self._problems.values())
        respond(
            self._pair.large,
            self._pair.tokenizer,
            problems,
            self._folder / "respond",
            self._progress,
            self._config.respond,
            max_rows=self._config.max_rows,
        )
        if not (self._folder / "problems.jsonl").exists():
            write_problems(self._folder / "problems.jsonl", problems)

    def _compare(self) -> None:
        responses = self._responses("compare")
        compare_all(
            self._pair.small,
            self._pair.large,
            responses,
            self._folder / "compare",
            self._progress,
        )

    def _continue(self) -> None:
        if not self._wants_continuations():
            return
        continue_all(
            self._pair.large,
            self._pair.tokenizer,
            self._compared("continue"),
            self._folder / "compare",
            self._continue_folder,
            self._progress,
            self._config.continue_,
            # One more row for the text that the branches leave.
            max_rows=self._config.max_rows + 1,
        )

    def _judge(self) -> None:
        responses = self._compared("judge")
        source = self._cases(responses)
        total = self._count_mismatches(responses)
        for judge in self._judges:
            judge_all(
                judge,
                source,
                self._folder / "judges",
                self._progress,
                total=total,
                retry_failed=self._config.retry_failed,
            )

    def _build(self) -> None:
        responses = self._compared("build")
        records = []
        for judge in self._judges:
            own = judge_folder(self._folder / "judges", judge.name, judge.settings)
            if not own.exists():
                raise DataError(f"judge {judge.name} has no verdicts in {own}; run stage judge")
            records.append(JudgeRecord(judge.name, judge.settings, Verdicts(own)))
        build(self._pair, responses, records, self._folder, self._config.build)

    def _wants_continuations(self) -> bool:
        return self._config.continuations or any(j.needs_continuations for j in self._judges)

    def _responses(self, stage: str) -> Responses:
        problems = list(self._problems.values())
        render = self._pair.tokenizer.render
        responses = open_responses(
            self._pair.large,
            problems,
            {problem.id: tuple(render(problem.messages)) for problem in problems},
            self._folder / "respond",
            self._config.respond.samples,
        )
        if missing := responses.missing:
            raise DataError(
                f"stage {stage} needs all responses and {len(missing)} are missing "
                f"({missing[0]} first); run stage respond to its end"
            )
        return responses

    def _compared(self, stage: str) -> Responses:
        responses = self._responses(stage)
        done = {path.name for path in (self._folder / "compare").glob("*.safetensors")}
        missing = [
            key for key in responses.finished_keys if comparison_path(Path(), key).name not in done
        ]
        if missing:
            raise DataError(
                f"stage {stage} needs all comparisons and {len(missing)} are missing "
                f"({missing[0]} first); run stage compare to its end"
            )
        return responses

    def _cases(self, responses: Responses) -> CaseSource:
        continuations = None
        if self._wants_continuations():
            continuations = Continuations(self._continue_folder, self._config.continue_.samples)
        return CaseSource(
            problems=self._problems,
            responses=responses,
            compare_folder=self._folder / "compare",
            tokenizer=self._pair.tokenizer,
            eos_ids=self._pair.large.info.eos_ids,
            rule=self._config.continue_.rule,
            continuations=continuations,
        )

    def _count_mismatches(self, responses: Responses) -> int:
        return sum(
            int(load_comparison(self._folder / "compare", r).mismatch_N.sum())
            for r in responses.finished()
        )
