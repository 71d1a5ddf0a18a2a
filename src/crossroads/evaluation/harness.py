"""A routed pair as a model of lm-evaluation-harness (the package lm_eval), named crossroads.

The harness asks a model for text after a prompt, or for the log-probability of a given text. Text
comes from the mixed loop, or from one model of the pair alone. A given text has a probability
under one model only: a routed pair has no distribution of its own, and says so.

    python -m crossroads.evaluation.harness --tasks gsm8k --model_args pair=qwen2.5-coder

is the harness's own command line with this model known. Without lm_eval this module imports, and
whatever needs it says what to install.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from crossroads.artifacts import canonical_hash, ensure_writable, write_json
from crossroads.decoding.mixed import MixedModels, generate
from crossroads.decoding.request import Request, check_request
from crossroads.decoding.single import generate_alone
from crossroads.errors import ConfigError, CrossroadsError, EngineError, RequestError
from crossroads.evaluation.harness_args import (
    MAX_ROWS,
    MAX_TOKENS,
    MIXED,
    Answerer,
    load_answerer,
    read_model_args,
)
from crossroads.evaluation.harness_prompts import (
    ChatPrompt,
    encode_pair,
    prompt_ids,
    render_chat_prompt,
    warn_of_special_texts,
)
from crossroads.evaluation.harness_requests import read_settings, repeated
from crossroads.evaluation.harness_usage import UsageTally
from crossroads.evaluation.log_probabilities import log_probabilities
from crossroads.models.base import CausalLM
from crossroads.models.served import ServedLM
from crossroads.types import Message, ModelInfo, Trace

try:
    from lm_eval.api.model import LM
except ImportError:  # an optional package: this module can be read without it, not used
    LM = object

NAME = "crossroads"

# A child of the harness's logger, so that its command line shows what we say.
_log = logging.getLogger(f"lm_eval.{NAME}")


def check_installed() -> None:
    """Refuse to go on without lm-evaluation-harness.

    Raises:
        EngineError: says what to install.
    """
    try:
        import lm_eval.api.model  # noqa: F401, PLC0415
    except ImportError as error:
        raise EngineError(
            f"evaluation-harness tasks need the package lm_eval ({error}); "
            'install it with `pip install "crossroads-lm[harness]"`'
        ) from error


def register() -> None:
    """Make the harness know the model "crossroads". Twice is harmless.

    Raises:
        EngineError: the harness is not installed.
    """
    check_installed()
    import lm_eval.models  # noqa: F401, PLC0415  its own models go first, or it leaves them out
    from lm_eval.api.registry import model_registry  # noqa: PLC0415

    if NAME not in model_registry:
        # By name: run as a program, this module is another one than the one that is imported.
        model_registry.register(NAME, target="crossroads.evaluation.harness:RoutedPair")


class RoutedPair(LM):  # type: ignore[misc]  # the harness is not typed
    """A routed pair, or one model of it, as the harness's LM."""

    def __init__(
        self,
        answerer: Answerer,
        *,
        max_rows: int = MAX_ROWS,
        max_tokens: int = MAX_TOKENS,
        usage: Path | None = None,
    ) -> None:
        """Wrap loaded models. `usage` is written after each batch of requests.

        Raises:
            EngineError: the harness is not installed. ConfigError: `usage` cannot be written.
        """
        check_installed()
        super().__init__()
        _check_usage(usage)
        self._answerer = answerer
        self._max_rows = max_rows
        self._max_tokens = max_tokens
        self._usage_path = usage
        self._tally = UsageTally()

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> RoutedPair:
        """Load the models that the arguments name; how the harness makes a model of ours.

        Raises:
            CrossroadsError: arguments or models that cannot work, in one sentence.
        """
        args = read_model_args({**(additional_config or {}), **arg_dict})
        usage = None if args.usage is None else Path(args.usage)
        _check_usage(usage)  # before the models load
        return cls(
            load_answerer(args), max_rows=args.max_rows, max_tokens=args.max_tokens, usage=usage
        )

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> RoutedPair:
        """Load the models that `key=value,key=value` names."""
        check_installed()
        from lm_eval.utils import simple_parse_args_string  # noqa: PLC0415

        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    # Prompts

    @property
    def tokenizer_name(self) -> str:
        """Names tokenizer and chat template in the harness's cache of prompts."""
        tokenizer = self._answerer.tokenizer
        chat = tokenizer.render([Message("user", "?")])
        return canonical_hash([tokenizer.fingerprint, chat])

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return "": the template stays with the tokenizer.

        Raises:
            ConfigError: a template was asked for by name.
        """
        if isinstance(chat_template, str):
            raise ConfigError(
                f"a pair has one chat template, its own; got {chat_template!r}, "
                "give --apply_chat_template without a name"
            )
        return ""

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> ChatPrompt:
        """Return the rendered chat; without generation prompt the last message stays open."""
        open_end = not add_generation_prompt
        return render_chat_prompt(self._answerer.tokenizer, chat_history, open_end=open_end)

    # Text

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return an answer for each of the harness's requests, in their order.

        Effects: counts usage; each finished answer goes to the harness's cache.

        Raises:
            RequestError: a request that cannot be served, by task and document; nothing was
                generated then. EngineError: an engine failed.
        """
        asked = self.read_requests(requests)
        texts: dict[int, str] = {}
        with _bar("generate_until", len(asked), disable_tqdm) as bar:
            for number, trace in self._traces(asked):
                request = requests[number]
                texts[number] = trace.text
                self._tally.answer(request.task_name, trace)
                self.cache_hook.add_partial("generate_until", request.args, trace.text)
                bar.update()
        self._tell()
        return [texts[number] for number in range(len(asked))]

    def read_requests(self, requests: Sequence[Any]) -> list[Request]:
        """Return the harness's requests as ours, checked.

        Raises:
            RequestError: one that cannot be served, by task and document.
        """
        warn_of_special_texts(self._answerer.tokenizer, [r.args[0] for r in requests], _log)
        seen: Counter[int] = Counter()
        asked = []
        for request in requests:
            number = seen[id(request)]  # the harness repeats the object itself
            seen[id(request)] += 1
            try:
                row = replace(
                    read_settings(request.args[1], self._max_tokens),
                    prompt_ids=prompt_ids(self._answerer.tokenizer, request.args[0]),
                    id=f"{request.task_name}/{request.doc_id}/{number}",
                )
                asked.append(repeated(row, number))
                check_request(asked[-1], self._infos, elsewhere=self._elsewhere)
            except RequestError as error:
                raise RequestError(
                    f"task {request.task_name}, document {request.doc_id}: {error}"
                ) from error
        self._warn_of_short_rooms(asked)
        return asked

    def _traces(self, asked: Sequence[Request]) -> Iterator[tuple[int, Trace]]:
        answerer, rows = self._answerer, self._max_rows
        if isinstance(answerer, MixedModels):
            return generate(answerer, asked, max_rows=rows)
        return generate_alone(
            answerer.model, answerer.role, answerer.tokenizer, asked, max_rows=rows
        )

    @property
    def _elsewhere(self) -> bool:
        """Whether tokens are drawn where the model is, by a server."""
        answerer = self._answerer
        return not isinstance(answerer, MixedModels) and isinstance(answerer.model, ServedLM)

    def _warn_of_short_rooms(self, asked: Sequence[Request]) -> None:
        context = min(info.context_length for info in self._infos)
        short = sum(len(row.prompt_ids) + row.max_tokens > context for row in asked)
        if short:
            _log.warning(
                "%d of %d answers end early if they fill the context of %d tokens before the "
                "task's own limit; a larger context=... lets them go on",
                short,
                len(asked),
                context,
            )

    # Log-probabilities

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return (log-probability in nats, is_greedy) of each continuation after its context.

        Raises:
            ConfigError: the system is mixed. RequestError: a text longer than the context.
        """
        model = self._one_model(requests)
        warn_of_special_texts(self._answerer.tokenizer, [r.args[0] for r in requests], _log)
        tokenizer, prefix = self._answerer.tokenizer, self._prefix_id
        rows = [encode_pair(tokenizer, prefix, *request.args[:2]) for request in requests]
        found: dict[int, tuple[float, bool]] = {}
        with _bar("loglikelihood", len(rows), disable_tqdm) as bar:
            for number, score in log_probabilities(model, rows):
                found[number] = score
                self.cache_hook.add_partial("loglikelihood", requests[number].args, score)
                bar.update()
        self._count_scored(requests)
        return [found[number] for number in range(len(rows))]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-probability in nats of each whole text, window by window.

        Windows are the harness's own: as long as the context, each token predicted once.

        Raises:
            ConfigError: the system is mixed.
        """
        from lm_eval.utils import (  # noqa: PLC0415
            get_rolling_token_windows,
            make_disjoint_window,
        )

        model = self._one_model(requests)
        rows: list[tuple[tuple[int, ...], int]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            windows = get_rolling_token_windows(
                self._answerer.tokenizer.encode(request.args[0]),
                prefix_token=self._prefix_id,
                max_seq_len=model.info.context_length,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, windows):
                rows.append(((*context, *continuation), len(context)))
                owners.append(number)
        totals = [0.0] * len(requests)
        with _bar("loglikelihood_rolling", len(rows), disable_tqdm) as bar:
            for row, (logprob, _) in log_probabilities(model, rows):
                totals[owners[row]] += logprob
                bar.update()
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        self._count_scored(requests)
        return totals

    @property
    def _prefix_id(self) -> int:
        """What stands before a text that has nothing before it: the model's first end token."""
        info = self._infos[0]
        if not info.eos_ids:
            raise EngineError(f"{info.name} has no end token to put before a text")
        return info.eos_ids[0]

    def _one_model(self, requests: Sequence[Any]) -> CausalLM:
        if not isinstance(self._answerer, MixedModels):
            return self._answerer.model
        names = ", ".join(sorted({str(request.task_name) for request in requests}))
        raise ConfigError(
            f"a routed pair has no distribution of its own, so it cannot give the "
            f"log-probabilities that {names} asks for; give tasks that generate (output_type "
            "generate_until, such as gsm8k or ifeval), or system=small or system=large"
        )

    # Usage

    @property
    def _infos(self) -> tuple[ModelInfo, ...]:
        answerer = self._answerer
        if isinstance(answerer, MixedModels):
            return answerer.small.info, answerer.large.info
        return (answerer.model.info,)

    def _count_scored(self, requests: Sequence[Any]) -> None:
        self._tally.scored([request.task_name for request in requests])
        self._tell()

    def report(self) -> dict[str, Any]:
        """Return who wrote how much so far, as plain JSON values; every count is of the traces.

        The harness's cached answers (`--use_cache`) were not generated and do not count.
        """
        answerer = self._answerer
        models = [{"name": info.name, "fingerprint": info.fingerprint} for info in self._infos]
        if isinstance(answerer, MixedModels):
            router, threshold = answerer.router.name, answerer.threshold
            system = {"system": MIXED, "router": router, "threshold": threshold}
        else:
            system = {"system": answerer.role.value}
        return {**system, "models": models, **self._tally.report()}

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness adds to the configuration in its results."""
        return {NAME: self.report()}

    def _tell(self) -> None:
        """Write the usage file and log one line."""
        report = self.report()
        if self._usage_path is not None:
            write_json(self._usage_path, report)
        by = " | {router} at threshold {threshold:.4g}" if report["system"] == MIXED else ""
        line = (
            "{system}: {answers} answers, {scored_texts} texts scored | {generated_tokens} tokens: "
            "{small_tokens} small, {large_tokens} large | large_fraction {large_fraction:.3f}"
        )
        _log.info((line + by).format_map(report))


def _check_usage(path: Path | None) -> None:
    """Refuse a usage file that could not be written after hours of work."""
    if path is None:
        return
    if path.is_dir():
        raise ConfigError(f"usage must be a file to write, and {path} is a folder")
    ensure_writable(path.parent)


def _bar(name: str, total: int, disable: bool) -> Any:
    """Return a progress bar like those of the harness's own models."""
    from tqdm import tqdm  # noqa: PLC0415  the harness brings it

    return tqdm(total=total, desc=f"Running {name} requests", disable=disable)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the harness's own command line with this model known, and chosen unless another is.

    Exits with 2 and one sentence where our part cannot go on; what the harness says is its own.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] not in ("ls", "validate", "-h", "--help"):
        given = ["run", "--model", NAME, *(given[1:] if given[0] == "run" else given)]
    try:
        register()
        from lm_eval.__main__ import cli_evaluate  # noqa: PLC0415

        sys.argv = ["lm-eval", *given]  # the harness reads nothing else
        cli_evaluate()
    except CrossroadsError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
