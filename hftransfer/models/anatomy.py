"""The structural map of a model: the depth of every parameter and of every module.

Depths: 0 = embeddings, 1..L = blocks (an encoder's first, then a decoder's), L + 1 = pooler and head. The boundary of a
stage is the lowest depth that learns: one comparison, `depth < boundary`, says what is frozen and stays in eval mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from hftransfer.errors import AnatomyError
from hftransfer.models.families import FAMILIES, POOLING_BLOCK_FLAG, Family, Role, Stack

CONSTANT_DEPTH = -1
"""Depth of what never learns: it lies below every boundary."""


@dataclass(frozen=True)
class Anatomy:
    """Where everything is in one model. Paths are those of `model.named_modules()`.

    Args:
        model_class: For example "BertForSequenceClassification".
        embeddings: Modules at depth 0, containers left out.
        blocks: Blocks in depth order: `blocks[i]` has depth `i + 1`, an encoder's before a decoder's.
        num_encoder_blocks: How many of the blocks are an encoder's.
        final_norm: Norms after a stack; each has the depth of the last block of its stack.
        pooler: Pooler inside the backbone, depth L + 1.
        head: Everything outside the backbone, depth L + 1.
        constant: Modules that never learn: the pooling block (`pooling.py`). Not counted in L.
        shared_repeats: How often a shared block is applied in a row (ALBERT), 1 otherwise.
        parameter_depth: Name in `model.named_parameters()` -> depth. A tied parameter has the lowest of its depths.
        module_depth: Path in `model.named_modules()` -> depth. Containers have the depth of what they apply themselves:
            0 for those around the blocks, L + 1 for the model ("").
    """

    model_class: str
    embeddings: tuple[str, ...]
    blocks: tuple[str, ...]
    num_encoder_blocks: int
    final_norm: tuple[str, ...]
    pooler: tuple[str, ...]
    head: tuple[str, ...]
    constant: tuple[str, ...]
    shared_repeats: int
    parameter_depth: Mapping[str, int]
    module_depth: Mapping[str, int]

    @property
    def num_blocks(self) -> int:
        """L, the number of blocks that can learn."""
        return len(self.blocks)

    @property
    def head_depth(self) -> int:
        """L + 1, the depth of pooler and head."""
        return len(self.blocks) + 1

    @cached_property
    def head_parameters(self) -> tuple[str, ...]:
        """Names of the parameters at the head's depth, the pooler's included."""
        return tuple(name for name, depth in self.parameter_depth.items() if depth == self.head_depth)


def analyse(model: PreTrainedModel) -> Anatomy:
    """Find the depth of every parameter and module.

    Args:
        model: A model of a declared family (`families.py`), before PEFT or a distributed wrapper.

    Returns:
        The anatomy of the model.

    Raises:
        AnatomyError: The structure is not fully understood; the message says what was looked for.
    """
    family = _family(model)
    backbone_path = _backbone_path(model)
    stacks = _find_stacks(model, family, backbone_path)
    constant: tuple[str, ...] = ()
    if getattr(model.config, POOLING_BLOCK_FLAG, False):
        stacks[-1], constant = stacks[-1][:-1], stacks[-1][-1:]
    blocks = tuple(path for stack in stacks for path in stack)
    roles = _roles(model, family, backbone_path, (*blocks, *constant))
    containers = _containers((*blocks, *constant), backbone_path)
    module_depth = _module_depths(model, roles, stacks, constant, containers)
    encoder_blocks = sum(len(paths) for stack, paths in zip(family.stacks, stacks, strict=False) if stack.encoder)
    return Anatomy(
        model_class=type(model).__name__,
        embeddings=_with_role(roles, "embeddings"),
        blocks=blocks,
        num_encoder_blocks=encoder_blocks,
        final_norm=_with_role(roles, "final_norm"),
        pooler=_with_role(roles, "pooler"),
        head=_with_role(roles, "head"),
        constant=constant,
        shared_repeats=_shared_repeats(model, family),
        parameter_depth=_parameter_depths(model, module_depth, containers),
        module_depth=module_depth,
    )


def _family(model: PreTrainedModel) -> Family:
    """The declared family of a model, or an error that says why there is none."""
    name = type(model).__name__
    if hasattr(model, "peft_config") or any(type(module).__module__.startswith("peft.") for module in model.modules()):
        raise AnatomyError("PEFT has already changed this model", where=name, fix="compute the anatomy before PEFT")
    if not isinstance(model, PreTrainedModel):
        raise AnatomyError("not a transformers model", where=name, fix="pass the PreTrainedModel, without a wrapper")
    if model.config.model_type not in FAMILIES:
        raise AnatomyError(
            f"model type {model.config.model_type!r} is not understood: no blocks are declared for it",
            where=name,
            fix=f"use one of {', '.join(FAMILIES)}",
        )
    return FAMILIES[model.config.model_type]


def _backbone_path(model: PreTrainedModel) -> str:
    """Path of the backbone, "" when the model is its own backbone."""
    backbone = model.base_model
    return next((path for path, module in model.named_modules() if module is backbone), "")


def _find_stacks(model: PreTrainedModel, family: Family, backbone_path: str) -> list[tuple[str, ...]]:
    """The paths of the blocks of each stack, in depth order."""
    backbone = model.get_submodule(backbone_path)
    stacks = []
    for position, stack in enumerate(family.stacks):
        if position and stack.container not in dict(backbone.named_children()):
            continue
        stacks.append(_find_blocks(model, stack, _join(backbone_path, stack.container)))
    return stacks


def _find_blocks(model: PreTrainedModel, stack: Stack, container_path: str) -> tuple[str, ...]:
    """The paths of the blocks of one stack: the one outermost ModuleList, as long as the config says, of one class."""
    count = _count(model.config, stack.count)
    looked_for = f"one ModuleList of {count} blocks ({stack.count}) under {container_path or 'the model'!r}"
    name = type(model).__name__
    try:
        container = model.get_submodule(container_path)
    except AttributeError:
        raise AnatomyError(f"looked for {looked_for}, which does not exist", where=name) from None
    lists: list[str] = []
    for path, module in container.named_modules(prefix=container_path):
        if isinstance(module, nn.ModuleList) and not any(path.startswith(f"{outer}.") for outer in lists):
            lists.append(path)
    if len(lists) != 1:
        raise AnatomyError(f"looked for {looked_for}, found {lists or 'none'}", where=name)
    blocks = list(model.get_submodule(lists[0]).named_children())
    classes = sorted({type(block).__name__ for _, block in blocks})
    if len(blocks) != count or len(classes) != 1 or classes == ["ModuleList"]:
        raise AnatomyError(f"looked for {looked_for}, found {len(blocks)} of {classes} in {lists[0]!r}", where=name)
    return tuple(f"{lists[0]}.{index}" for index, _ in blocks)


def _count(config: PretrainedConfig, attribute: str) -> int:
    """A layer count of a config."""
    count = getattr(config, attribute, None)
    if not isinstance(count, int) or count < 1:
        raise AnatomyError(f"config.{attribute} is {count!r}, not a number of blocks", where=config.model_type)
    return count


def _containers(blocks: tuple[str, ...], backbone_path: str) -> set[str]:
    """Every module that encloses blocks, the backbone and the model ("") among them."""
    enclosing = {path.rsplit(".", levels)[0] for path in blocks for levels in range(1, path.count(".") + 1)}
    return enclosing | {backbone_path, ""}


def _roles(model: PreTrainedModel, family: Family, backbone_path: str, blocks: tuple[str, ...]) -> dict[str, Role]:
    """The role of every module that hangs directly on the model or on a container of the blocks, in module order."""
    containers = _containers(blocks, backbone_path)
    roles: dict[str, Role] = {}
    unplaced = []
    for container in (path for path, _ in model.named_modules() if path in containers):
        outside_backbone = container == "" != backbone_path
        before_blocks = True
        for child_name, _ in model.get_submodule(container).named_children():
            path = _join(container, child_name)
            declared = family.roles.get(path.removeprefix(f"{backbone_path}."))
            if path in containers or path in blocks:
                before_blocks = False
            elif outside_backbone:
                roles[path] = "head"
            elif declared is not None:
                roles[path] = declared
            elif before_blocks:
                roles[path] = "embeddings"
            else:
                unplaced.append(path)
    if unplaced:
        raise AnatomyError(f"cannot tell the depth of {', '.join(unplaced)}", where=type(model).__name__)
    return roles


def _module_depths(
    model: PreTrainedModel,
    roles: Mapping[str, Role],
    stacks: list[tuple[str, ...]],
    constant: tuple[str, ...],
    containers: set[str],
) -> dict[str, int]:
    """The depth of every module path: that of the placed module it lies in."""
    blocks = [path for stack in stacks for path in stack]
    head_depth = len(blocks) + 1
    depth_of_role: dict[Role, int] = {"embeddings": 0, "first_block": 1, "pooler": head_depth, "head": head_depth}
    placed = {path: index + 1 for index, path in enumerate(blocks)} | dict.fromkeys(constant, CONSTANT_DEPTH)
    placed |= {path: depth_of_role[role] for path, role in roles.items() if role != "final_norm"}
    for norm, stack in zip(_with_role(roles, "final_norm"), stacks, strict=False):
        placed[norm] = placed[stack[-1]]
    # What a container around the blocks applies itself, such as functional dropout, acts on the embeddings.
    placed |= dict.fromkeys(containers, 0) | {"": head_depth}
    depths: dict[str, int] = {}
    for path, _ in model.named_modules():
        depths[path] = placed[path] if path in placed else depths[path.rpartition(".")[0]]
    return depths


def _parameter_depths(model: PreTrainedModel, module_depth: Mapping[str, int], containers: set[str]) -> dict[str, int]:
    """The depth of every parameter: that of its module, the lowest one where it is tied."""
    lowest: dict[int, int] = {}
    unplaced = []
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if path in containers:
                # No declared family keeps parameters there: nothing says at which depth they are used.
                unplaced.append(_join(path, name))
            lowest[id(parameter)] = min(module_depth[path], lowest.get(id(parameter), module_depth[path]))
    if unplaced:
        raise AnatomyError(f"cannot tell the depth of {', '.join(unplaced)}", where=type(model).__name__)
    return {name: lowest[id(parameter)] for name, parameter in model.named_parameters()}


def _shared_repeats(model: PreTrainedModel, family: Family) -> int:
    """How often each block is applied in a row."""
    if family.repeats is None:
        return 1
    applications, groups = _count(model.config, family.repeats), _count(model.config, family.stacks[0].count)
    if applications % groups:
        raise AnatomyError(f"{applications} applications of {groups} shared blocks", where=type(model).__name__)
    return applications // groups


def _with_role(roles: Mapping[str, Role], role: Role) -> tuple[str, ...]:
    """The paths that have this role."""
    return tuple(path for path, its_role in roles.items() if its_role == role)


def _join(parent: str, child: str) -> str:
    """Join two module paths, either of which may be empty."""
    return f"{parent}.{child}" if parent and child else parent or child
