"""The backbone's weights by name, whatever model they are in: copied from one to another, or mixed with older ones.

A name is that of the parameter inside the backbone, so that a classifier and a language model of one family agree.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from hftransfer.errors import CheckpointError
from hftransfer.models.anatomy import Anatomy

MAX_NAMED = 3


def backbone_parameters(model: PreTrainedModel, anatomy: Anatomy) -> dict[str, nn.Parameter]:
    """The parameters of embeddings and blocks by their name inside the backbone; pooler and head are left out.

    Args:
        model: A plain transformers model.
        anatomy: Its anatomy.
    """
    backbone = model.base_model
    path = next(path for path, module in model.named_modules() if module is backbone)
    prefix = f"{path}." if path else ""
    return {
        name.removeprefix(prefix): parameter
        for name, parameter in model.named_parameters()
        if 0 <= anatomy.parameter_depth.get(name, anatomy.head_depth) < anatomy.head_depth
    }


def copied(parameters: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """Copies of parameters on the CPU."""
    return {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}


def check_same_backbone(
    parameters: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor], where: str, what: str
) -> None:
    """Refuse two backbones that are not of one architecture.

    Args:
        parameters: The weights to be replaced or mixed.
        others: The weights to do so with; they may have more.
        where: Where those come from.
        what: What these are, for the message.

    Raises:
        CheckpointError: If a weight is missing or has another shape.
    """
    unlike = [name for name, own in parameters.items() if name not in others or others[name].shape != own.shape]
    if unlike:
        raise CheckpointError(
            f"its backbone is another one than {what}: {', '.join(unlike[:MAX_NAMED])} missing or of another shape",
            where=where,
            fix="give runs of one checkpoint",
        )


@torch.no_grad()
def interpolate(
    parameters: Mapping[str, nn.Parameter],
    old: Mapping[str, torch.Tensor],
    new: Mapping[str, torch.Tensor],
    share: float,
) -> None:
    """Set parameters to (1 - share) * old + share * new (WiSE-FT, arXiv:2109.01903, equation 1), in place.

    At 0 they are the old ones and at 1 the new ones, bit for bit: `torch.lerp` counts from the nearer end.
    """
    for name, parameter in parameters.items():
        parameter.copy_(torch.lerp(old[name], new[name], share))


def untie_head(model: PreTrainedModel) -> None:
    """Give the output embeddings weights of their own, which stay as they are when the input embeddings change."""
    head = model.get_output_embeddings()
    if head is not None:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
