"""Whether a batch has padding is known on the CPU, where it was put together; nobody need ask the GPU for it.

transformers looks at the mask of every pass to leave it out where it hides nothing, for which the CPU waits, and keeps
it where it cannot look: in a pass that is recorded or compiled. Without a mask attention is faster.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from hftransfer.training.attention import other_attention

ATTENTION = "hftransfer_gpu"

_whole: bool | None = None
"""Whether the batch that runs is known to have no padding, or to have some."""


def without_padding(batch: Mapping[str, torch.Tensor]) -> bool:
    """Whether no row of a batch has padding, on the encoder's side or on the decoder's."""
    return all(bool(tensor.all()) for name, tensor in batch.items() if name.endswith("attention_mask"))


@contextlib.contextmanager
def known_padding(whole: bool) -> Iterator[None]:
    """Say for all passes inside whether their batches have no padding."""
    global _whole
    before, _whole = _whole, whole
    try:
        yield
    finally:
        _whole = before


def _mask(**options: Any) -> torch.Tensor | None:
    """The mask of transformers' sdpa attention, without a look at what is known; called with names alone."""
    if _whole:
        options["attention_mask"] = None
    elif _whole is not None:
        options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(**options)


def masks_by_padding(model: PreTrainedModel) -> contextlib.AbstractContextManager[bool]:
    """Let a model that runs sdpa make its masks by what `known_padding` says; gives whether it does."""
    return other_attention(model, ATTENTION, sdpa_attention_forward, _mask)
