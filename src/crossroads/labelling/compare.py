"""Step 2: both models read the large model's response; their outputs at every position.

Teacher-forced: one pass of each model over exactly the generated ids.
Shapes: N response positions, K top entries, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice, tee
from pathlib import Path

import torch
from torch import Tensor

from crossroads.artifacts import canonical_hash, ensure_writable, pin_config, save_tensors
from crossroads.dataset import Comparison, LargeOutputs
from crossroads.errors import DataError
from crossroads.labelling.respond import Responses
from crossroads.models.base import CausalLM, StepOutput, Want, concatenate
from crossroads.models.served import Answer, Reading, ReadsAtOnce, ServedLM
from crossroads.routing.features import TOP_K
from crossroads.types import Progress

LARGE_TOP_K = 20
"""Entries that are kept of the large model's distributions; what inference servers give at most."""

_CHUNK = 64
"""Positions whose whole distributions are in memory at a time (64 x 152k x 4 B = 39 MB)."""

_AHEAD = 4
"""Responses that a model behind a server reads beyond the one that is compared."""


def compare_all(
    small: CausalLM, large: CausalLM, responses: Responses, folder: Path, progress: Progress
) -> None:
    """Write the comparison of every finished response to `folder`, a file each.

    Effects: files that are there already are not made again; one response is in memory at a time.

    Raises:
        ConfigError: the folder holds comparisons by other models.
        DataError: outputs that contradict themselves (a backend's fault, found before training).
    """
    ensure_writable(folder)
    pinned = {
        "small": small.info.fingerprint,
        "large": large.info.fingerprint,
        "top_k": TOP_K,
        "large_top_k": LARGE_TOP_K,
    }
    pin_config(folder / "config.json", pinned, "comparisons")
    todo = [k for k in responses.finished_keys if not comparison_path(folder, k).exists()]
    progress.start("both models compare", len(responses.finished_keys), "responses")
    progress.advance(len(responses.finished_keys) - len(todo))
    answers = (_answer(responses, key) for key in todo)
    for key, comparison in zip(todo, _comparisons(small, large, answers), strict=True):
        path = comparison_path(folder, key)
        save_tensors(path, comparison.to_tensors(), {"response": key})
        progress.advance()
    progress.finish()


def comparison_path(folder: Path, key: str) -> Path:
    """Return where the comparison of one response is; ids may hold what file names may not."""
    return folder / f"{canonical_hash(key)[:16]}.safetensors"


def compare(
    small: CausalLM, large: CausalLM, prompt_ids: Sequence[int], response_ids: Sequence[int]
) -> Comparison:
    """Return both models' outputs at the N = len(response_ids) positions of a response.

    Raises:
        DataError: outputs that contradict themselves (a backend's fault, found before training).
    """
    answer = Answer(tuple(prompt_ids), tuple(response_ids))
    (comparison,) = _comparisons(small, large, [answer])
    return comparison


View = Callable[[Tensor], LargeOutputs]
"""The large model's view of a response, given the small model's token [N] at each position."""


def _answer(responses: Responses, key: str) -> Answer:
    response = responses.get(key)
    return Answer(response.prompt_ids, response.response_ids)


def _comparisons(
    small: CausalLM, large: CausalLM, answers: Iterable[Answer]
) -> Iterator[Comparison]:
    """Yield the comparison of each answer, in order; a few answers are in memory at a time."""
    ours, mine, theirs = tee(answers, 3)
    for answer, step, view in zip(ours, _steps(small, mine), _views(large, theirs), strict=True):
        comparison = Comparison(
            step=step,
            real_N=torch.tensor(list(answer.answer_ids)),
            position_N=torch.arange(len(answer.answer_ids)) + len(answer.prompt_ids),
            large=view(step.top_ids_NK[:, 0]),
        )
        _check(comparison)
        yield comparison


def _steps(small: CausalLM, answers: Iterable[Answer]) -> Iterator[StepOutput]:
    """Yield the small model's outputs at the positions of each answer, in order."""
    want = Want(positions="all", top_k=TOP_K, hidden=True)
    if isinstance(small, ReadsAtOnce):
        for some in batched(answers, min(_AHEAD, small.info.max_rows)):
            yield from _read_at_once(small, some, want)
        return
    for answer in answers:
        pieces = list(_teacher_forced(small, answer.prompt_ids, answer.answer_ids, want))
        yield concatenate(pieces, (len(answer.answer_ids),))


def _read_at_once(model: CausalLM, answers: Sequence[Answer], want: Want) -> Iterator[StepOutput]:
    """Yield the outputs that predict each answer's tokens, of answers that are read together."""
    caches = [model.new_cache() for _ in answers]
    try:
        rows = [[*answer.prompt_ids, *answer.answer_ids[:-1]] for answer in answers]
        counts = tuple(len(answer.answer_ids) for answer in answers)
        output = model.extend(caches, rows, replace(want, positions=counts))
        yield from (output.row(number) for number in range(len(answers)))
    finally:
        for cache in caches:
            cache.release()


def batched(items: Iterable[Answer], size: int) -> Iterator[list[Answer]]:
    """Yield lists of up to `size` items."""
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some


def _views(large: CausalLM, answers: Iterable[Answer]) -> Iterator[View]:
    """Yield the large model's view of each response, in order.

    A model in the process reads when it is asked, in pieces. One behind servers reads a few
    responses ahead, while the small one reads here.
    """
    if isinstance(large, ServedLM):
        ours, theirs = tee(answers)
        for answer, reading in zip(ours, large.read(theirs, LARGE_TOP_K, _AHEAD), strict=True):
            yield partial(_told, reading, answer)
    else:
        for answer in answers:
            yield partial(_read, large, answer)


def _teacher_forced(
    model: CausalLM, prompt_ids: Sequence[int], response_ids: Sequence[int], want: Want
) -> Iterator[StepOutput]:
    """Yield outputs that predict each response token, in pieces of at most _CHUNK positions."""
    cache = model.new_cache()
    try:
        if len(prompt_ids) > 1:
            model.extend([cache], [prompt_ids[:-1]])
        inputs = [prompt_ids[-1], *response_ids[:-1]]
        for start in range(0, len(inputs), _CHUNK):
            yield model.extend([cache], [inputs[start : start + _CHUNK]], want)
    finally:
        cache.release()


def _read(large: CausalLM, answer: Answer, small_N: Tensor) -> LargeOutputs:
    """Return the view of a model in the process."""
    want = Want(positions="all", top_k=LARGE_TOP_K, logits=True)
    ids_N2 = torch.stack([torch.tensor(answer.answer_ids), small_N], dim=1)
    top_ids, top_logprobs, chosen = [], [], []
    start = 0
    for output in _teacher_forced(large, answer.prompt_ids, answer.answer_ids, want):
        assert output.logits_NV is not None
        part_N2 = ids_N2[start : start + len(output.top_ids_NK)]
        chosen.append(output.logits_NV.gather(1, part_N2) - output.logsumexp_N[:, None])
        top_ids.append(output.top_ids_NK)
        top_logprobs.append(output.top_logits_NK - output.logsumexp_N[:, None])
        start += len(part_N2)
    chosen_N2 = torch.cat(chosen)
    return LargeOutputs(
        logprob_real_N=chosen_N2[:, 0],
        logprob_small_N=chosen_N2[:, 1],
        top_ids_NK=torch.cat(top_ids),
        top_logprobs_NK=torch.cat(top_logprobs),
    )


def _told(reading: Reading, answer: Answer, small_N: Tensor) -> LargeOutputs:
    """Return the view of a model behind a server, which tells its likeliest tokens only.

    Of another one there is no more than a bound: it is at most as likely as the least of them.
    """
    real_N = torch.tensor(answer.answer_ids)
    same_NK = reading.top_ids_NK == small_N[:, None]
    least_N1 = reading.top_logprobs_NK[:, -1:]
    small_logprob_N = torch.where(same_NK, reading.top_logprobs_NK, least_N1).amax(1)
    return LargeOutputs(
        logprob_real_N=reading.logprob_N,
        logprob_small_N=torch.where(small_N == real_N, reading.logprob_N, small_logprob_N),
        top_ids_NK=reading.top_ids_NK,
        top_logprobs_NK=reading.top_logprobs_NK,
    )


def _check(comparison: Comparison) -> None:
    step, large = comparison.step, comparison.large
    assert large is not None
    columns = (step.top_logits_NK, step.logsumexp_N, step.entropy_N, step.hidden_NH)
    if not all(bool(torch.isfinite(column).all()) for column in columns if column is not None):
        raise DataError("the small model put out numbers that are not finite")
    if not bool((step.top_logits_NK[:, 1:] <= step.top_logits_NK[:, :-1]).all()):
        raise DataError("the small model's top logits are not sorted")
    best_N = large.top_logprobs_NK[:, 0]
    for name, logprob_N in (("real", large.logprob_real_N), ("small", large.logprob_small_N)):
        if bool((logprob_N > best_N + 1e-4).any()):
            raise DataError(f"the large model's best token is less likely than the {name} one")
    if not bool((large.logprob_real_N <= 1e-4).all()):
        raise DataError("the large model put out a probability above 1")
