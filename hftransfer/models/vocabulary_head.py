"""Logits over the vocabulary where they are needed alone: in a small model that head is most of a step's work.

The hidden states of the other places are left out in front of the model's output embeddings; everything else is left to
transformers, and the weights, class names and what is saved stay as they are.

Shape legend: B rows of a batch, T tokens, D hidden size, V vocabulary, M places whose logits are needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def logits_only_at(model: nn.Module, places_BT: torch.Tensor | None) -> Iterator[None]:
    """Let a forward pass give logits (1, M, V), those of these places row by row, in place of (B, T, V).

    Args:
        model: The model, as it is or in wrappers (PEFT, DDP).
        places_BT: Which places. None changes nothing, and neither does a model without output embeddings or one that
            is compiled: it would be compiled anew for every number of places.
    """
    head = None if places_BT is None else _output_embeddings(model)
    if head is None or places_BT is None:
        yield
        return
    wanted_BT = places_BT

    def keep(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden_BTD, *rest = arguments
        if hidden_BTD.shape[:2] != wanted_BT.shape:
            return None
        return (hidden_BTD[wanted_BT][None], *rest)

    handle = head.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def logits_at(logits: torch.Tensor, places_BT: torch.Tensor) -> torch.Tensor:
    """The logits of these places, (M, V), out of those of all (B, T, V) or of `logits_only_at` (1, M, V)."""
    return logits[places_BT] if logits.shape[:2] == places_BT.shape else logits[0]


def _output_embeddings(model: nn.Module) -> nn.Module | None:
    """What turns hidden states into logits over the vocabulary."""
    inner: Any = model
    while True:
        if hasattr(inner, "_orig_mod"):
            return None
        if not isinstance(getattr(inner, "module", None), nn.Module):
            break
        inner = inner.module
    find: Any = getattr(inner, "get_output_embeddings", None)
    found: nn.Module | None = find() if find else None
    return found
