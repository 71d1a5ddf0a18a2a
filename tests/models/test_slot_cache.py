"""Rows read together are the rows read alone, for every kind of layer; where not, nobody tries."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import builders
from crossroads.errors import EngineError
from crossroads.models.base import Want
from crossroads.models.row_cache import PASS_TOKENS
from crossroads.models.slot_cache import plan
from models.test_transformers import IDS, VOCAB, own_logits, tiny_model, wrap

EVERYTHING = Want("all", top_k=5, hidden=True, logits=True)
ROWS, CONTEXT = 4, 96

# Of the largest logit, against a fresh pass that transformers makes without us. 9e-6 is the largest
# seen in float32 over 35 families (gpt-oss; all others stay below 3e-6).
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 0.05}

FAMILIES: dict[str, Callable[[], Any]] = {
    "qwen2": builders.tiny_transformer,  # grouped heads
    "qwen2-bfloat16": lambda: builders.tiny_transformer().to(torch.bfloat16),
    "qwen2-eager": lambda: eager(builders.tiny_transformer()),
    "llama": lambda: tiny_model("LlamaConfig", num_key_value_heads=1),
    "mistral-window": lambda: tiny_model("MistralConfig", sliding_window=6),
    "gemma2-window": lambda: tiny_model("Gemma2Config", sliding_window=6),
    "gemma3-window": lambda: tiny_model(
        "Gemma3TextConfig",
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "llama4-chunks": lambda: tiny_model(
        "Llama4TextConfig", attention_chunk_size=6, num_local_experts=2, intermediate_size_mlp=64
    ),
    "gpt2-learned-positions": lambda: tiny_model("GPT2Config", n_embd=32, n_layer=2, n_head=4),
}


def eager(model: Any) -> Any:
    model.set_attn_implementation("eager")
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> Any:
    pytest.importorskip("transformers")
    lm = wrap(FAMILIES[request.param](), max_rows=ROWS, context_length=CONTEXT)
    assert lm.batched, lm.why_not_batched
    assert lm.why_not_batched is None
    return lm


def assert_rows_are(lm: Any, out: Any, texts: list[list[int]], new: list[int]) -> None:
    """Assert that row i of `out` is what the model says of the last `new[i]` tokens of text i."""
    tolerance = TOLERANCE[lm._model.dtype]
    assert out.row_lengths == tuple(new)
    for i, (text, count) in enumerate(zip(texts, new, strict=True)):
        expected_NV = own_logits(lm._model, text)
        difference = (out.row(i).logits_NV - expected_NV[-count:]).abs().max()
        assert difference <= tolerance * expected_NV.abs().max(), f"row {i} of {new}"


def test_ragged_rows_are_the_rows_alone(lm: Any) -> None:
    texts = [IDS[:40], IDS[5:9], IDS[3:30], IDS[1:2]]
    caches = [lm.new_cache() for _ in texts]
    out = lm.extend(caches, texts, EVERYTHING)
    assert_rows_are(lm, out, texts, [len(text) for text in texts])
    tails = [[5], [6, 7, 8, 9], [1, 2], [3] * 12]
    out = lm.extend(caches, tails, EVERYTHING)
    texts = [text + tail for text, tail in zip(texts, tails, strict=True)]
    assert_rows_are(lm, out, texts, [len(tail) for tail in tails])
    for cache in caches:
        cache.release()


def test_forks_are_rows_of_their_own(lm: Any) -> None:
    source = lm.new_cache()
    lm.extend([source], [IDS[:20]])
    forks = [lm.fork(source, length) for length in (20, 9, 0)]
    caches, texts = [source, *forks], [IDS[:20], IDS[:20], IDS[:9], []]
    tails = [[1, 2, 3], [4], [5, 6], [7]]
    out = lm.extend(caches, tails, EVERYTHING)
    texts = [text + tail for text, tail in zip(texts, tails, strict=True)]
    assert_rows_are(lm, out, texts, [3, 1, 2, 1])
    source.release()
    out = lm.extend(forks, [[8], [9], [1]], EVERYTHING)
    assert_rows_are(
        lm, out, [text + new for text, new in zip(texts[1:], [[8], [9], [1]], strict=True)], [1] * 3
    )
    for fork in forks:
        fork.release()


tokens = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20)


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_interleaving_is_fresh_passes(lm: Any, data: st.DataObject) -> None:
    """Joins, forks, crops, releases and ragged extends of any rows, in any order."""
    rows: list[tuple[Any, list[int]]] = []  # a cache and the text that it should hold
    try:
        for _ in range(data.draw(st.integers(2, 10))):
            act = data.draw(
                st.sampled_from(["join", "fork", "crop", "release", "extend", "extend"])
            )
            i = data.draw(st.integers(0, len(rows) - 1)) if rows else None
            if act == "join" or i is None:
                if len(rows) < ROWS:
                    rows.append((lm.new_cache(), []))
            elif act == "release":
                rows.pop(i)[0].release()
            elif act == "fork":
                if len(rows) < ROWS:
                    length = data.draw(st.integers(0, len(rows[i][1])))
                    rows.append((lm.fork(rows[i][0], length), rows[i][1][:length]))
            elif act == "crop":
                length = data.draw(st.integers(0, len(rows[i][1])))
                rows[i][0].crop(length)
                rows[i] = rows[i][0], rows[i][1][:length]
            else:
                some = data.draw(st.lists(st.integers(0, len(rows) - 1), unique=True, min_size=1))
                new = [data.draw(tokens)[: CONTEXT - len(rows[j][1])] for j in some]
                some, new = [j for j, t in zip(some, new, strict=True) if t], [t for t in new if t]
                if not some:
                    continue
                out = lm.extend([rows[j][0] for j in some], new, EVERYTHING)
                for j, row_tokens in zip(some, new, strict=True):
                    rows[j] = rows[j][0], rows[j][1] + row_tokens
                assert_rows_are(lm, out, [rows[j][1] for j in some], [len(t) for t in new])
            assert [cache.length for cache, _ in rows] == [len(text) for _, text in rows]
    finally:
        for cache, _ in rows:
            cache.release()


def test_rows_share_passes_and_long_ones_are_cut() -> None:
    lm = wrap(tiny_model(), max_rows=8)
    shapes: list[tuple[int, ...]] = []
    decoder = lm._decoder
    lm._decoder = lambda **kwargs: (
        shapes.append(tuple(kwargs["input_ids"].shape)) or decoder(**kwargs)
    )
    caches = [lm.new_cache() for _ in range(4)]
    texts = [IDS * 15, [1], [2], [3]]
    lm.extend(caches, texts, Want())
    assert shapes == [(1, PASS_TOKENS), (3, 1), (1, 600 - PASS_TOKENS)]
    shapes.clear()
    out = lm.extend(caches, [[1], [2, 3], [4], [5]], EVERYTHING)
    assert shapes == [(4, 2)]
    lm._decoder = decoder
    expected_V = own_logits(lm._model, [*texts[0], 1])[-1]
    assert (out.row(0).logits_NV[0] - expected_V).abs().max() <= 1e-5 * expected_V.abs().max()


@given(
    lengths=st.lists(st.integers(1, 1500), min_size=1, max_size=12),
    free_area=st.sampled_from([0, 64, PASS_TOKENS]),
)
def test_passes_read_every_token_once_in_order_with_little_padding(
    lengths: list[int], free_area: int
) -> None:
    read = [0] * len(lengths)
    for pieces in plan(lengths, free_area):
        assert len({piece.row for piece in pieces}) == len(pieces)
        for piece in pieces:
            assert piece.first == read[piece.row]
            assert piece.size >= 1
            read[piece.row] += piece.size
        area = len(pieces) * max(piece.size for piece in pieces)
        assert area <= PASS_TOKENS
        assert area <= max(free_area, 2 * sum(piece.size for piece in pieces))
    assert read == lengths


def test_the_head_sees_wanted_positions_only() -> None:
    lm = wrap(tiny_model())
    sizes: list[int] = []
    head = lm._head
    lm._head = lambda hidden_NH: sizes.append(len(hidden_NH)) or head(hidden_NH)
    caches = [lm.new_cache() for _ in range(3)]
    out = lm.extend(caches, [IDS, IDS[:7], IDS[:3]], Want((2, 7, 1)))
    assert sizes == [10]
    assert out.row_lengths == (2, 7, 1)


def test_buffers_grow_by_doubling_and_stay() -> None:
    lm = wrap(tiny_model(), max_rows=6, context_length=600)
    first = lm._store._layers[0]
    cache = lm.new_cache()
    seen = set()
    for _ in range(15):
        lm.extend([cache], [IDS])
        seen.add(first.keys.data_ptr())
        assert first.keys.shape[2] <= 600 + 1
    assert len(seen) <= 4  # 128, 256, 512, 600
    with_memory = first.keys.shape
    cache.crop(3)
    cache.release()
    lm.extend([lm.new_cache()], [[1]])
    assert first.keys.shape == with_memory


@pytest.mark.parametrize("batched", [True, False])
def test_a_row_of_nans_harms_nobody(batched: bool) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[9] = float("nan")
    lm = wrap(model, max_rows=2, batched=batched)
    bad, good = lm.new_cache(), lm.new_cache()
    out = lm.extend([bad, good], [[1, 9, 3], [1, 2]], Want(logits=True))
    assert out.row(0).logits_NV.isnan().all()
    assert out.row(1).logits_NV.isfinite().all()
    bad.release()
    newcomer = lm.new_cache()  # in the slot of the bad one
    out = lm.extend([newcomer, good], [[4], [5, 6, 7]], Want(logits=True))
    assert out.logits_NV.isfinite().all()


def test_a_failed_growth_is_not_asked_for_again() -> None:
    lm = wrap(tiny_model(), max_rows=2, context_length=2000)
    short, long = lm.new_cache(), lm.new_cache()
    lm.extend([short, long], [[1, 2], [3]])
    layer = lm._store._layers[1]
    grown = layer._grown

    def fail(old: Any) -> Any:
        if lm._store.cells > 500:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return grown(old)

    type(layer)._grown, original = (lambda self, old: fail(old)), type(layer)._grown
    try:
        with pytest.raises(EngineError, match="nothing was changed"):
            lm.extend([short, long], [[5], IDS * 15])
        assert (short.length, long.length) == (2, 1)
        out = lm.extend([short, long], [[5], [6, 7]], EVERYTHING)
    finally:
        type(layer)._grown = original
    assert_rows_are(lm, out, [[1, 2, 5], [3, 6, 7]], [1, 2])


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: tiny_model("BloomConfig", n_layer=2, n_head=4), "asks for one length"),
        (
            lambda: tiny_model(
                rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
            ),
            "dynamic rotary embeddings",
        ),
    ],
)
def test_models_that_cannot_share_a_pass_read_one_by_one(
    build: Callable[[], Any], reason: str
) -> None:
    model = build()
    lm = wrap(model)
    assert not lm.batched
    assert reason in lm.why_not_batched
    out = lm.extend([lm.new_cache(), lm.new_cache()], [IDS, IDS[:5]], EVERYTHING)
    assert_rows_are(lm, out, [IDS, IDS[:5]], [len(IDS), 5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shift", [-1, 1, 100])
def test_the_probe_sees_a_mask_that_is_off_by_one(
    dtype: torch.dtype, shift: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crossroads.models import slot_cache

    masks = slot_cache.masks

    def wrong(config: Any, positions_BT: torch.Tensor, cells: int, dtype: torch.dtype) -> Any:
        return masks(config, (positions_BT + shift).clamp(min=0), cells, dtype)

    monkeypatch.setattr(slot_cache, "masks", wrong)
    lm = wrap(tiny_model(initializer_range=0.02).to(dtype))  # barely attends, as if untrained
    assert not lm.batched
    assert "differ from the rows alone" in lm.why_not_batched


def test_the_probe_sees_a_window_that_is_not_the_configs() -> None:
    model = tiny_model("MistralConfig", sliding_window=1000)
    model.model.config = copy.deepcopy(model.config)  # narrowing one does not narrow the other
    lm = wrap(model)
    assert not lm.batched
    assert "differ from the rows alone" in lm.why_not_batched
    assert model.config.sliding_window == 1000
