"""How a checkpoint's weights differ from a model's, what of that is accepted, and how the rest is initialised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from hftransfer.errors import CheckpointError
from hftransfer.models.anatomy import Anatomy
from hftransfer.models.families import FAMILIES


@dataclass(frozen=True)
class Differences:
    """How the weights of a checkpoint differ from those of the model: names missing, unexpected, of another shape."""

    missing: frozenset[str]
    unexpected: frozenset[str]
    mismatched: frozenset[str]


def check_differences(
    differences: Differences,
    model: PreTrainedModel,
    anatomy: Anatomy,
    name: str,
    *,
    may_lack_head: bool = True,
    may_lack_constant: bool = False,
) -> None:
    """Refuse weights that differ from the model's in more than a new head and the heads of other tasks.

    Args:
        differences: How the weights differ.
        model: The model that was loaded.
        anatomy: Its anatomy.
        name: The checkpoint, for the message.
        may_lack_head: Whether head and pooler may be new and those of other tasks left behind.
        may_lack_constant: Whether the pooling block may be missing.

    Raises:
        CheckpointError: With both sides, shortened.
    """
    replaceable = (*anatomy.head, *anatomy.pooler) if may_lack_head else ()
    lackable = (*replaceable, *anatomy.constant) if may_lack_constant else replaceable
    missing = {key for key in differences.missing if not _lies_in(key, lackable)}
    missing |= {f"{key} (another shape)" for key in differences.mismatched if not _lies_in(key, replaceable)}
    unexpected = {key for key in differences.unexpected if not (may_lack_head and _is_foreign_head(key, model))}
    if missing or unexpected:
        raise CheckpointError(
            f"the weights do not fit {anatomy.model_class}: the model lacks {_shorten(missing)}; "
            f"the checkpoint has in excess {_shorten(unexpected)}",
            where=name,
            fix="check that config.json belongs to these weights",
        )


def _is_foreign_head(key: str, model: PreTrainedModel) -> bool:
    """Whether a weight that the model has no place for belongs to another task: outside the backbone, or in its pooler.

    A stack that the task does not use, such as T5's decoder under token classification, counts as another task's too.
    """
    family = FAMILIES[model.config.model_type]
    prefix = f"{model.base_model_prefix}."
    first = key.removeprefix(prefix).split(".")[0]
    parts = {name for name, _ in model.base_model.named_children()}
    if first in parts:
        return False
    unused = {path for path, role in family.roles.items() if role == "pooler"} | {
        stack.container for stack in family.stacks
    }
    return first in unused or not key.startswith(prefix)


def fresh_parameters(
    model: PreTrainedModel, anatomy: Anatomy, differences: Differences, *, same_head: bool, new_pooler: bool
) -> set[str]:
    """The parameters to initialise: what the checkpoint lacks, and a head that was trained for other labels.

    Args:
        model: The loaded model.
        anatomy: Its anatomy.
        differences: What the checkpoint lacks.
        same_head: Whether the checkpoint's head is of the same class with the same labels.
        new_pooler: Whether a pretrained pooler now reads another input than it was trained on.
    """
    constant = {name for name in anatomy.parameter_depth if _lies_in(name, anatomy.constant)}
    fresh = (differences.missing | differences.mismatched) & set(anatomy.parameter_depth) - constant
    pretrained = FAMILIES[model.config.model_type].pretrained_head
    # A head over the vocabulary has no labels: language modelling is what the checkpoint was pretrained for.
    label_modules = () if model.get_output_embeddings() else tuple(set(anatomy.head) - set(pretrained))
    label_head = {name for name in anatomy.head_parameters if _lies_in(name, label_modules)}
    if not same_head or fresh & label_head:
        fresh |= label_head
    if new_pooler:
        fresh |= {name for name in anatomy.head_parameters if _lies_in(name, anatomy.pooler)}
    return set(fresh)


def initialise(model: PreTrainedModel, fresh: Iterable[str], seed: int) -> None:
    """Initialise these parameters as transformers does for this class, from `seed` alone.

    transformers skips what carries its mark `_is_hf_initialized`, on modules and on tensors. Some families initialise a
    head only when given the whole model, so the marks, not a choice of modules, decide what changes.
    """
    fresh = set(fresh)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    marked: list[Any] = [*tensors.values(), *model.modules()]
    for name, tensor in tensors.items():
        tensor._is_hf_initialized = name not in fresh  # type: ignore[attr-defined]
    for path, module in model.named_modules():
        module._is_hf_initialized = not any(_lies_in(name, (path,)) for name in fresh)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.initialize_weights()
    for item in marked:
        del item._is_hf_initialized


def check_adapter_saves(adapter: Mapping[str, Any], fresh: Iterable[str], folder: str) -> None:
    """Refuse an adapter that does not bring the weights its base lacks: they would be random."""
    saved = tuple(adapter.get("modules_to_save") or ())
    lost = {name for name in fresh if not any(f".{module}." in f".{name}" for module in saved)}
    if lost:
        raise CheckpointError(f"neither the base model nor the adapter holds {_shorten(lost)}", where=folder)


def _lies_in(name: str, modules: Iterable[str]) -> bool:
    """Whether a parameter name lies inside one of these module paths."""
    return any(not module or name.startswith(f"{module}.") for module in modules)


def _shorten(names: Iterable[str], most: int = 3) -> str:
    """The first few of many names, on one line."""
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return (", ".join(ordered[:most]) + more) or "nothing"
