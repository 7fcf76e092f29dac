"""What a run writes down for its readers: how often each label occurs, how long the inputs are, and what it ran on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from huggingface_hub import try_to_load_from_cache
from numpy.typing import NDArray

from hftransfer.models.probe import file_hashes, write_probe
from hftransfer.models.save import save_model
from hftransfer.recipe import Recipe
from hftransfer.tasks.base import IGNORED, Features, Ragged, Task
from hftransfer.tasks.registry import saved_settings

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from hftransfer.models.load import LoadedModel

LIBRARIES = ("hftransfer", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "safetensors")
PAIR_TASKS = ("question_answering", "multiple_choice")
"""Tasks whose inputs are pairs of texts; in text classification the columns say so."""


def save_trained(model: nn.Module, task: Task, loaded: LoadedModel, recipe: Recipe, folder: Path) -> dict[str, str]:
    """Save a trained model with its probe.

    Args:
        model: A transformers model, or a PEFT model around one; it is moved to the CPU.
        task: Its task.
        loaded: Where it came from.
        recipe: The resolved recipe.
        folder: Where to.

    Returns:
        The SHA-256 of its weights and vocabularies by file name.
    """
    config = {
        **task.saved_config(),
        **saved_settings(recipe.task),
        "hftransfer_max_length": recipe.data.max_length,
    }
    revision = commit_of(loaded.checkpoint, loaded.revision)
    hashes: dict[str, str] = {}

    def complete(written: Path) -> None:
        write_probe(
            written,
            model,
            loaded.tokenizer,
            task.class_for(loaded.model.config.model_type),
            pairs=task.type in PAIR_TASKS or (task.type == "text_classification" and bool(recipe.data.text_pair)),
            max_length=recipe.data.max_length or 0,
            base={"checkpoint": loaded.checkpoint, "revision": revision},
        )
        hashes.update(file_hashes(written))

    save_model(
        model,
        loaded.tokenizer,
        folder,
        checkpoint=loaded.checkpoint,
        revision=revision,
        config=config,
        complete=complete,
    )
    return hashes


def commit_of(checkpoint: str, revision: str | None) -> str | None:
    """The commit that was read of a checkpoint on the Hub: an adapter is only right on that one.

    Args:
        checkpoint: Its name, or a folder.
        revision: The branch, tag or commit that was asked for.

    Returns:
        The commit, from the Hub's cache; for a folder the revision as it is.
    """
    if os.path.isdir(checkpoint):
        return revision
    found = try_to_load_from_cache(checkpoint, "config.json", revision=revision)
    return Path(found).parent.name if isinstance(found, str) else revision


def data_facts(task: Task, features: Mapping[str, Features]) -> dict[str, Any]:
    """How often each label occurs in each split, and the lengths of the training inputs in tokens.

    Where training data are streamed both are those of their first chunk, and left out.
    """
    names = list(task.config_overrides().get("id2label", {}).values())
    known = {split: rows for split, rows in features.items() if split != "train" or not task.data.streaming}
    counts = {split: label_counts(rows, names) for split, rows in known.items()}
    if "train" not in known:
        return {"labels": counts}
    lengths_N = features["train"].sequence_lengths
    return {
        "labels": {split: count for split, count in counts.items() if count},
        "lengths": {
            "min": int(lengths_N.min()),
            "median": float(np.median(lengths_N)),
            "mean": float(lengths_N.mean()),
            "max": int(lengths_N.max()),
        },
    }


def label_counts(features: Features, names: list[str]) -> dict[str, int]:
    """How many examples have each label, or how many words each tag; empty where labels are no classes.

    Args:
        features: Encoded rows, with class numbers (N,), a row of 0 and 1 per class (N, C), or tags per word.
        names: The names of the classes in order.
    """
    labels = features.labels
    if labels is None or not names:
        return {}
    if isinstance(labels, Ragged):
        found = _class_counts(labels.values[labels.values != IGNORED], len(names))
    else:
        # An example that is read in several windows counts once.
        first = np.unique(features.example_N, return_index=True)[1]
        of_example = labels[first]
        found = of_example.sum(0) if of_example.ndim == 2 else _class_counts(of_example, len(names))
    return {name: int(count) for name, count in zip(names, found, strict=True)}


def _class_counts(labels_N: NDArray[Any], num_classes: int) -> NDArray[np.int64]:
    return np.bincount(labels_N.astype(np.int64), minlength=num_classes)


def environment_facts(accelerator: Accelerator) -> dict[str, str]:
    """Versions, and the device that it ran on."""
    import torch

    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {device.type}"
    versions = {library: importlib.metadata.version(library) for library in LIBRARIES}
    return {"device": name, "python": platform.python_version(), **versions}
