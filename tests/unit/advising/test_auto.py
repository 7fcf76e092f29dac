from __future__ import annotations

import pytest

from hftransfer.advise.cross_validation import LayerReading, Reading
from hftransfer.advising.auto import Decision, decided, earlier_decision
from hftransfer.advising.ranking import Ranked, in_order, p_value, verdict_of
from hftransfer.recipe import Recipe

LORA = Decision({"type": "lora", "r": 16}, "advisor: why")


def reading(right_N, best=0.9, logme=0.0):
    layers = (LayerReading(0, 0.5, 0.5, -1.0, 0.1), LayerReading(1, best, 0.5, logme, 0.5))
    score = sum(right_N) / len(right_N) if right_N else 0.5
    return Reading("accuracy", 0.5, score, 0.01, layers, ((10, 0.5),), tuple(right_N))


def test_the_decision_goes_into_the_recipe_with_its_reason():
    recipe, origins = decided(Recipe(checkpoint="x", strategy="auto"), {"strategy.type": "flag"}, LORA)
    assert (recipe.strategy.type, recipe.strategy.r) == ("lora", 16)
    assert origins["strategy.type"] == origins["strategy.r"] == "advisor: why"
    assert Recipe(**recipe.model_dump()) == recipe


def test_what_the_user_has_set_stays():
    recipe = Recipe(checkpoint="x", strategy="auto", optim={"num_train_epochs": 3})
    found, origins = decided(recipe, {"optim.num_train_epochs": "YAML"}, LORA)
    assert found.optim.num_train_epochs == 3
    assert origins["optim.num_train_epochs"] == "YAML"


def test_a_run_that_goes_on_keeps_what_it_began_with():
    begun, _ = decided(Recipe(checkpoint="x", strategy="auto"), {}, LORA)
    again, _ = decided(Recipe(checkpoint="x", strategy="auto"), {}, earlier_decision(begun))
    assert again.strategy == begun.strategy
    assert again.optim == begun.optim


def test_heads_are_compared_on_the_same_rows():
    better, worse = reading([1.0] * 40), reading([1.0] * 28 + [0.0] * 12)
    # 12 rows against none: 2 * 0.5 ** 12.
    assert p_value(better, worse) == pytest.approx(2 * 0.5**12)
    assert p_value(better, better) == 1.0
    assert p_value(better, reading([])) is None


def test_the_best_comes_first_and_doubts_are_said():
    first = Ranked("one", reading([1.0] * 40, best=0.9, logme=-0.5), 5, 1.0)
    second = Ranked("two", reading([1.0] * 39 + [0.0], best=0.8, logme=0.0), 3, 1.0)
    equal = Ranked("small", reading([1.0] * 40, best=0.9), 1, 1.0)
    assert [one.checkpoint for one in in_order([second, first, equal])] == ["small", "one", "two"]
    words = verdict_of([second, first]).words
    assert words[0].startswith("one suits the data best")
    assert "cannot be told apart" in words[1]
    assert words[2].startswith("LogME would put another one first")
