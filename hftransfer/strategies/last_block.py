"""The last block for the one token that the head reads: what it would make of the others is never looked at.

Behind its attention a block treats every token alone, and three quarters of its arithmetic lie there. A sequence
classifier reads the first token of the last block, so the rest of that block runs on this token only: the outputs and
the gradients are those of the whole block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from hftransfer.models.families import FAMILIES
from hftransfer.strategies.freezing import ANATOMY, transformers_model

READS_ONE_TOKEN = ("ForSequenceClassification", "ForMultipleChoice")


@contextlib.contextmanager
def head_token_only(model: nn.Module) -> Iterator[bool]:
    """Run what follows the attention of the last block on the first token alone, for as long as the context lasts.

    Args:
        model: A transformers model, or a PEFT model around one; another model stays as it is.

    Yields:
        Whether it does: only where the head reads the first token of the blocks' output, and the family declares where
        a block begins to treat every token alone (`Family.token_wise`).
    """
    module = _token_wise_part(transformers_model(model))
    if module is None:
        yield False
        return
    hook = module.register_forward_pre_hook(_first_token)
    try:
        yield True
    finally:
        hook.remove()


def _token_wise_part(inner: nn.Module) -> nn.Module | None:
    """The part of the last block that can run on the first token alone."""
    anatomy, config = getattr(inner, ANATOMY, None), getattr(inner, "config", None)
    family = FAMILIES.get(getattr(config, "model_type", ""))
    if anatomy is None or config is None or family is None or family.token_wise is None or family.head_token != "first":
        return None
    if not anatomy.model_class.endswith(READS_ONE_TOKEN):
        return None
    # The states of all tokens are handed out, or a module beside the first block reads them (DeBERTa's convolution).
    if config.output_hidden_states or (anatomy.num_blocks == 1 and "first_block" in family.roles.values()):
        return None
    return inner.get_submodule(f"{(*anatomy.blocks, *anatomy.constant)[-1]}.{family.token_wise}")


def _first_token(_: nn.Module, args: tuple[Any, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(tensor_BTD[:, :1] for tensor_BTD in args)
