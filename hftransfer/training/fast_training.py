"""Put the CPU kernels into a model for the length of a training stage, and take them out again.

Weights, class names and what is saved stay as they are, and so does evaluation in fp32, bit for bit: it still runs
through sdpa.

Shape legend: B batch, H heads, T query tokens, S key tokens, D width of a head.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from hftransfer.strategies.freezing import transformers_model
from hftransfer.training import kernels
from hftransfer.training.attention import other_attention
from hftransfer.training.padding import masks_by_padding

ATTENTION = "hftransfer_cpu"

# glibc's mallopt: how much free memory stays with the process, and from what size on a block is mapped on its own.
# Larger blocks, such as logits over a vocabulary, have another size in every step and would leave gaps in the heap.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP, _LARGEST = (1 << 31) - 1, 64 << 20
# Where glibc's own adjustment ends once large blocks have been freed; the state before cannot be read.
_USUAL_TRIM, _USUAL_MMAP = 64 << 20, 32 << 20


@contextlib.contextmanager
def fast_training(model: nn.Module, device_type: str, *, compiled: bool = False) -> Iterator[str]:
    """Train faster for as long as the context lasts: by kernels of our own on a CPU, by known padding on a GPU.

    Args:
        model: The transformers or PEFT model, before it is wrapped.
        device_type: Where it trains.
        compiled: Whether it runs through torch.compile, which makes kernels of its own.

    Yields:
        One line that says what was done on a CPU, "" if nothing was.
    """
    if device_type == "cuda":
        with masks_by_padding(transformers_model(model)):
            yield ""
        return
    if device_type != "cpu" or compiled:
        yield ""
        return
    with contextlib.ExitStack() as stack:
        done = []
        if stack.enter_context(fast_attention(transformers_model(model))):
            done.append("attention with one kernel for its gradient")
        stack.enter_context(kernels.drawing_threads())
        modules = stack.enter_context(fast_dropout(model))
        if modules:
            done.append(f"16-bit dropout in {modules} modules")
        if stack.enter_context(kept_memory()):
            done.append("freed memory kept for the next step")
        yield f"Training on a CPU: {', '.join(done)}" if done else ""


def _forward(self: nn.Dropout, hidden: torch.Tensor) -> torch.Tensor:
    """`forward` of a dropout module."""
    return kernels.dropout(hidden, self.p, self.training)


@contextlib.contextmanager
def fast_dropout(model: nn.Module) -> Iterator[int]:
    """Let the `nn.Dropout` modules of a model, PEFT's too, draw cheaply; the model's structure stays as it is.

    Yields:
        How many modules there are with a rate above 0.
    """
    # Subclasses and modules with a forward of their own mean something else.
    found = [
        module
        for module in model.modules()
        if type(module) is nn.Dropout and module.p > 0 and not module.inplace and "forward" not in module.__dict__
    ]
    for module in found:
        object.__setattr__(module, "forward", types.MethodType(_forward, module))
    try:
        yield len(found)
    finally:
        for module in found:
            module.__dict__.pop("forward", None)


def _gains(query_BHTD: torch.Tensor, key_BHSD: torch.Tensor, value_BHSD: torch.Tensor, dropout: float) -> bool:
    """Whether the kernel is faster than sdpa."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query_BHTD.dtype
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in (query_BHTD, key_BHSD, value_BHSD))
    return (
        kernels.fastest_attention(query_BHTD.device.type, dtype, key_BHSD.shape[2], dropout, learns=learns) == "fused"
    )


def attention_forward(
    module: nn.Module,
    query_BHTD: torch.Tensor,
    key_BHSD: torch.Tensor,
    value_BHSD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The sdpa attention of transformers, or the kernel of `kernels.attention` for a gradient where that is faster.

    Args:
        module: The attention module of the model.
        query_BHTD: Queries.
        key_BHSD: Keys, with fewer heads where heads share them.
        value_BHSD: Values, likewise.
        attention_mask: The mask that `sdpa_mask` made, None where every token is seen or sees its past.
        dropout: Probability that a weight drops, 0 outside training.
        scaling: Factor of the scores.
        is_causal: Whether a token sees its past only, where there is no mask; the module says it otherwise.
        position_bias: Added to the scores.
        **kwargs: What single families pass on.

    Returns:
        (B, T, H, D), and no weights.
    """
    length, keys = query_BHTD.shape[2], key_BHSD.shape[2]
    causal = attention_mask is None and (is_causal if is_causal is not None else getattr(module, "is_causal", True))
    fits = dropout < 1 and not (causal and length != keys) and kwargs.get("softcap") is None
    if not (fits and _gains(query_BHTD, key_BHSD, value_BHSD, dropout)):
        return sdpa_attention_forward(
            module,
            query_BHTD,
            key_BHSD,
            value_BHSD,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            position_bias=position_bias,
            **kwargs,
        )
    groups = query_BHTD.shape[1] // key_BHSD.shape[1]
    context_BHTD = kernels.attention(
        query_BHTD,
        repeat_kv(key_BHSD, groups),
        repeat_kv(value_BHSD, groups),
        mask_BHTS=torch.ones(1, 1, length, keys, dtype=torch.bool).tril() if causal else attention_mask,
        bias_BHTS=position_bias,
        scaling=query_BHTD.shape[-1] ** -0.5 if scaling is None else scaling,
        dropout=dropout,
    )
    return context_BHTD.transpose(1, 2).contiguous(), None


def fast_attention(model: PreTrainedModel) -> contextlib.AbstractContextManager[bool]:
    """Let a model that runs sdpa use the faster kernel for its gradient; gives whether it does."""
    return other_attention(model, ATTENTION, attention_forward, sdpa_mask)


def _allocator() -> Any | None:
    """The allocator of glibc, unless this is another system or somebody has chosen its settings."""
    chosen = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or "malloc" in os.environ.get("LD_PRELOAD", "")
    if sys.platform != "linux" or chosen or any(name.startswith("MALLOC_") for name in os.environ):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt") else None


@contextlib.contextmanager
def kept_memory() -> Iterator[bool]:
    """Keep freed memory in the process: a step frees what the next one needs, and new pages must be cleared first.

    Yields:
        Whether that was possible.
    """
    allocator = _allocator()
    if allocator is None:
        yield False
        return
    # Setting one threshold alone would only freeze the other.
    large_stays = allocator.mallopt(_M_MMAP_THRESHOLD, _LARGEST) or allocator.mallopt(_M_MMAP_THRESHOLD, _USUAL_MMAP)
    kept = bool(large_stays and allocator.mallopt(_M_TRIM_THRESHOLD, _KEEP))
    try:
        yield kept
    finally:
        allocator.mallopt(_M_MMAP_THRESHOLD, _USUAL_MMAP)
        allocator.mallopt(_M_TRIM_THRESHOLD, _USUAL_TRIM)
        allocator.malloc_trim(0)
