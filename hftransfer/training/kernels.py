"""What makes a training step slow on a CPU, done cheaper: dropout, and attention that needs a gradient.

Stock dropout draws with `bernoulli_`, 6 ns an element, as much as all the rest of an attention layer at 64 tokens
(pytorch#138199). Stock sdpa has no CPU kernel with dropout, and the backward pass of the one without is slow in bf16.

Shape legend: N elements; B batch, H heads, T query tokens, S key tokens, D width of a head, G = B x H.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

RESOLUTION = 1 << 16
"""Probabilities are multiples of 1/65536: 0.1 becomes 0.100006, and the scale belongs to exactly that value."""

# Elements that one random stream serves; a mask does not depend on the number of threads that draw its streams.
STREAM = 1 << 18

# With fewer threads than this, handing the streams round costs what it gains.
DRAWING_THREADS = 4

# Longest inputs at which the kernel below beat sdpa in forward plus backward, without dropout.
LONGEST_WITHOUT_DROPOUT = {torch.bfloat16: 512, torch.float32: 24}

# Longest inputs at which it beat sdpa where nobody asks for a gradient.
LONGEST_FORWARD = {torch.bfloat16: 32}

# The softmax of bf16 handles what is left over from groups of 32 columns one by one.
BF16_LANES = 32

_threads: ThreadPoolExecutor | None = None


def dropped_values(p: float) -> int:
    """How many of the 65536 values of a 16-bit draw drop an element."""
    return round(p * RESOLUTION)


@contextlib.contextmanager
def drawing_threads() -> Iterator[None]:
    """Draw large masks with as many threads as torch computes with: one would hold up the others on a large machine."""
    global _threads
    if _threads is not None or torch.get_num_threads() < DRAWING_THREADS:
        yield
        return
    with ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="dropout") as _threads:
        try:
            yield
        finally:
            _threads = None


def keep_mask(shape: Sequence[int], dropped: int) -> torch.Tensor:
    """Draw which elements stay.

    numpy's SFC64 makes 16 bits in 0.4 ns, and a comparison by numpy costs a fifth of one by torch.

    Args:
        shape: Shape of the mask.
        dropped: How many of the 65536 values of a 16-bit draw drop an element.

    Returns:
        1 for an element that stays and 0 for one that drops, uint8: floats are multiplied by it faster than by bool.
        A pure function of the state of torch's global generator, which it advances by one draw.
    """
    seed, count = int(torch.randint((1 << 63) - 1, ())), math.prod(shape)
    mask_N = torch.empty(count, dtype=torch.uint8)
    kept_N = mask_N.numpy().view(np.bool_)

    def draw(start: int) -> None:
        size = min(STREAM, count - start)
        draws_N = np.random.SFC64([seed, start // STREAM]).random_raw(-(-size // 4)).view(np.uint16)[:size]
        np.greater_equal(draws_N, dropped, out=kept_N[start : start + size])

    starts = range(0, count, STREAM)
    if _threads is not None and len(starts) > 1:
        list(_threads.map(draw, starts))
    else:
        for start in starts:
            draw(start)
    return mask_N.view(tuple(shape))


def _scale(dropped: int) -> float:
    """What keeps the expectation of a dropped-out tensor."""
    return RESOLUTION / (RESOLUTION - dropped)


class _Dropout(torch.autograd.Function):
    """Dropout that keeps one byte per element for the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, dropped: int) -> torch.Tensor:
        mask = keep_mask(hidden.shape, dropped)
        ctx.save_for_backward(mask)
        ctx.scale = _scale(dropped)
        return (hidden * mask).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (mask,) = ctx.saved_tensors
        return (grad * mask).mul_(ctx.scale), None


def dropout(hidden: torch.Tensor, p: float, training: bool = True) -> torch.Tensor:
    """`torch.nn.functional.dropout`, cheaper on a CPU and stock elsewhere.

    Args:
        hidden: Any floating-point tensor.
        p: Probability that an element drops, to the nearest 1/65536.
        training: Whether anything drops.
    """
    dropped = dropped_values(p)
    if not training or hidden.device.type != "cpu" or dropped == RESOLUTION or torch.compiler.is_compiling():
        return F.dropout(hidden, p, training)
    return _Dropout.apply(hidden, dropped) if dropped else hidden


def fastest_attention(
    device_type: str, dtype: torch.dtype, length: int, dropout: float = 0.0, *, learns: bool = True
) -> Literal["fused", "sdpa"]:
    """Which attention is faster in forward plus backward, or in forward alone.

    Args:
        device_type: "cpu", "cuda", ...
        dtype: What it computes in.
        length: Key tokens.
        dropout: Probability that an attention weight drops.
        learns: Whether there will be a backward pass.

    Returns:
        "fused" for `attention`, "sdpa" for torch's.
    """
    if device_type != "cpu" or dtype not in LONGEST_WITHOUT_DROPOUT:
        return "sdpa"
    if not learns:
        return "fused" if dropout == 0 and length <= LONGEST_FORWARD.get(dtype, 0) else "sdpa"
    return "fused" if dropout > 0 or length <= LONGEST_WITHOUT_DROPOUT[dtype] else "sdpa"


class _Attention(torch.autograd.Function):
    """Attention with dropout in as few passes over the weights as torch's own operators allow."""

    @staticmethod
    def forward(
        ctx: Any,
        query_BHTD: torch.Tensor,
        key_BHSD: torch.Tensor,
        value_BHSD: torch.Tensor,
        mask_BHTS: torch.Tensor | None,
        bias_BHTS: torch.Tensor | None,
        scaling: float,
        dropped: int,
    ) -> torch.Tensor:
        ctx.sizes = (*query_BHTD.shape[:3], key_BHSD.shape[2])
        query_GTD, key_GSD, value_GSD = (
            tensor.reshape(-1, *tensor.shape[2:]) for tensor in (query_BHTD * scaling, key_BHSD, value_BHSD)
        )
        scores_GTS = torch.bmm(query_GTD, key_GSD.transpose(1, 2))
        for addend_BHTS in (mask_BHTS, bias_BHTS):
            if addend_BHTS is not None:
                scores_GTS.view(ctx.sizes).add_(addend_BHTS)
        sums_in = torch.float32 if scores_GTS.dtype == torch.bfloat16 else None
        probs_GTS = torch.softmax(scores_GTS, -1, dtype=sums_in).to(scores_GTS.dtype)
        kept_GTS = keep_mask(probs_GTS.shape, dropped) if dropped else None
        dropped_GTS = probs_GTS if kept_GTS is None else probs_GTS * kept_GTS
        ctx.scaling, ctx.scale = scaling, _scale(dropped)
        ctx.bias_shape = None if bias_BHTS is None else bias_BHTS.shape
        ctx.save_for_backward(query_GTD, key_GSD, value_GSD, probs_GTS, kept_GTS, dropped_GTS)
        # The scale of dropout moves to the outputs, which are fewer.
        context_GTD = torch.bmm(dropped_GTS, value_GSD)
        return (context_GTD if kept_GTS is None else context_GTD.mul_(ctx.scale)).view(*ctx.sizes[:3], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHTD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query_GTD, key_GSD, value_GSD, probs_GTS, kept_GTS, dropped_GTS = ctx.saved_tensors
        batch, heads, length, keys = ctx.sizes
        grad_GTD = grad_BHTD.reshape(-1, length, grad_BHTD.shape[-1])
        if kept_GTS is not None:
            grad_GTD = grad_GTD * ctx.scale
        value_grad_GSD = torch.bmm(dropped_GTS.transpose(1, 2), grad_GTD)
        probs_grad_GTS = torch.bmm(grad_GTD, value_GSD.transpose(1, 2))
        if kept_GTS is not None:
            probs_grad_GTS.mul_(kept_GTS)
        scores_grad_GTS = _softmax_backward(probs_grad_GTS, probs_GTS)
        query_grad_GTD = torch.bmm(scores_grad_GTS, key_GSD).mul_(ctx.scaling)
        key_grad_GSD = torch.bmm(scores_grad_GTS.transpose(1, 2), query_GTD)
        bias_grad_BHTS = None
        if ctx.needs_input_grad[4]:
            bias_grad_BHTS = scores_grad_GTS.view(ctx.sizes).sum_to_size(ctx.bias_shape)
        return (
            query_grad_GTD.view(batch, heads, length, -1),
            key_grad_GSD.view(batch, heads, keys, -1),
            value_grad_GSD.view(batch, heads, keys, -1),
            None,
            bias_grad_BHTS,
            None,
            None,
        )


def _softmax_backward(grad_GTS: torch.Tensor, probs_GTS: torch.Tensor) -> torch.Tensor:
    """Gradient of the softmax's input."""
    backward = torch.ops.aten._softmax_backward_data
    if grad_GTS.dtype == torch.bfloat16 and grad_GTS.shape[-1] % BF16_LANES:
        found: torch.Tensor = backward(grad_GTS.float(), probs_GTS.float(), -1, torch.float32).to(grad_GTS.dtype)
        return found
    found = backward(grad_GTS, probs_GTS, -1, grad_GTS.dtype)
    return found


def attention(
    query_BHTD: torch.Tensor,
    key_BHSD: torch.Tensor,
    value_BHSD: torch.Tensor,
    *,
    mask_BHTS: torch.Tensor | None = None,
    bias_BHTS: torch.Tensor | None = None,
    scaling: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """softmax(query @ key^T * scaling + mask + bias), dropped out, @ value; on a CPU.

    Args:
        query_BHTD: Queries.
        key_BHSD: Keys.
        value_BHSD: Values.
        mask_BHTS: What a query may look at: True, or a float to add. Any size may be 1.
        bias_BHTS: Position bias to add, with a gradient. Any size may be 1.
        scaling: Factor of the scores.
        dropout: Probability that a weight drops, to the nearest 1/65536; below 1.

    Returns:
        (B, H, T, D) in autocast's dtype, or in the queries' without autocast.
    """
    # A custom function is nothing that autocast knows.
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query_BHTD.dtype
    query_BHTD, key_BHSD, value_BHSD = (tensor.to(dtype) for tensor in (query_BHTD, key_BHSD, value_BHSD))
    # The lowest finite number, as in transformers: a row that may look at nothing must not become NaN.
    lowest = torch.finfo(dtype).min
    if mask_BHTS is not None and mask_BHTS.dtype == torch.bool:
        mask_BHTS = torch.zeros(mask_BHTS.shape, dtype=dtype).masked_fill_(~mask_BHTS, lowest)
    elif mask_BHTS is not None:
        mask_BHTS = mask_BHTS.clamp(min=lowest).to(dtype)
    if bias_BHTS is not None:
        bias_BHTS = bias_BHTS.to(dtype)
    with torch.autocast("cpu", enabled=False):
        context_BHTD: torch.Tensor = _Attention.apply(
            query_BHTD, key_BHSD, value_BHSD, mask_BHTS, bias_BHTS, scaling, dropped_values(dropout)
        )
    return context_BHTD
