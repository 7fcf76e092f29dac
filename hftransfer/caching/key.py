"""What stored states are found by: all that they depend on, besides the row's own inputs."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn

from hftransfer.caching.boundary import Tap
from hftransfer.strategies.freezing import anatomy_of, parameter_depths, transformers_model

if TYPE_CHECKING:
    from accelerate import Accelerator

# What a config says about the head, the training or where it came from; the states do not depend on it.
NOT_IN_KEY = (
    "id2label",
    "label2id",
    "problem_type",
    "architectures",
    "transformers_version",
    "hftransfer_max_length",
    "hftransfer_task",
    "hftransfer_completes",
    "hftransfer_pairs",
    "hftransfer_null_threshold",
    "label_thresholds",
    "use_cache",
    "_name_or_path",
)


def states_key(
    model: nn.Module, tap: Tap, width: int, accelerator: Accelerator, *, format: int | str, checkpoint: str, dtype: str
) -> dict[str, Any]:
    """The key of the states of a model at a boundary.

    Args:
        model: The model.
        tap: Where the states are taken.
        width: Numbers per vector.
        accelerator: Its device and precision compute them.
        format: Counts up when the same key would mean other states.
        checkpoint: Its path or Hub id, of which the last part is kept, for people.
        dtype: In which they are stored.
    """
    config: Any = transformers_model(model).config
    settings = {name: value for name, value in config.to_dict().items() if name not in NOT_IN_KEY}
    return {
        "format": format,
        "checkpoint": checkpoint.rstrip("/").rpartition("/")[2],
        "model": type(transformers_model(model)).__name__,
        "config": hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest(),
        "weights": weights_digest(model, tap),
        "boundary": tap.boundary,
        "head_input": tap.head_input,
        "width": width,
        "dtype": dtype,
        "precision": str(accelerator.mixed_precision),
        "attention": str(config._attn_implementation),
        "device": accelerator.device.type,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def weights_digest(model: nn.Module, tap: Tap) -> str:
    """A hash of every weight below a boundary, and of the pooling block where that is below it, too."""
    inner, depths = transformers_model(model), parameter_depths(transformers_model(model))
    digest = hashlib.sha256()
    constant = tuple(f"{path}." for path in anatomy_of(model).constant)
    above_all = tap.boundary > anatomy_of(model).num_blocks
    for name, parameter in sorted(inner.named_parameters()):
        is_constant = bool(constant) and name.startswith(constant)
        if above_all if is_constant else depths[name] < tap.boundary:
            raw = parameter.detach().cpu().contiguous().view(-1).view(torch.uint8)
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            digest.update(raw.numpy().data)
    return digest.hexdigest()
