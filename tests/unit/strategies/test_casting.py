"""Frozen matrices in autocast's dtype: the same numbers, and the originals come back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hftransfer import Stage, make_strategy
from hftransfer.strategies.casting import castable_modules, frozen_weights_cast
from hftransfer.strategies.freezing import attach_anatomy
from tests.tiny_models import tiny_classifier

INPUTS = {"input_ids": torch.tensor([[5, 6, 7, 1], [9, 10, 11, 1]]), "attention_mask": torch.ones(2, 4).long()}


def prepared(family: str, strategy_type: str, boundary: int, **settings: Any) -> Any:
    model = tiny_classifier(family)
    anatomy = attach_anatomy(model)
    strategy = make_strategy(strategy_type, **settings)
    model = strategy.apply(model, anatomy)
    strategy.enter_stage(model, Stage("here", boundary))
    return model


def loss_and_gradients(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**INPUTS).logits.float().square().sum()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "llama"])
@pytest.mark.parametrize(
    ("strategy_type", "settings"), [("top_layers", {"k": 1}), ("lora", {}), ("lora", {"variant": "dora"})]
)
def test_the_numbers_are_those_of_autocast(family: str, strategy_type: str, settings: dict[str, Any]) -> None:
    model = prepared(family, strategy_type, 2 if strategy_type == "top_layers" else 0, **settings)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss, gradients = loss_and_gradients(model)
    assert gradients
    with frozen_weights_cast(model, torch.bfloat16) as count:
        # DoRA adapts every linear layer of the blocks, so nothing is left to cast but an untrained copy of the head.
        assert count > 0 or "variant" in settings
        found, found_gradients = loss_and_gradients(model)
    assert torch.equal(found, loss)
    assert found_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.equal(found_gradients[name], gradient), name
    for name, parameter in model.named_parameters():
        assert parameter.dtype == before[name].dtype, name
        assert torch.equal(parameter, before[name]), name


def test_what_learns_or_is_read_elsewhere_stays_in_full_precision() -> None:
    model = prepared("bert", "top_layers", 2, k=1)
    with frozen_weights_cast(model, torch.bfloat16):
        for name, parameter in model.named_parameters():
            is_cast = parameter.dtype == torch.bfloat16
            assert is_cast == (not parameter.requires_grad and ".layer." in name and "LayerNorm" not in name), name


def test_a_weight_that_an_embedding_shares_is_left_alone() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(7, 3), torch.nn.Linear(3, 7, bias=False)).requires_grad_(False)
    model[1].weight = model[0].weight
    assert castable_modules(model) == []


def test_without_a_dtype_nothing_changes() -> None:
    model = torch.nn.Linear(3, 2).requires_grad_(False)
    with frozen_weights_cast(model, None) as count:
        assert count == 0
        assert model.weight.dtype == torch.float32


def test_an_error_restores_the_weights() -> None:
    model = torch.nn.Linear(3, 2).requires_grad_(False)

    def fail() -> None:
        with frozen_weights_cast(model, torch.bfloat16):
            assert model.bias.dtype == torch.bfloat16
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert model.weight.dtype == model.bias.dtype == torch.float32
