"""Another attention in a model, for as long as a context lasts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel


@contextlib.contextmanager
def other_attention(model: PreTrainedModel, name: str, forward: Any, mask: Any) -> Iterator[bool]:
    """Let a model that runs transformers' sdpa attention run another one.

    Args:
        model: The transformers model.
        name: What the other attention is called.
        forward: It.
        mask: Makes its masks.

    Yields:
        Whether it does. A model that does not run sdpa in all its parts keeps what it has: its family has no choice, or
        its user chose.
    """
    inner = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    if any(module.config._attn_implementation != "sdpa" for module in inner):
        yield False
        return
    AttentionInterface.register(name, forward)
    AttentionMaskInterface.register(name, mask)
    model.set_attn_implementation(name)
    try:
        yield True
    finally:
        model.set_attn_implementation("sdpa")
