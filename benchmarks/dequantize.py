"""Write a GGUF model of the catalogue as a folder of safetensors in bfloat16, for other engines.

    python benchmarks/dequantize.py qwen2.5-coder-0.5b OUT

The numbers are those of the four-bit weights, so that engines can be compared on one model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from crossroads.models.catalogue import find_model
from crossroads.models.pairs import check_pair, load_tokenizer
from crossroads.models.store import locate


def main() -> None:
    """Read, write, and see that the tokens are the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    spec = find_model(options.model)
    path = locate(spec, pull=spec.name)
    place = {"gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(
        path.parent,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
        **place,
    )
    model.save_pretrained(options.out)
    AutoTokenizer.from_pretrained(path.parent, **place).save_pretrained(options.out)
    written = find_model(str(options.out))
    pieces = [load_tokenizer(s, p).pieces() for s, p in ((spec, path), (written, options.out))]
    check_pair(*pieces, spec.name, str(options.out))
    print(f"{model.num_parameters():,} parameters in {options.out}")


if __name__ == "__main__":
    main()
