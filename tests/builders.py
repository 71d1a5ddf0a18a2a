"""Tiny models with random weights, the same ones for every engine, and their tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS = 64, 128, 2, 4, 2
HEAD_SIZE = HIDDEN // HEADS
CONTEXT = 256
RMS_EPSILON = 1e-6
ROPE_BASE = 10_000.0

MERGES = (
    "t h", "th e", "Ġ the", "i n", "a n", "an d", "Ġ and", "e r", "o n", "r e", "Ġ a", "Ġ t",
    "e n", "o r", "s t", "l l", "h e", "he ll", "hell o", "Ġ w", "Ġw or", "l d", "Ġwor ld",
    "i s", "Ġ is", "1 2", "Ġ =", "Ċ Ċ", "< /", "</ s", "</s >",
)  # fmt: skip
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PADDING = 3
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_characters() -> list[str]:
    """Return GPT-2's printable character for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


BYTE_TOKENS = byte_characters()
MERGED_TOKENS = [merge.replace(" ", "") for merge in MERGES]
REAL_TOKENS = [*BYTE_TOKENS, *MERGED_TOKENS, *SPECIAL]
VOCAB = len(REAL_TOKENS) + PADDING
END_OF_TEXT, IM_START, IM_END = (REAL_TOKENS.index(text) for text in SPECIAL)


def tiny_weights(seed: int = 0, *, agrees_with: int | None = None) -> dict[str, Tensor]:
    """Return random weights under Hugging Face's names.

    The head gives logits a standard deviation of about 3, so that greedy choices have margins.
    With `agrees_with`, most of every weight is another seed's: a pair whose tokens often agree.
    """
    if agrees_with is not None:
        own, other = tiny_weights(seed), tiny_weights(agrees_with)
        return {name: other[name] + 0.3 * (own[name] - other[name]) for name in own}
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float) -> Tensor:
        return torch.randn(*shape, generator=generator) * std

    def linear(out: int, into: int, gain: float = 1.5) -> Tensor:
        return normal(out, into, std=gain / into**0.5)

    weights = {"model.embed_tokens.weight": normal(VOCAB, HIDDEN, std=1.0)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        sizes = {"q": HIDDEN, "k": KV_HEADS * HEAD_SIZE, "v": KV_HEADS * HEAD_SIZE}
        for name, size in sizes.items():
            weights[f"{layer}.self_attn.{name}_proj.weight"] = linear(size, HIDDEN)
            weights[f"{layer}.self_attn.{name}_proj.bias"] = normal(size, std=0.3)
        weights[f"{layer}.self_attn.o_proj.weight"] = linear(HIDDEN, HIDDEN)
        weights[f"{layer}.mlp.gate_proj.weight"] = linear(INNER, HIDDEN)
        weights[f"{layer}.mlp.up_proj.weight"] = linear(INNER, HIDDEN)
        weights[f"{layer}.mlp.down_proj.weight"] = linear(HIDDEN, INNER)
        for name in ("input", "post_attention"):
            weights[f"{layer}.{name}_layernorm.weight"] = 1 + normal(HIDDEN, std=0.1)
    weights["model.norm.weight"] = 1 + normal(HIDDEN, std=0.1)
    weights["lm_head.weight"] = linear(VOCAB, HIDDEN, gain=3.0)
    return weights


def tiny_transformer(seed: int = 0, *, agrees_with: int | None = None) -> Any:
    """Return a Qwen2ForCausalLM with `tiny_weights`, float32."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=RMS_EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_BASE},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=[IM_END, END_OF_TEXT],
    )
    model = Qwen2ForCausalLM(config)
    model.load_state_dict(tiny_weights(seed, agrees_with=agrees_with))
    return model.eval()


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers": "blk",
}


def tiny_gguf(
    path: Path,
    seed: int = 0,
    *,
    agrees_with: int | None = None,
    chat_template: str | None = CHAT_TEMPLATE,
    eos_text: str = "<|im_end|>",
) -> Path:
    """Write `tiny_weights` and the tokenizer as a GGUF file and return `path`.

    `eos_text` replaces the text of <|im_end|>: a file whose tokenizer is another one.
    """
    import gguf

    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(RMS_EPSILON)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_tokenizer(writer, gguf.TokenType, eos_text)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    for name, tensor in tiny_weights(seed, agrees_with=agrees_with).items():
        for theirs, ours in _GGUF_NAMES.items():
            name = name.replace(theirs, ours)  # noqa: PLW2901
        writer.add_tensor(name, tensor.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: Any, kinds: Any, eos_text: str) -> None:
    texts = [eos_text if text == "<|im_end|>" else text for text in REAL_TOKENS]
    padding = [f"[PAD{i}]" for i in range(len(texts), VOCAB)]
    normal = len(BYTE_TOKENS) + len(MERGED_TOKENS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*texts, *padding])
    writer.add_token_types(
        [kinds.NORMAL] * normal + [kinds.CONTROL] * len(SPECIAL) + [kinds.UNUSED] * PADDING
    )
    writer.add_token_merges(list(MERGES))
    writer.add_eos_token_id(IM_END)
    writer.add_add_bos_token(False)
