"""The default pair: law 1 with few tokens, and pairs that cannot be."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from crossroads.decoding.request import Request
from crossroads.errors import CrossroadsError, PairError
from crossroads.models.base import Want
from crossroads.models.catalogue import find_model
from crossroads.models.llamacpp import QUANTISED_TOLERANCE
from crossroads.models.pairs import Pair, load_pair, resolve_pair
from crossroads.models.store import locate
from crossroads.training.threshold import NEVER
from crossroads.types import Cause, Message, Role
from laws.pairs import alone, mixed, tokens

pytestmark = [pytest.mark.pair, pytest.mark.slow]

QUESTION = "Tom has 12 apples and gives a third of them away. How many are left?"


def requests(pair: Pair) -> list[Request]:
    prompt = pair.tokenizer.render([Message("user", QUESTION)])
    return [Request(tuple(prompt), max_tokens=16, id="apples")]


def test_threshold_zero_is_the_large_model_alone(real_pair: Pair) -> None:
    asked = requests(real_pair)
    assert tokens(mixed(real_pair, asked, 0.0)) == tokens(alone(real_pair, Role.LARGE, asked))


def test_threshold_above_one_is_the_small_model_alone(real_pair: Pair) -> None:
    asked = requests(real_pair)
    traces = mixed(real_pair, asked, NEVER)
    assert tokens(traces) == tokens(alone(real_pair, Role.SMALL, asked))
    assert traces[0].usage.large_fraction == 0


def test_a_mixed_answer_has_both_writers_and_reads_as_text(real_pair: Pair) -> None:
    (trace,) = mixed(real_pair, requests(real_pair), 0.02)
    assert 0 < trace.usage.large_fraction < 1
    assert trace.text.isprintable() or "\n" in trace.text
    assert len(trace.text.split()) >= 5


def test_lossless_writes_what_the_large_model_finds_likeliest(real_pair: Pair) -> None:
    asked = [
        dataclasses.replace(r, lossless=True, max_lag=4, max_tokens=24) for r in requests(real_pair)
    ]
    (trace,) = mixed(real_pair, asked, NEVER)
    assert trace.usage.small_tokens > 0
    cache = real_pair.large.new_cache()
    text = [*trace.prompt_ids, *trace.token_ids]
    count = len(trace.token_ids)
    output = real_pair.large.extend([cache], [text[:-1]], Want((count,), logits=True))
    cache.release()
    written_N = output.logits_NV.gather(1, torch.tensor(trace.token_ids)[:, None])[:, 0]
    # Not always the very best: read in other pieces, the logits of quantised weights move.
    assert (output.top_logits_NK[:, 0] - written_N).max() < QUANTISED_TOLERANCE


def test_with_revision_no_small_token_is_implausible(real_pair: Pair) -> None:
    asked = [dataclasses.replace(r, revise_below=0.3, max_lag=6) for r in requests(real_pair)]
    (trace,) = mixed(real_pair, asked, NEVER)
    causes = {record.cause for record in trace.records if record.writer is Role.LARGE}
    assert causes <= {Cause.MAX_LAG, Cause.REVISION}
    assert trace.usage.large_calls >= len(trace.records) // 7


def test_info_is_what_the_catalogue_promises(real_pair: Pair) -> None:
    small, large = real_pair.small.info, real_pair.large.info
    assert (small.hidden_size, large.hidden_size) == (896, 1536)
    assert small.vocab_size == large.vocab_size == 151936
    assert {151643, 151645} <= set(small.eos_ids)
    assert small.tokenizer_fingerprint == large.tokenizer_fingerprint


def test_another_familys_tokenizer_is_refused(real_pair: Pair) -> None:
    del real_pair  # only so that the weights are known to be here
    try:
        locate(find_model("smollm2-135m"), pull="smollm2-135m")
    except CrossroadsError as error:
        pytest.skip(str(error))
    with pytest.raises(PairError, match="cannot be a pair: token 0 is"):
        load_pair(resolve_pair(small="smollm2-135m", large="qwen2.5-coder-1.5b"))
