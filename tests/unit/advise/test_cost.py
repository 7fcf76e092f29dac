"""The cost model against what torch counts, and against figures worked out by hand."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForSequenceClassification

from hftransfer.advise import cost
from hftransfer.advise.cost import Plan, Rates, Setting, Shape, Texts
from hftransfer.errors import AnatomyError
from hftransfer.strategies import make_strategy
from hftransfer.strategies.freezing import anatomy_of
from tests.tiny_models import FAMILIES, tiny_model

SHAPE = Shape(
    width=8,
    inner=32,
    blocks=4,
    block_matrices=768,
    block_parameters=3200,
    embedding_parameters=1000,
    head_parameters=100,
)
TRAIN, VALIDATION = Texts(1000, 10.0, 100.0), Texts(100, 10.0, 100.0)
RATES = Rates(forward=1e6, training=5e5, updates=1e6)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_counted_from_the_config(family):
    # The families' own sizes: in a tiny model biases would weigh too much.
    config = AutoConfig.for_model(family)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    expected = sum(parameter.numel() for parameter in model.parameters())
    assert cost.shape_of(config.to_dict()).parameters == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama", "distilbert", "electra"])
@pytest.mark.parametrize(("boundary", "cached"), [(0, False), (3, False), (4, False)])
def test_operations_are_those_that_torch_counts(family, boundary, cached):
    model = (
        tiny_model(
            AutoModelForSequenceClassification, family, 0.0, pad_token_id=0, hidden_size=64, attn_implementation="eager"
        )
        if family not in ("gpt2", "distilbert")
        else tiny_model(AutoModelForSequenceClassification, family, 0.0, pad_token_id=0, attn_implementation="eager")
    )
    shape = cost.shape_of(model.config.to_dict(), 2)
    ids_BT = torch.randint(10, 100, (8, 32))
    batch = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
    texts = Texts(8, 32.0, 32.0**2)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(**batch)
    head = 2 * 8 * shape.head_parameters
    assert 8 * cost.forward_operations(shape, texts, shape.blocks) == pytest.approx(
        forward.get_total_flops(), rel=0.1, abs=2 * head
    )
    anatomy = anatomy_of(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(anatomy.parameter_depth[name] >= boundary)
    with FlopCounterMode(display=False) as training:
        model(**batch).logits.sum().backward()
    plan = Plan(boundary, 1.0, 1)
    found = 8 * cost.training_operations(shape, texts, plan, cached=cached)
    assert found == pytest.approx(training.get_total_flops(), rel=0.15, abs=4 * head)


def test_the_operations_of_a_text_by_hand():
    texts = Texts(1, 3.0, 9.0)
    one_block = 2 * 3 * 768 + 4 * 9 * 8
    assert cost.forward_operations(SHAPE, texts, 2) == 2 * one_block
    full = cost.training_operations(SHAPE, texts, Plan(0, 1.0, 1), cached=False)
    assert full == 4 * 3 * one_block + 600
    top = Plan(4, 1.0, 1)
    assert cost.training_operations(SHAPE, texts, top, cached=True) == 3 * one_block + 600
    assert cost.training_operations(SHAPE, texts, top, cached=False) == (3 + 3) * one_block + 600
    adapters = replace(Plan(1, 1.0, 1), weight_gradients=False)
    assert cost.training_operations(SHAPE, texts, adapters, cached=False) == full - 4 * 2 * 3 * 768
    assert (
        cost.training_operations(SHAPE, texts, Plan(0, 1.0, 1), cached=False, recompute=True) == 4 * 4 * one_block + 600
    )


def test_memory_by_hand():
    plan, setting = Plan(0, 1.0, 4300), Setting(epochs=1, batch_size=2)
    found = cost.memory(SHAPE, TRAIN, plan, setting)
    per_token = (18 * 8 + 4 * 32) * 2
    assert found == {
        "weights": 4 * 4300,
        "gradients": 4 * 4300,
        "moments": 8 * 4300,
        "activations": 2 * 10 * 4 * per_token,
    }
    sharded = cost.memory(SHAPE, TRAIN, plan, replace(setting, devices=4, sharded=True))
    assert sharded == {**found, "weights": 4300, "gradients": 4300, "moments": 2 * 4300}
    assert cost.memory(SHAPE, TRAIN, plan, replace(setting, activation_bytes=2))["weights"] == 6 * 4300
    assert cost.memory(SHAPE, TRAIN, Plan(4, 1.0, 900), setting)["activations"] == 2 * 10 * per_token
    recomputed = cost.memory(SHAPE, TRAIN, plan, replace(setting, recompute=True))
    assert recomputed["activations"] == 2 * 10 * (4 * 8 * 4 + per_token)


def test_communication_by_hand():
    plan, setting = Plan(0, 1.0, 4300), Setting(epochs=1, batch_size=2, devices=4)
    assert cost.synchronising_seconds(plan, SHAPE, setting, 100.0) == pytest.approx(2 * 0.75 * 4 * 4300 / 100)
    sharded = replace(setting, sharded=True)
    assert cost.synchronising_seconds(plan, SHAPE, sharded, 100.0) == pytest.approx(0.75 * 12 * 4300 / 100)
    assert cost.synchronising_seconds(plan, SHAPE, setting, None) == 0.0
    assert cost.synchronising_seconds(plan, SHAPE, replace(setting, devices=1), 100.0) == 0.0


def estimate(plans, rates=RATES, **settings):
    setting = Setting(**{"epochs": 3, "batch_size": 10, **settings})
    return cost.estimate(SHAPE, plans, TRAIN, VALIDATION, setting, [rates] * len(plans))


def test_the_sum_by_hand():
    plan = Plan(5, 1.0, 100)
    found = estimate([plan])
    prefix = cost.forward_operations(SHAPE, TRAIN, 4)
    assert found.encoding_seconds == pytest.approx(1100 * prefix / 1e6)
    assert found.training_seconds == pytest.approx(300 * (10 * 600 / 5e5 + 100 / 1e6))
    assert found.evaluating_seconds == 0.0
    # One vector of 8 numbers for every text.
    assert found.cache_bytes == 1100 * 8 * 4
    assert found.seconds == found.encoding_seconds + found.training_seconds


def test_what_makes_a_training_cheaper_and_what_does_not():
    full, top = Plan(0, 1.0, 4300), Plan(4, 1.0, 900)
    assert (
        estimate([top]).training_seconds
        < estimate([top], cached=False).training_seconds
        < estimate([full]).training_seconds
    )
    assert estimate([full], devices=2).training_seconds == pytest.approx(estimate([full]).training_seconds / 2)
    assert estimate([full], devices=2).operations == pytest.approx(estimate([full]).operations)
    assert estimate([full], epochs=6).training_seconds == pytest.approx(2 * estimate([full]).training_seconds)
    slow_link = replace(RATES, link=1.0)
    assert estimate([full], slow_link, devices=2).training_seconds > 1000 * estimate([full], devices=2).training_seconds
    # One pass serves both boundaries, which are both kept.
    stages = [Plan(5, 0.5, 100), Plan(4, 0.5, 900)]
    assert estimate(stages).encoding_seconds == estimate([Plan(5, 1.0, 100)]).encoding_seconds
    assert estimate(stages).cache_bytes == 1100 * 8 * 4 + 1100 * 10 * 8 * 4
    assert estimate(stages).memory_bytes == estimate([Plan(4, 1.0, 900)]).memory_bytes


def test_validation_data_are_scored_as_often_as_is_said():
    full = Plan(0, 1.0, 4300)
    each = 100 * cost.forward_operations(SHAPE, VALIDATION, 4) / 1e6
    assert estimate([full], epochs=50).evaluating_seconds == pytest.approx(50 * each)
    few = estimate([full], epochs=50, evaluations=5)
    assert few.evaluating_seconds == pytest.approx(5 * each)
    assert few.training_seconds == estimate([full], epochs=50).training_seconds
    stages = [Plan(0, 1.0, 4300), Plan(5, 0.0, 100)]
    assert estimate(stages, epochs=20, evaluations=1).evaluating_seconds == pytest.approx(each)


def test_the_cache_needs_a_second_pass():
    top = Plan(4, 1.0, 900)
    assert estimate([top], epochs=1).encoding_seconds == estimate([top], epochs=1).cache_bytes == 0
    assert estimate([top], epochs=2).encoding_seconds > 0
    # Two thirds of an epoch on frozen blocks, whatever comes afterwards.
    late = [Plan(4, 1 / 3, 900), Plan(0, 2 / 3, 4300)]
    assert estimate(late, epochs=2).encoding_seconds == 0
    assert estimate(late, epochs=4).encoding_seconds > 0
    assert estimate([top], devices=2, sharded=True).cache_bytes == 0


def test_stages_of_strategies_become_plans():
    model = tiny_model(AutoModelForSequenceClassification, "bert")
    anatomy, shape = anatomy_of(model), cost.shape_of(model.config.to_dict(), 2)
    (full,) = cost.plan_stages(make_strategy("full_fine_tuning").stages(anatomy), shape)
    assert full.learned == shape.parameters
    probe, rest = cost.plan_stages(make_strategy("lp_ft").stages(anatomy), shape)
    assert (probe.learned, probe.frozen_blocks(shape), rest.frozen_blocks(shape)) == (shape.head_parameters, 3, 0)
    assert probe.share + rest.share == pytest.approx(1.0)
    (lora,) = cost.plan_stages(make_strategy("lora").stages(anatomy), shape, adapters=500)
    assert (lora.learned, lora.weight_gradients) == (500 + shape.head_parameters, False)


def test_padding_is_that_of_the_batches():
    assert cost.padded_texts(np.full(100, 7), 8) == Texts(100, 7.0, 49.0)
    mixed = np.asarray([2, 30] * 50)
    assert cost.padded_texts(mixed, 100).tokens == 30.0
    assert 16.0 <= cost.padded_texts(mixed, 4).tokens < 18.0
    assert cost.padded_texts(mixed, 4, count=10**9).count == 10**9


def test_a_config_without_sizes_is_refused():
    with pytest.raises(AnatomyError, match="does not say how large"):
        cost.shape_of({"vocab_size": 10})


def test_it_needs_no_torch():
    code = "import sys, hftransfer.advise.cost; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
