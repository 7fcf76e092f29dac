"""Leave a plain Hugging Face folder that transformers and PEFT load without us.

An adapter folder is complete: `config.json` and `model.safetensors` hold the backbone with the trained head, the
adapter files hold what was inserted. transformers then needs neither the original checkpoint nor the number of labels
to load it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hftransfer.models.quiet import quiet
from hftransfer.safety.files import UNFINISHED

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Prefixes of what PEFT inserts beside the original weights.
INSERTED = ("lora_", "ia3_l")
DORA_MAGNITUDE = ".lora_magnitude_vector"


def save_model(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    checkpoint: str,
    revision: str | None,
    config: Mapping[str, Any],
    complete: Callable[[Path], None] | None = None,
) -> None:
    """Write the model beside its destination and rename, so that the folder is whole or absent.

    Args:
        model: A transformers model, or a PEFT model around one.
        tokenizer: Its tokenizer.
        folder: Where to; replaced if it exists.
        checkpoint: What was fine-tuned, written into an adapter's config.
        revision: Its revision.
        config: More entries for config.json.
        complete: Writes what else belongs into the folder, before it takes its place.
    """
    trained: Any = model
    temporary = folder.with_name(f"{UNFINISHED}{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with quiet():
            inner = trained.get_base_model() if hasattr(model, "get_base_model") else trained
            for name, value in config.items():
                setattr(inner.config, name, value)
            _save_weights(trained, inner, temporary, checkpoint, revision)
            tokenizer.save_pretrained(temporary)
        if complete is not None:
            complete(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        # Nothing is there after the rename.
        shutil.rmtree(temporary, ignore_errors=True)


def _save_weights(model: Any, inner: Any, folder: Path, checkpoint: str, revision: str | None) -> None:
    """Write the transformers model, and beside it the adapter that PEFT put around it."""
    if model is inner:
        inner.save_pretrained(folder)
        return
    inner.save_pretrained(folder, state_dict=plain_state(inner))
    for adapter in model.peft_config.values():
        adapter.base_model_name_or_path, adapter.revision = checkpoint, revision
    # The embeddings are the backbone's own; left to decide, PEFT would look for the checkpoint on the Hub.
    model.save_pretrained(folder, save_embedding_layers=False)
    _name_magnitudes(folder / "adapter_model.safetensors")
    # PEFT writes a card without content; the run writes its own.
    (folder / "README.md").unlink(missing_ok=True)


def plain_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The state of a model that PEFT changed, under its original names: the old backbone with the trained head."""
    state = {}
    for name, tensor in model.state_dict().items():
        if any(marker in name for marker in INSERTED) or ".original_module." in name:
            continue
        state[name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")] = tensor
    return state


def _name_magnitudes(path: Path) -> None:
    """Give DoRA's magnitudes the name that transformers and PEFT both load.

    PEFT writes `lora_magnitude_vector` for what the model calls `lora_magnitude_vector.weight`; transformers does not
    undo this and would leave the magnitudes untrained, with no more than a warning.
    """
    tensors = load_file(path)
    if any(name.endswith(DORA_MAGNITUDE) for name in tensors):
        renamed = {f"{name}.weight" if name.endswith(DORA_MAGNITUDE) else name: tensors[name] for name in tensors}
        save_file(renamed, path, metadata={"format": "pt"})
