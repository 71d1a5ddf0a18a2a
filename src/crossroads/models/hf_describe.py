"""What a model is, without its weights: for engines that load them elsewhere."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch

from crossroads.models.hf_model import context_length_of, count_parameters, eos_ids_of
from crossroads.models.hf_source import find_source, load_errors
from crossroads.models.hf_tokenizer import HfTokenizer
from crossroads.types import ModelInfo


def describe(
    path_or_repo: str | Path, *, engine: str, context_length: int | None = None, max_rows: int = 64
) -> ModelInfo:
    """Return what a folder or hub repository of safetensors holds; only its configuration is read.

    Raises:
        EngineError, WeightsError, ConfigError: as TransformersLM.load says.
    """
    source = find_source(path_or_repo)
    with load_errors(source):
        import transformers  # noqa: PLC0415

        revision = source.revision or "main"
        config = transformers.AutoConfig.from_pretrained(source.location, revision=revision)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        try:
            generation = transformers.GenerationConfig.from_pretrained(
                source.location, revision=revision
            )
        except OSError:  # a model may have none
            generation = None
    parameters, active = count_parameters(model, config)
    return ModelInfo(
        name=source.name,
        engine=engine,
        fingerprint=source.fingerprint_of(model),
        parameters=parameters,
        active_parameters=active,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        context_length=context_length_of(source.name, config, context_length),
        max_rows=max_rows,
        eos_ids=eos_ids_of(SimpleNamespace(generation_config=generation, config=config)),
        dtype=str(getattr(config, "dtype", "auto")).removeprefix("torch."),
        tokenizer_fingerprint=HfTokenizer(source.load_tokenizer()).fingerprint,
    )
