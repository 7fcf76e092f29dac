"""Frozen matrices in the order in which the processor's product kernels read them.

A product of bf16 matrices on a CPU brings the weight into blocks at every call. Of a weight that does not change the
blocks can be kept; the numbers are the same, bit for bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn


def can_pack(weight: torch.Tensor) -> bool:
    """Whether this torch and this processor have such kernels for a weight's dtype and device."""
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():
        return False
    needed = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
    if not all(hasattr(torch.ops.mkldnn, name) for name in needed):
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedProduct:
    """The product of one frozen linear layer, and the one of its gradient.

    Blocks are made when they are first needed: what is computed once and kept runs no layer a second time.
    """

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> None:
        """Take a frozen layer's weights.

        Args:
            weight_OI: A weight for which `can_pack` holds.
            bias_O: The bias in the same dtype, if there is one.
        """
        self.weight_OI, self.bias_O = weight_OI, bias_O
        self.forward_blocks: torch.Tensor | None = None
        self.backward_blocks: torch.Tensor | None = None

    def __call__(self, hidden_BTI: torch.Tensor) -> torch.Tensor:
        """The layer's output for (..., I) of any dtype, as autocast computes it."""
        hidden_BTI = hidden_BTI.to(self.weight_OI.dtype)
        if torch.compiler.is_compiling():
            # The compiler lays the weight out itself, and takes these operators for its own.
            return nn.functional.linear(hidden_BTI, self.weight_OI, self.bias_O)
        if torch.is_grad_enabled() and hidden_BTI.requires_grad:
            return _Differentiable.apply(hidden_BTI, self)  # type: ignore[no-any-return]
        return self.forward(hidden_BTI)

    def forward(self, hidden_BTI: torch.Tensor) -> torch.Tensor:
        """The product without a record for the gradient."""
        if self.forward_blocks is None:
            self.forward_blocks = _in_blocks(self.weight_OI)
        return _product(hidden_BTI, self.forward_blocks, self.bias_O)

    def backward(self, gradient_BTO: torch.Tensor) -> torch.Tensor:
        """The gradient of the input, from that of the output."""
        if self.backward_blocks is None:
            self.backward_blocks = _in_blocks(self.weight_OI.t().contiguous())
        return _product(gradient_BTO, self.backward_blocks, None)


def _in_blocks(weight_OI: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_OI)
    return found


def _product(left_BTI: torch.Tensor, blocks: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(left_BTI, blocks, bias_O, "none", [], "")
    return found


class _Differentiable(torch.autograd.Function):
    """A packed product with the gradient of its input; the weight is frozen."""

    @staticmethod
    def forward(ctx: Any, hidden_BTI: torch.Tensor, product: PackedProduct) -> torch.Tensor:
        ctx.product = product
        return product.forward(hidden_BTI)

    @staticmethod
    def backward(ctx: Any, gradient_BTO: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.product.backward(gradient_BTO), None


def _is_packable(module: nn.Linear) -> bool:
    """A linear layer whose own forward pass nobody has replaced, with nothing in it that learns."""
    if type(module) is not nn.Linear or "forward" in vars(module) or not can_pack(module.weight):
        return False
    return module.bias is None or (module.bias.dtype == module.weight.dtype and not module.bias.requires_grad)


@contextlib.contextmanager
def packed(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let frozen linear layers whose weights were cast to bf16 compute from blocks, where that is possible.

    Args:
        modules: Layers that run under autocast inside the context. Others than `nn.Linear` are left alone.
    """
    changed = [module for module in modules if isinstance(module, nn.Linear) and _is_packable(module)]
    for module in changed:
        # On the instance, as accelerate does it: neither parameters nor their names change.
        module.forward = PackedProduct(module.weight.detach(), module.bias)  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in changed:
            del module.forward
