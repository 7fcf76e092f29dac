"""Optimizer groups: rates by depth, decay where it belongs, every learning parameter once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import Trainer

from hftransfer.strategies import make_strategy
from hftransfer.strategies.param_groups import build_param_groups, decays
from hftransfer.strategies.registry import STRATEGIES
from tests.tiny_models import NUM_BLOCKS, tiny_classifier

HEAD = NUM_BLOCKS + 1
VARIANTS: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in STRATEGIES if name != "gradual_unfreezing"]
VARIANTS += [("lora", {"variant": "dora"}), ("gradual_unfreezing", {"stages": 3})]


def groups_of(name: str, settings: dict[str, Any], **options: Any) -> tuple[Any, list[dict[str, Any]]]:
    strategy = make_strategy(name, **settings)
    model = strategy.apply(tiny_classifier("bert"))
    return model, strategy.param_groups(model, 1e-3, weight_decay=0.1, **options)


@given(
    num_blocks=st.integers(1, 60),
    learning_rate=st.floats(1e-6, 1e-1),
    layer_decay=st.floats(0.3, 1.0),
    head_rate=st.none() | st.floats(1e-6, 1e-1),
)
def test_rates_by_depth(num_blocks: int, learning_rate: float, layer_decay: float, head_rate: float | None) -> None:
    parameters = [(f"layer{depth}.weight", nn.Parameter(torch.zeros(1, 1)), depth) for depth in range(num_blocks + 2)]
    groups = build_param_groups(
        parameters,
        head_depth=num_blocks + 1,
        learning_rate=learning_rate,
        head_learning_rate=head_rate,
        weight_decay=0.01,
        layer_decay=layer_decay,
    )
    assert [group["depth"] for group in groups] == list(range(num_blocks + 2))
    for group in groups[:-1]:
        assert group["lr"] == pytest.approx(learning_rate * layer_decay ** (num_blocks - group["depth"]))
    assert groups[-2]["lr"] == learning_rate
    assert groups[-1]["lr"] == (learning_rate if head_rate is None else head_rate)


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_every_learning_parameter_is_in_exactly_one_group(name: str, settings: dict[str, Any]) -> None:
    model, groups = groups_of(name, settings)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    learning = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
    assert sorted(grouped) == sorted(learning)
    assert all(group["params"] for group in groups)


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_biases_norms_and_learned_scales_do_not_decay(name: str, settings: dict[str, Any]) -> None:
    model, groups = groups_of(name, settings)
    names = {id(parameter): parameter_name for parameter_name, parameter in model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            parameter_name = names[id(parameter)]
            spared = ("bias", "LayerNorm", "ia3_l", "magnitude")
            expected = 0.0 if any(marker in parameter_name for marker in spared) else 0.1
            assert group["weight_decay"] == expected, parameter_name


def test_dora_magnitudes_and_ia3_vectors_are_there_to_be_spared() -> None:
    for settings, marker in ((("lora", {"variant": "dora"}), "magnitude"), (("ia3", {}), "ia3_l")):
        model, _ = groups_of(*settings)
        spared = [(key, parameter) for key, parameter in model.named_parameters() if marker in key]
        assert spared
        assert not any(decays(key, parameter) for key, parameter in spared)


def test_adapters_follow_the_depth_of_their_block() -> None:
    model, groups = groups_of("lora", {}, layer_decay=0.5, head_learning_rate=7e-3)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            index = int(name.split("encoder.layer.")[1].split(".")[0])
            assert rates[id(parameter)] == pytest.approx(1e-3 * 0.5 ** (NUM_BLOCKS - 1 - index))
        elif parameter.requires_grad:
            assert rates[id(parameter)] == 7e-3


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "gpt2", "llama", "modernbert", "bart", "t5"])
def test_decay_split_is_that_of_transformers(family: str) -> None:
    model = tiny_classifier(family)
    ours = {name for name, parameter in model.named_parameters() if decays(name, parameter)}
    # It lists tied parameters under each of their names.
    theirs = set(Trainer.get_decay_parameter_names(None, model)) & dict(model.named_parameters()).keys()
    # transformers spares every name with "bias" in it, such as T5's embedding of relative positions.
    assert {name for name in ours if "relative_attention_bias" not in name} == theirs
