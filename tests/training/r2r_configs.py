"""R2R's default training config, with small sizes, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HIDDEN = 12


def default_config(train: Any = "local:train", test: Any = "local:test") -> dict[str, Any]:
    """Return a config with every key that R2R's shipped ones have."""
    return {
        "model": {
            "model_type": "HiddenStatesTokenLMHeadLogitsClassifier",
            "init_args": {
                "hidden_states_size": HIDDEN,
                "logits_size": 100,
                "hidden_dims": [16, 16],
                "expansion_factor": 2,
                "dropout_rate": 0.1,
                "use_position_embedding": False,
                "freeze_lm_head": True,
                "normalize_input": False,
                "pretrained_model_name": "some/small-model",
            },
            "model_specific_args": {},
            "input_type": ["hidden_states", "token", "logits"],
            "output_type": "binary",
        },
        "data": {
            "train": {"path": train, "type": "divergent", "input_prefix": "small_"},
            "test": {"path": test, "type": "divergent", "input_prefix": "small_"},
        },
        "training": {
            "optimizer": {"lr": 5e-3, "weight_decay": 5e-4},
            "params": {"num_epochs": 1, "batch_size": 64, "patience": 10, "device": "cpu"},
            "loss": {"type": "BCEWithLogitsLoss", "recall_factor": 1.0},
            "validation": {"valid_freq": 2},
            "dtype": "float32",
        },
        "optimizing": {"type": "threshold", "min_recall": 0.8},
        "output": {"output_dir": "out", "checkpoint_dir": "states", "model_name": None},
    }


def write_config(path: Path, values: dict[str, Any]) -> Path:
    """Write a config and return its path."""
    path.write_text(json.dumps(values))
    return path
