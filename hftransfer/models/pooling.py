"""Which token vector a sequence classification head reads, so that the saved model loads with stock transformers.

Stock heads read one fixed token. Mean pooling is written into the weights of post-norm encoders as one more encoder
block, the pooling block: with query and key zero the attention is uniform over the unmasked tokens, value is the
identity, and the output map is `SCALE` times the identity, so that the token's own vector, which the residual adds,
weighs 1 / SCALE. The feed-forward part is zero. Every token, the first among them, then holds LayerNorm(mean of all
tokens), which the stock head reads.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from transformers import PretrainedConfig, PreTrainedModel

from hftransfer.errors import CheckpointError
from hftransfer.models.anatomy import Anatomy
from hftransfer.models.families import FAMILIES, POOLING_BLOCK_FLAG

Pooling = Literal["own", "cls", "mean", "last"]

SCALE = 100.0
"""Weight of the mean against the token's own vector before the layer norm."""


def available_poolings(config: PretrainedConfig, *, is_classifier: bool) -> tuple[Pooling, ...]:
    """The poolings that a stock model of this config can have.

    Args:
        config: Config of the checkpoint.
        is_classifier: Whether the head is a sequence classification head; other heads have only their own pooling.
    """
    family = FAMILIES.get(config.model_type)
    if family is None or not is_classifier:
        return ("own",)
    if getattr(config, POOLING_BLOCK_FLAG, False):
        return ("own", "mean")
    if hasattr(config, "classifier_pooling"):
        return ("own", "cls", "mean")
    if family.head_token == "last":
        return ("own", "last")
    return ("own", "cls") if family.pooling_block is None else ("own", "cls", "mean")


def configure_pooling(config: PretrainedConfig, pooling: str, *, is_classifier: bool) -> bool:
    """Write a pooling into the config, before the model is built.

    Args:
        config: Changed in place: `classifier_pooling`, or one more block and the flag of the pooling block.
        pooling: One of `Pooling`.
        is_classifier: Whether the head is a sequence classification head.

    Returns:
        Whether a pooling block was added, whose weights `write_pooling_block` must set.

    Raises:
        CheckpointError: The model cannot have this pooling.
    """
    available = available_poolings(config, is_classifier=is_classifier)
    has_block = bool(getattr(config, POOLING_BLOCK_FLAG, False))
    if has_block and not is_classifier:
        raise CheckpointError(
            "this checkpoint ends in a mean-pooling block, so only a sequence classification head can read it",
            where=config.model_type,
            fix="start from the checkpoint it was trained from",
        )
    if pooling not in available:
        known = "" if pooling in get_args(Pooling) else "unknown "
        raise CheckpointError(
            f"{known}pooling {pooling!r} is not available for {config.model_type!r} with this head",
            where="pooling",
            fix=f"use one of {', '.join(available)}",
        )
    if pooling == "own" or has_block:
        return False
    if hasattr(config, "classifier_pooling"):
        config.classifier_pooling = pooling
        return False
    if pooling == "mean":
        config.num_hidden_layers += 1
        setattr(config, POOLING_BLOCK_FLAG, True)
        return True
    return False


@torch.no_grad()
def write_pooling_block(model: PreTrainedModel, anatomy: Anatomy) -> None:
    """Set the weights of the pooling block and freeze them.

    Args:
        model: A model whose config `configure_pooling` gave a pooling block.
        anatomy: Its anatomy, whose `constant` is the pooling block.
    """
    projections = FAMILIES[model.config.model_type].pooling_block
    assert projections is not None, "only families with declared projections get a pooling block"
    (path,) = anatomy.constant
    block = model.get_submodule(path)
    for parameter in block.parameters():
        parameter.zero_()
        parameter.requires_grad_(False)
    for name, scale in ((projections.value, 1.0), (projections.output, SCALE)):
        weight_DD = block.get_parameter(f"{name}.weight")
        weight_DD.copy_(scale * torch.eye(weight_DD.shape[0]))
    for name in projections.norms:
        block.get_parameter(f"{name}.weight").fill_(1.0)
