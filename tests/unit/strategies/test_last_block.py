"""The last block for the head's token alone: the same outputs and gradients, and the model comes back as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from hftransfer import make_strategy
from hftransfer.strategies.freezing import attach_anatomy
from hftransfer.strategies.last_block import head_token_only
from tests.tiny_models import FAMILIES, tiny_classifier

APPLIES = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "deberta-v2")


def inputs_of(model: Any) -> dict[str, torch.Tensor]:
    """Two texts of 6 and 3 tokens that end as the heads of BART and T5 want it."""
    end, padding = model.config.eos_token_id or 1, model.config.pad_token_id or 0
    return {
        "input_ids": torch.tensor([[5, 6, 7, 8, 9, end], [9, 10, end, *[padding] * 3]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]),
    }


def outputs_and_gradients(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    logits = model(**inputs_of(model)).logits
    logits.square().sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model: Any, expected: bool) -> None:
    logits, gradients = outputs_and_gradients(model)
    with head_token_only(model) as applies:
        found, found_gradients = outputs_and_gradients(model)
    assert applies is expected
    torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-5)
    assert found_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, atol=1e-5, rtol=1e-4, msg=name)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_outputs_and_gradients_are_those_of_the_whole_block(family: str) -> None:
    model = tiny_classifier(family).eval()
    attach_anatomy(model)
    assert_same(model, family in APPLIES)


@pytest.mark.parametrize("strategy", ["lora", "ia3"])
def test_adapters_in_the_last_block_learn_the_same(strategy: str) -> None:
    model = tiny_classifier("bert")
    anatomy = attach_anatomy(model)
    torch.manual_seed(0)
    assert_same(make_strategy(strategy).apply(model, anatomy).eval(), True)


def test_the_rest_of_the_last_block_sees_one_token() -> None:
    model = tiny_classifier("bert").eval()
    attach_anatomy(model)
    shapes: list[tuple[int, ...]] = []
    last = model.get_submodule("bert.encoder.layer.2.intermediate")
    last.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[:2])))
    with head_token_only(model):
        model(**inputs_of(model))
    model(**inputs_of(model))
    assert shapes == [(2, 1), (2, 6)]


@pytest.mark.parametrize("model_class", ["BertForTokenClassification", "BertForQuestionAnswering", "BertForMaskedLM"])
def test_heads_that_read_all_tokens_get_all(model_class: str) -> None:
    model = getattr(transformers, model_class)(FAMILIES["bert"].config()).eval()
    attach_anatomy(model)
    with head_token_only(model) as applies:
        assert not applies


def test_states_that_are_handed_out_are_whole() -> None:
    model = tiny_classifier("bert").eval()
    attach_anatomy(model)
    model.config.output_hidden_states = True
    with head_token_only(model) as applies:
        assert not applies


def test_a_convolution_beside_the_only_block_reads_all_tokens() -> None:
    config = FAMILIES["deberta-v2"].config(num_hidden_layers=1)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    attach_anatomy(model)
    with head_token_only(model) as applies:
        assert not applies
