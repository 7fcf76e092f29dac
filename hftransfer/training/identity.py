"""What a checkpoint belongs to: the recipe, the data, the pretrained weights; and what it was made with."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hftransfer.recipe import Recipe
from hftransfer.tasks.base import CELLS, ROW_WEIGHTS, Features

if TYPE_CHECKING:
    from accelerate import Accelerator

# What may differ between a run and its continuation without changing a single weight.
NOT_PART_OF_THE_RESULT = (
    "output_dir",
    "overwrite",
    "resume",
    "preflight",
    "checkpoint_every",
    "keep_checkpoints",
    "trackers",
    "report_examples",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
)
# How a global batch is shared out: its rows stay the same, so these may follow the devices.
SHARING = ("optim.per_device_train_batch_size", "optim.gradient_accumulation_steps")
LIBRARIES = ("hftransfer", "torch", "transformers", "accelerate", "peft", "tokenizers", "numpy")
# Of each weight so many numbers are hashed, spread over it.
SAMPLED_NUMBERS = 1024
MAX_NAMED = 4


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """The settings that decide the result, by dotted name, as JSON values."""
    values = _flat(recipe.model_dump(mode="json", exclude=set(NOT_PART_OF_THE_RESULT)))
    return {name: value for name, value in values.items() if name not in SHARING}


def json_hash(values: Any) -> str:
    """Hash of JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def data_hash(splits: Sequence[Features]) -> str:
    """Hash of the encoded rows and labels: training data decide the weights, validation data which of them are best."""
    digest = hashlib.sha256()
    for features in splits:
        digest.update(features.offsets_N1.tobytes())
        for name in sorted(features.columns):
            digest.update(features.columns[name].tobytes())
        if features.labels is not None:
            digest.update(features.labels.tobytes())
        for name in (CELLS, ROW_WEIGHTS):
            if name in features.extra:
                digest.update(features.extra[name].tobytes())
    return digest.hexdigest()


def weights_hash(model: nn.Module, learned: Collection[str]) -> str:
    """Hash of the weights that never learn, which no checkpoint holds: a sample of each."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if name not in learned:
            numbers = parameter.detach().flatten()
            sampled = numbers[:: max(1, len(numbers) // SAMPLED_NUMBERS)].contiguous().cpu().view(torch.uint8)
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            digest.update(sampled.numpy().tobytes())
    return digest.hexdigest()


def surroundings(accelerator: Accelerator) -> dict[str, Any]:
    """What does not decide what is computed, but its last bits."""
    return {
        "processes": accelerator.num_processes,
        "mixed_precision": str(getattr(accelerator, "mixed_precision", "no")),
        "device": getattr(getattr(accelerator, "device", None), "type", "cpu"),
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What has changed, as "name: old -> new"."""
    names = dict.fromkeys([*before, *now])
    return [
        f"{name}: {_shown(before.get(name))} -> {_shown(now.get(name))}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def listed(changes: Sequence[str]) -> str:
    """The first few of them on one line."""
    more = f" and {len(changes) - MAX_NAMED} more" if len(changes) > MAX_NAMED else ""
    return ", ".join(changes[:MAX_NAMED]) + more


def _shown(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
