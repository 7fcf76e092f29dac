"""Frozen means frozen: no gradient and no dropout below the boundary, whoever calls `model.train()`."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from hftransfer.models.anatomy import Anatomy, analyse

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A plain attribute of the transformers model, so neither saved nor seen as a submodule.
ANATOMY = "_hftransfer_anatomy"


def transformers_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT model, or the model itself."""
    unwrap: Any = getattr(model, "get_base_model", None)
    inner: Any = unwrap() if unwrap else model
    found: PreTrainedModel = inner
    return found


def attach_anatomy(model: nn.Module, anatomy: Anatomy | None = None) -> Anatomy:
    """Compute the anatomy of a model before anything is inserted into it, and keep it with the model."""
    known = getattr(model, ANATOMY, None)
    anatomy = anatomy or known or analyse(model)  # type: ignore[arg-type]
    object.__setattr__(model, ANATOMY, anatomy)
    return anatomy


def anatomy_of(model: nn.Module) -> Anatomy:
    """The anatomy that `attach_anatomy` kept; PEFT renames parameters, so it cannot be computed afterwards."""
    inner = transformers_model(model)
    return getattr(inner, ANATOMY, None) or attach_anatomy(inner)


def _depth_of_path(path: str, module_depth: Mapping[str, int]) -> int:
    """Depth of the longest known module path that this path starts with (inserted modules belong to their host)."""
    while path not in module_depth:
        path = path.rpartition(".")[0]
    return module_depth[path]


def parameter_depths(model: nn.Module) -> dict[str, int]:
    """Depth of every parameter, inserted ones included, by its name in `model.named_parameters()`."""
    inner = transformers_model(model)
    anatomy = anatomy_of(model)
    inner_depth = {
        id(parameter): anatomy.parameter_depth[name]
        if name in anatomy.parameter_depth
        else _depth_of_path(name, anatomy.module_depth)
        for name, parameter in inner.named_parameters()
    }
    return {name: inner_depth[id(parameter)] for name, parameter in model.named_parameters()}


def _train_but_rest(self: nn.Module, mode: bool = True) -> nn.Module:
    """`train()` of a frozen module: passed on to what it contains, while the module itself stays in eval mode."""
    type(self).train(self, mode)
    self.training = False
    return self


def _set_resting(module: nn.Module, rests: bool) -> None:
    """Keep a module in eval mode, whoever calls `train()` on it or on anything around it; or let it go."""
    if rests:
        object.__setattr__(module, "train", types.MethodType(_train_but_rest, module))
    else:
        module.__dict__.pop("train", None)


def set_boundary(model: nn.Module, boundary: int, learns: Callable[[str, int], bool]) -> None:
    """Freeze what is below the boundary and what `learns` denies; switch the rest to train mode.

    Args:
        model: A transformers or PEFT model.
        boundary: The lowest depth whose modules run in train mode.
        learns: Says of a parameter's name and depth whether it gets gradients.
    """
    inner = transformers_model(model)
    anatomy = anatomy_of(model)
    depths = parameter_depths(model)
    for name, parameter in model.named_parameters():
        # PEFT keeps an untrained copy of modules that it trains (`original_module`): never let it learn.
        parameter.requires_grad_(".original_module." not in name and learns(name, depths[name]))
    for path, module in inner.named_modules():
        _set_resting(module, _depth_of_path(path, anatomy.module_depth) < boundary)
    model.train()


def release(model: nn.Module) -> None:
    """Let all modules go: `train()` is their own again, and whether weights learn stays as it is.

    What keeps a module in eval mode refers to the module: a cycle, which would keep a model that nobody wants any more
    in memory until the next full garbage collection.
    """
    for module in model.modules():
        _set_resting(module, rests=False)
