"""The table of comparisons fits together."""

from __future__ import annotations

import importlib.util

import pytest

from benchmarks.cases import BATCH, CASES
from hftransfer import Recipe


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_comparisons_name_contestants_that_exist(case):
    names = [one.name for one in case.contestants]
    assert len(set(names)) == len(names)
    for comparison in case.comparisons:
        assert {comparison.numerator, comparison.denominator} <= set(names)
    for contestant in case.contestants:
        assert importlib.util.find_spec(f"benchmarks.{contestant.module}") is not None


CONTESTANTS = [(case.name, one) for case in CASES.values() for one in case.contestants]


@pytest.mark.parametrize(("case", "contestant"), CONTESTANTS, ids=[f"{case}-{one.name}" for case, one in CONTESTANTS])
def test_everybody_has_the_same_batch_and_ours_are_recipes(case, contestant):
    for settings in contestant.candidates or ({},):
        given = {**contestant.settings, **settings}
        if "padding" in given:
            assert given["batch"] * given.get("accumulation", 1) == BATCH
    if "recipe" in contestant.settings:
        assert Recipe(checkpoint="any", **contestant.settings["recipe"]).optim.per_device_train_batch_size == BATCH


@pytest.mark.parametrize("name", ["features", "top_layers", "full", "lora", "lora_top", "unfreezing"])
def test_everybody_trains_the_same_number_of_epochs(name):
    epochs = {
        one.settings["recipe"]["optim"]["num_train_epochs"] if "recipe" in one.settings else one.settings["epochs"]
        for one in CASES[name].contestants
    }
    assert len(epochs) == 1
