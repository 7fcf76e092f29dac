"""Frozen linear layers on packed weights: autocast's own numbers, and nothing of it stays."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from hftransfer.strategies.packing import PackedProduct, can_pack, packed

needs_bf16_kernels = pytest.mark.skipif(
    not can_pack(torch.zeros(2, 2, dtype=torch.bfloat16)), reason="this processor has no product kernels for bf16"
)


def frozen(inputs: int = 8, outputs: int = 4, dtype: torch.dtype = torch.bfloat16) -> nn.Linear:
    return nn.Linear(inputs, outputs, dtype=dtype).requires_grad_(False)


@needs_bf16_kernels
@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    leading=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    has_bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_output_and_gradient_are_those_of_autocast(
    sizes: tuple[int, int], leading: list[int], has_bias: bool, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = nn.Linear(*sizes, bias=has_bias, dtype=torch.bfloat16).requires_grad_(False)
    hidden = torch.randn(*leading, sizes[0]).to(dtype)
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    found = PackedProduct(layer.weight, layer.bias)(ours)
    with torch.autocast("cpu", torch.bfloat16):
        expected = functional.linear(theirs, layer.weight, layer.bias)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    gradient = torch.randn_like(expected)
    found.backward(gradient)
    expected.backward(gradient)
    assert torch.equal(ours.grad, theirs.grad)


@needs_bf16_kernels
def test_no_blocks_for_a_product_that_nobody_asks_for() -> None:
    product = PackedProduct(frozen().weight, None)
    assert product.forward_blocks is None
    with torch.inference_mode():
        product(torch.ones(3, 8))
    assert product.forward_blocks is not None
    assert product.backward_blocks is None
    product(torch.ones(3, 8).requires_grad_()).sum().backward()
    assert product.backward_blocks is not None


@needs_bf16_kernels
def test_a_layer_is_as_before_afterwards() -> None:
    layer = frozen()
    with packed([layer]):
        assert isinstance(layer.forward, PackedProduct)
        assert list(layer.state_dict()) == ["weight", "bias"]
    assert "forward" not in vars(layer)

    def fail() -> None:
        with packed([layer]):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert "forward" not in vars(layer)


@needs_bf16_kernels
def test_what_learns_or_has_a_forward_pass_of_its_own_is_left_alone() -> None:
    full_precision, learns, replaced = frozen(dtype=torch.float32), frozen(), frozen()
    learns.bias.requires_grad_(True)
    forward = replaced.forward = lambda hidden: hidden
    with packed([full_precision, learns, replaced, nn.LayerNorm(4)]):
        assert "forward" not in vars(full_precision)
        assert "forward" not in vars(learns)
        assert replaced.forward is forward
    assert replaced.forward is forward


def test_without_kernels_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    layer = frozen()
    with packed([layer]):
        assert "forward" not in vars(layer)


@needs_bf16_kernels
def test_a_compiler_sees_a_plain_product() -> None:
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    product = PackedProduct(frozen().weight, None)
    hidden = torch.ones(3, 8).requires_grad_()
    compiled = torch.compile(lambda hidden: product(hidden), backend=backend)
    assert torch.equal(compiled(hidden), product(hidden))
    assert any("linear" in name for name in seen)
    assert not any("mkldnn" in name for name in seen)
