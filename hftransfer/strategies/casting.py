"""Frozen matrices in autocast's dtype, for as long as nobody but autocast reads them.

Autocast keeps the cast of a weight that learns for the length of a forward pass, and casts a frozen one anew at every
use. The numbers are the same: only the moment of the cast moves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hftransfer.strategies.freezing import ANATOMY, transformers_model
from hftransfer.strategies.packing import packed

if TYPE_CHECKING:
    from accelerate import Accelerator

# Modules whose forward pass is one matrix product, for which autocast casts whatever it is given.
PRODUCTS = (nn.Linear, Conv1D)
# A PEFT layer with this (DoRA) reads the weight itself, in full precision.
READS_WEIGHT = "lora_magnitude_vector"
# Attribute of a cast parameter with its own values.
ORIGINAL = "_hftransfer_original"


def own_values(parameter: torch.Tensor) -> torch.Tensor:
    """A parameter's values without what `frozen_weights_cast` made of them: what is to be kept or saved."""
    found: torch.Tensor = getattr(parameter, ORIGINAL, parameter)
    return found.detach()


def castable_modules(model: nn.Module) -> list[nn.Module]:
    """The matrix products whose weight is frozen, in fp32, and read by nothing else."""
    found: list[nn.Module] = []
    read_elsewhere: set[int] = set()
    inner = transformers_model(model)
    # The encoding pass runs the pooling block in full precision.
    anatomy = getattr(inner, ANATOMY, None)
    constant = [] if anatomy is None else [inner.get_submodule(path) for path in anatomy.constant]
    full_precision = {id(module) for block in constant for module in block.modules()}
    for module in model.modules():
        if len(getattr(module, READS_WEIGHT, ())):
            full_precision.update(map(id, module.modules()))
    # T5 asks its `wo` for the dtype of the weight and computes in that.
    kept = set(getattr(inner, "_keep_in_fp32_modules", None) or ())
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if type(module) in PRODUCTS and id(module) not in full_precision and kept.isdisjoint(path.split(".")):
            weight = own["weight"]
            if not weight.requires_grad and weight.dtype == torch.float32:
                found.append(module)
        else:
            read_elsewhere.update(map(id, own.values()))
    return [module for module in found if id(module.weight) not in read_elsewhere]


def autocast_dtype(accelerator: Accelerator) -> torch.dtype | None:
    """The dtype in which autocast multiplies matrices; None without autocast, or where the weights lie in shards."""
    whole = str(accelerator.distributed_type).rpartition(".")[2] in ("NO", "MULTI_CPU", "MULTI_GPU")
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(str(accelerator.mixed_precision)) if whole else None


@contextlib.contextmanager
def frozen_weights_cast(model: nn.Module, dtype: torch.dtype | None) -> Iterator[int]:
    """Hold the weights of frozen matrix products in a dtype; the originals come back at the end, bit for bit.

    Args:
        model: A model that runs under autocast inside the context.
        dtype: Autocast's dtype; None changes nothing.

    Yields:
        How many modules were cast.
    """
    modules = [] if dtype is None else castable_modules(model)
    originals = {}
    for module in modules:
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad and id(parameter) not in originals:
                originals[id(parameter)] = (parameter, parameter.data)
                setattr(parameter, ORIGINAL, parameter.data)
                parameter.data = parameter.data.to(dtype)
    try:
        with packed(modules):
            yield len(modules)
    finally:
        for parameter, data in originals.values():
            parameter.data = data
            delattr(parameter, ORIGINAL)
