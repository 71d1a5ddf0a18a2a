"""A tiny random pair in the folders that vLLM and transformers read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import builders
from crossroads.models import vllm_server

TESTS = Path(__file__).parent.parent


def tiny_tokenizer() -> Any:
    """Return the tiny models' tokenizer, with its padding ids left out."""
    import transformers
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    texts = [*builders.BYTE_TOKENS, *builders.MERGED_TOKENS]
    merges = [tuple(merge.split(" ")) for merge in builders.MERGES]
    backend = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(texts)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in builders.SPECIAL])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", chat_template=builders.CHAT_TEMPLATE
    )


def stand_in_for_vllm(folder: Path, patch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Write a pair for which servers start without vLLM; return the models' folders."""
    command = folder / "python-with-vllm"
    script = TESTS / "orchestrator" / "stand_in_vllm.py"
    command.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\n'
        f'PYTHONPATH={TESTS} exec {sys.executable} {script} "$@"\n'
    )
    command.chmod(0o755)
    patch.setenv(vllm_server.PYTHON, str(command))
    return write_pair(folder)


def write_pair(folder: Path) -> tuple[Path, Path]:
    """Write a small model that mostly agrees with a large one; return their folders."""
    small, large = folder / "small", folder / "large"
    with pytest.MonkeyPatch.context() as patch:
        # vLLM's attention on a CPU knows heads of 32 and more.
        for name, value in (("HEADS", 2), ("KV_HEADS", 1), ("HEAD_SIZE", 32)):
            patch.setattr(builders, name, value)
        models = builders.tiny_transformer(1), builders.tiny_transformer(2, agrees_with=1)
    for path, model in zip((large, small), models, strict=True):
        with torch.no_grad():  # ids that stand for nothing are never likely in a real model
            model.lm_head.weight[-builders.PADDING :] = 0
        model.save_pretrained(path)
        tiny_tokenizer().save_pretrained(path)
    return small, large
