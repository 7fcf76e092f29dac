"""Defaults per strategy and the origin of every value."""

from __future__ import annotations

from typing import get_args

import pytest

from hftransfer.recipe import Recipe
from hftransfer.strategy_settings import StrategySettings
from hftransfer.training.defaults import STRATEGY_DEFAULTS, derive, evaluations_of, flatten, resolve, schedule_of
from hftransfer.training_settings import OptimSection

# A section may serve several strategies.
TYPES = [
    name
    for part in get_args(get_args(StrategySettings)[0])
    for name in get_args(part.model_fields["type"].annotation)
    # Replaced by another before defaults are filled in.
    if name != "auto"
]


def test_every_strategy_has_defaults():
    assert sorted(TYPES) == sorted(STRATEGY_DEFAULTS)


@pytest.mark.parametrize("strategy", TYPES)
def test_the_defaults_fill_what_is_open_and_are_valid(strategy):
    recipe, origins = resolve(Recipe(checkpoint="x", strategy=strategy))
    for name in ("learning_rate", "num_train_epochs", "warmup_ratio", "weight_decay", "layer_decay"):
        assert getattr(recipe.optim, name) == getattr(STRATEGY_DEFAULTS[strategy], name)
        assert origins[f"optim.{name}"] == f"default of {strategy}"
    assert Recipe(**recipe.model_dump()) == recipe
    assert origins.keys() == flatten(recipe).keys()


@pytest.mark.parametrize("strategy", TYPES)
def test_a_head_alone_keeps_its_last_weights_unless_told_otherwise(strategy):
    recipe, origins = resolve(Recipe(checkpoint="x", strategy=strategy))
    assert recipe.evaluation.keep == ("last" if strategy in ("feature_extraction", "contrastive") else "best")
    assert origins["evaluation.keep"] == f"default of {strategy}"
    for evaluation, kept in (
        ({"keep": "best"}, "best"),
        ({"early_stopping_patience": 2}, "best"),
        ({"keep": "last"}, "last"),
        ({"keep": "ema", "early_stopping_patience": 2}, "ema"),
    ):
        assert resolve(Recipe(checkpoint="x", strategy=strategy, evaluation=evaluation))[0].evaluation.keep == kept


def test_what_was_given_stays_zero_included():
    given = OptimSection(learning_rate=3e-5, weight_decay=0.0, warmup_ratio=0.0)
    recipe, origins = resolve(Recipe(checkpoint="x", strategy="lora", optim=given))
    assert (recipe.optim.learning_rate, recipe.optim.weight_decay, recipe.optim.warmup_ratio) == (3e-5, 0.0, 0.0)
    assert origins["optim.weight_decay"] == origins["strategy.type"] == origins["checkpoint"] == "given"
    assert origins["seed"] == "default"


def test_the_command_line_says_where_values_come_from():
    recipe = Recipe(checkpoint="x", optim={"learning_rate": 1e-4})
    _, origins = resolve(recipe, {"optim.learning_rate": "flag"})
    assert origins["optim.learning_rate"] == "flag"
    assert origins["checkpoint"] == "default"


def test_a_derived_value_names_its_reason():
    recipe, origins = resolve(Recipe(checkpoint="x"))
    changed = derive(recipe, origins, "data", "max_length", 77, "the model's limit")
    assert changed.data.max_length == 77
    assert recipe.data.max_length is None
    assert origins["data.max_length"] == "derived: the model's limit"


def schedule(strategy, examples, batches_per_step=1, **optim):
    recipe, origins = resolve(Recipe(checkpoint="x", strategy=strategy, optim=optim))
    return tuple(schedule_of(strategy, recipe, origins, examples, batches_per_step).values())


def test_few_examples_are_learned_in_smaller_batches_then_in_more_epochs():
    assert schedule("full_fine_tuning", 3000) == (5, 32)
    assert schedule("full_fine_tuning", 1000) == (5, 16)
    assert schedule("full_fine_tuning", 45) == (50, 8)
    assert schedule("full_fine_tuning", 8000, batches_per_step=8) == (5, 16)


def test_a_schedule_that_was_given_stays():
    assert schedule("full_fine_tuning", 45, num_train_epochs=2) == (2, 32)
    assert schedule("full_fine_tuning", 45, max_steps=7) == (5, 32)
    assert schedule("full_fine_tuning", 45, per_device_train_batch_size=16) == (100, 16)
    assert schedule("contrastive", 45) == (1, 32)


def test_another_strategy_takes_its_own_epochs_where_none_were_given():
    recipe, origins = resolve(Recipe(checkpoint="x", strategy="full_fine_tuning"))
    assert schedule_of("feature_extraction", recipe, origins, 5000)["num_train_epochs"] == 10
    recipe, origins = resolve(Recipe(checkpoint="x", optim={"num_train_epochs": 2}))
    assert schedule_of("feature_extraction", recipe, origins, 5000)["num_train_epochs"] == 2


def test_evaluations_are_counted_for_another_strategy_than_the_recipes():
    def count(strategy, examples, optim=None, evaluation=None, **origins):
        recipe, known = resolve(Recipe(checkpoint="x", optim=optim or {}, evaluation=evaluation or {}))
        return evaluations_of(strategy, recipe, {**known, **origins}, examples)

    assert count("full_fine_tuning", 5000) == 5
    assert count("full_fine_tuning", 45) == 5, "not one for each of 50 epochs"
    assert count("feature_extraction", 45) == 10
    assert count("contrastive", 45) == 1
    assert count("full_fine_tuning", 5000, {"max_steps": 50}) == 1
    assert count("full_fine_tuning", 5000, {"num_train_epochs": 2}) == 2
    assert count("full_fine_tuning", 5000, {"num_train_epochs": 2}, {"every": 100}) == 4
    # What was derived for the recipe's own strategy says nothing of another one.
    derived = {"evaluation.every": "derived: as often as with the usual number of epochs"}
    assert count("feature_extraction", 5000, evaluation={"every": 3}, **derived) == 10
