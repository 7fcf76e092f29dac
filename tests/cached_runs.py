"""Runs of the feature cache on a tiny checkpoint, and what they leave behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from hftransfer import Recipe, Run, finetune
from tests.tiny_models import WORDS

ROWS = [
    {"text": " ".join(WORDS[index % 50 : index % 50 + 1 + index * 5 % 13]), "label": ("a", "b", "c")[index % 3]}
    for index in range(60)
]
STRATEGIES: dict[str, dict[str, Any]] = {
    "feature_extraction": {},
    "top_layers": {"k": 2},
    "gradual_unfreezing": {"stages": 4},
    "lp_ft": {},
    "lora": {"top_blocks": 1, "r": 2},
}
UNCACHED = {"cache": {"max_bytes": 0}}


def train(
    folder: Path, checkpoint: Path, strategy: str = "feature_extraction", rows: Any = ROWS, **sections: Any
) -> Run:
    """Train in fp32 on the first 48 of these rows, with the others for validation."""
    recipe: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "strategy": {"type": strategy, **STRATEGIES[strategy]},
        "optim": {"num_train_epochs": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-3},
        "output_dir": str(folder),
        "overwrite": True,
        # What preflight does to a run, and that it leaves it as it was, is tested in unit/preflight and contract.
        "preflight": "off",
        **sections,
    }
    return finetune(Recipe(**recipe), train=rows[:48], validation=rows[48:])


def losses(run: Run) -> list[float]:
    """The loss of every step."""
    return [record["loss"] for record in run.log if "loss" in record]


def facts(run: Run) -> dict[str, Any]:
    """Counts and times of the training."""
    found: dict[str, Any] = run.metrics["training"]
    return found


def weights(run: Run) -> dict[str, torch.Tensor]:
    """The trained model."""
    return load_file(run.model_folder / "model.safetensors")


def stored(states: Path) -> dict[int, list[bytes]]:
    """Boundary -> the addresses of all rows on disk."""
    found: dict[int, list[bytes]] = {}
    for key in states.glob("*/key.json"):
        rows = found.setdefault(json.loads(key.read_text())["boundary"], [])
        for index in key.parent.glob("shard-*/index.npz"):
            rows += [address.tobytes() for address in np.load(index)["hashes"]]
    return found
