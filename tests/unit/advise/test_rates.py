"""Measured rates: of the model's own passes, which leave the model as it was."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hftransfer.advise import rates
from hftransfer.advise.cost import Rates
from hftransfer.advise.rates import predict_cost, state_bytes
from hftransfer.recipe import Recipe
from hftransfer.strategies import build_strategy
from tests.tiny_models import tiny_classifier

LENGTHS = np.asarray([5, 9, 12, 20] * 10)


def predict(strategy, family="bert", model=None, **settings):
    recipe = Recipe(checkpoint="x", strategy=strategy, optim={"num_train_epochs": 4, "per_device_train_batch_size": 4})
    built = build_strategy(recipe.strategy)
    model = built.apply(model or tiny_classifier(family))
    return predict_cost(recipe, built, model, LENGTHS, LENGTHS[:8], seconds=0.01, **settings), model


@pytest.mark.parametrize(
    "strategy", ["feature_extraction", "top_layers", "gradual_unfreezing", "full_fine_tuning", "lora"]
)
def test_every_strategy_has_a_cost(strategy):
    cost, _ = predict(strategy)
    assert all(math.isfinite(value) and value >= 0 for value in (cost.encoding_seconds, cost.evaluating_seconds))
    assert cost.training_seconds > 0
    assert cost.memory_bytes > 0
    assert (cost.cache_bytes > 0) == (strategy in ("feature_extraction", "top_layers", "gradual_unfreezing"))


@pytest.mark.parametrize("family", ["gpt2", "t5", "bart", "albert", "modernbert"])
def test_other_families_are_measured_too(family):
    cost, _ = predict("feature_extraction", family)
    assert cost.seconds > 0


def test_the_model_is_left_as_it_was():
    model = tiny_classifier("bert")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    _, after = predict("gradual_unfreezing", model=model)
    assert after is model
    assert torch.equal(torch.get_rng_state(), state)
    assert [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])] == []
    assert all(parameter.grad is None for parameter in model.parameters())
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert learning
    assert not any("encoder.layer" in name for name in learning), "not left in the first stage"
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_more_examples_and_more_devices():
    many, _ = predict("full_fine_tuning", train_examples=10**9)
    assert many.training_seconds > 1e5
    assert many.operations > 1e12


def predicted(monkeypatch, strategy, optim, evaluation):
    """The cost at rates that are the same whatever is measured."""
    monkeypatch.setattr(rates, "measure_rates", lambda *args, **options: Rates(1e9, 1e9, 1e9))
    recipe = Recipe(checkpoint="x", strategy=strategy, optim=optim, evaluation=evaluation)
    built = build_strategy(recipe.strategy)
    return predict_cost(recipe, built, built.apply(tiny_classifier("bert")), LENGTHS, LENGTHS[:8])


def test_evaluations_are_those_of_the_recipe(monkeypatch):
    def seconds(optim, **evaluation):
        optim = {"per_device_train_batch_size": 4, **optim}
        return predicted(monkeypatch, "full_fine_tuning", optim, evaluation).evaluating_seconds

    # 40 examples: 10 steps an epoch.
    once = seconds({"num_train_epochs": 1})
    assert seconds({"num_train_epochs": 4}) == pytest.approx(4 * once)
    assert seconds({"num_train_epochs": 4}, every=20) == pytest.approx(2 * once)
    assert seconds({"num_train_epochs": 4}, every=15) == pytest.approx(3 * once), "and once at the end"
    assert seconds({"num_train_epochs": 4, "max_steps": 3}) == pytest.approx(once)


def test_pairs_are_counted_and_scored_at_the_end(monkeypatch):
    optim = {"num_train_epochs": 1}
    full = predicted(monkeypatch, "full_fine_tuning", optim, {})
    pairs = predicted(monkeypatch, {"type": "contrastive", "pairs": 3}, optim, {})
    assert pairs.training_seconds == pytest.approx(6 * full.training_seconds, rel=0.05)
    assert pairs.evaluating_seconds == pytest.approx(full.evaluating_seconds)
    short = predicted(monkeypatch, {"type": "contrastive", "pairs": 3}, {**optim, "max_steps": 1}, {})
    assert short.training_seconds < full.training_seconds


@pytest.mark.parametrize(
    ("dtype", "computed", "expected"), [(None, 2, 2), (None, 4, 4), ("fp32", 2, 4), ("bf16", 4, 2)]
)
def test_a_kept_number_has_the_size_that_the_recipe_says(dtype, computed, expected):
    assert state_bytes(dtype, computed) == expected
