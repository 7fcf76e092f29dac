from __future__ import annotations

import argparse

import pytest

from benchmarks import records, schedules
from benchmarks.schedules import Variant


def test_variants_are_read_as_they_are_written():
    variant = Variant.parse("full_fine_tuning,steps=300,head_learning_rate=1e-3,layer_decay=1.0")
    assert str(variant) == "full_fine_tuning,steps=300,layer_decay=1,head_learning_rate=0.001"
    assert Variant.parse(str(variant)) == variant
    for wrong in ("lora,steps", "lora,rate=3"):
        with pytest.raises(argparse.ArgumentTypeError, match="STRATEGY"):
            Variant.parse(wrong)


def test_steps_change_batch_and_epochs_and_not_the_number_of_evaluations():
    few, enough = (Variant.parse(f"full_fine_tuning,steps={steps}").settings(45) for steps in (0, 300))
    assert few["optim"] == {"num_train_epochs": 5, "per_device_train_batch_size": 32}
    assert few["evaluation"] == {"every": 2}
    assert enough["optim"] == {"num_train_epochs": 50, "per_device_train_batch_size": 8}
    assert enough["evaluation"] == {"every": 60}
    assert Variant.parse("full_fine_tuning,layer_decay=1").settings(45)["optim"]["layer_decay"] == 1.0


def test_gains_are_those_over_the_first_variant_in_the_same_cells(tmp_path, capsys):
    path = tmp_path / "schedules.jsonl"
    scores = {("a", 1): (0.5, 0.6), ("a", 2): (0.5, 0.8), ("b", 1): (0.4, 0.3)}
    for (data_set, seed), found in scores.items():
        for steps, score in zip((0, 300), found, strict=True):
            key = {"data_set": data_set, "examples": 50, "checkpoint": "tiny", "seed": seed}
            records.add(path, {**key, "variant": f"lora,steps={steps}", "score": score})
    schedules.table(argparse.Namespace(results=path))
    rows = capsys.readouterr().out.splitlines()[2:]
    assert rows[0] == "| tiny | 50 | lora,steps=0 | 2, 2 | 46.7 |  |"
    assert rows[1] == "| tiny | 50 | lora,steps=300 | 2, 2 | 56.7 | +10.0 (-10.0 to +20.0) |"
