"""The mixed loop on a GPU, at the sizes of Qwen2.5-1.5B + 32B with random weights: no download.

    python benchmarks/gpu.py --out benchmarks/results/DATE-gpu.json
    python benchmarks/gpu.py --tiny --device cpu        # does the script itself work?

The router fires at a set rate (a hash of position and token), for speed does not depend on what is
written. The baseline is the large model alone with a static cache and CUDA graphs, by transformers'
own generate. The ideal is memory: a step of a model reads its weights once, at the rate at which
this device copies memory, so `bytes(small) + rate * bytes(large)` over that rate per token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from crossroads.decoding.mixed import MixedModels, generate
from crossroads.decoding.request import Request
from crossroads.models.scripted import ScriptedTokenizer
from crossroads.models.transformers import TransformersLM
from crossroads.provenance import provenance
from crossroads.routing.routers.heuristics import random

SIZES: dict[str, dict[str, int]] = {
    "1.5B": {"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12,
             "num_key_value_heads": 2, "intermediate_size": 8960},
    "32B": {"hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 40,
            "num_key_value_heads": 8, "intermediate_size": 27648},
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "intermediate_size": 128},
}  # fmt: skip
RATES = (0.05, 0.1, 0.15, 0.2, 0.3)
REPEATS = 3


@dataclass(frozen=True)
class Row:
    """One rate: medians over the repeats."""

    rate: float
    large_fraction: float
    tokens_per_second: float
    ideal_tokens_per_second: float
    share_of_ideal: float
    versus_large: float


def main() -> None:
    """Run, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    vocabulary = 90 if options.tiny else 151_936
    names = ("tiny", "tiny") if options.tiny else ("1.5B", "32B")
    small, large = (random_model(name, vocabulary, options.device) for name in names)
    bandwidth = copy_rate(options.device)
    alone = large_alone(large, options.prompt, options.tokens)
    pair = [
        TransformersLM(model, name=name, fingerprint=name, max_rows=2, context_length=4096)
        for model, name in zip((small, large), ("small", "large"), strict=True)
    ]
    rows = [
        measure(pair, rate, options, alone, bandwidth, [bytes_of(small), bytes_of(large)])
        for rate in RATES
    ]
    print(f"memory {bandwidth / 1e9:.0f} GB/s; large model alone {alone:.1f} tokens/s")
    print(f"{'rate':>6}{'large':>8}{'tok/s':>9}{'ideal':>9}{'share':>8}{'x large':>9}")
    for r in rows:
        speeds = f"{r.tokens_per_second:9.1f}{r.ideal_tokens_per_second:9.1f}"
        print(
            f"{r.rate:6.2f}{r.large_fraction:8.3f}{speeds}{r.share_of_ideal:8.2f}{r.versus_large:9.2f}"
        )
    if options.out is not None:
        result = {
            "rows": [asdict(row) for row in rows],
            "large_alone_tokens_per_second": alone,
            "copied_bytes_per_second": bandwidth,
            "device": torch.cuda.get_device_name() if options.device != "cpu" else "cpu",
            "provenance": provenance(tokens=options.tokens, prompt=options.prompt, models=names),
        }
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def random_model(name: str, vocabulary: int, device: str) -> Any:
    """Return a Qwen2 of that size, weights normal with deviation 0.02, bfloat16."""
    config = transformers.Qwen2Config(
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        eos_token_id=None,
        bos_token_id=None,
        **SIZES[name],
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model = model.to_empty(device=device).eval()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.02, generator=generator)
            else:  # a norm's weight is 1; a bias of 0.02 more or less is none
                parameter.fill_(1.0)
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config).to(device)
    return model


def bytes_of(model: Any) -> int:
    """Return the bytes that a step reads: every weight but the table of input embeddings."""
    table = model.get_input_embeddings().weight
    return sum(p.numel() * p.element_size() for p in model.parameters() if p is not table)


def copy_rate(device: str) -> float:
    """Return bytes read and written per second by a large copy, the best of ten."""
    source = torch.empty(2**28 if device != "cpu" else 2**24, dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(10):
        started = now(device)
        target.copy_(source)
        best = max(best, 2 * source.numel() * 4 / (now(device) - started))
    return best


def large_alone(model: Any, prompt: int, tokens: int) -> float:
    """Return tokens per second of transformers' generate with a static cache (and CUDA graphs)."""
    device = model.device.type
    ids = torch.arange(1, prompt + 1, device=device)[None] % model.config.vocab_size
    rates = []
    for repeat in range(REPEATS + 1):
        started = now(device)
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            cache_implementation="static",
            pad_token_id=0,
        )
        if repeat:  # the first run compiles
            rates.append(tokens / (now(device) - started))
    return statistics.median(rates)


def measure(
    pair: list[TransformersLM],
    rate: float,
    options: argparse.Namespace,
    alone: float,
    bandwidth: float,
    sizes: list[int],
) -> Row:
    """Return one rate's row."""
    vocabulary = pair[0].info.vocab_size
    tokenizer: Any = ScriptedTokenizer(90)
    tokenizer.text_bytes = lambda _token: b""  # random ids have no text
    models = MixedModels(pair[0], pair[1], random(vocabulary), tokenizer, 1 - rate)
    prompt = tuple(i % vocabulary for i in range(1, options.prompt + 1))
    rates, fractions = [], []
    for repeat in range(REPEATS + 1):
        started = now(options.device)
        ((_, trace),) = generate(models, [Request(prompt, max_tokens=options.tokens)])
        seconds = now(options.device) - started
        if repeat:
            rates.append(len(trace.records) / seconds)
            fractions.append(trace.usage.large_fraction)
    fraction, found = statistics.mean(fractions), statistics.median(rates)
    ideal = bandwidth / (sizes[0] + fraction * sizes[1])
    return Row(rate, fraction, found, ideal, found / ideal, found / alone)


def now(device: str) -> float:
    """Return the clock once everything that was asked of the device is done."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
