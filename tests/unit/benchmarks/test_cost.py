"""The comparison of predicted and measured seconds."""

from __future__ import annotations

import math

import pytest

from benchmarks.cost import TOLERANCE, Outcome, predict_and_run
from hftransfer.recipe import Recipe
from tests.tiny_models import write_tiny_checkpoint


@pytest.mark.parametrize(
    ("predicted", "error", "beyond"), [(10.0, 0.0, False), (12.4, 0.24, False), (7.4, -0.26, True), (13.0, 0.3, True)]
)
def test_what_is_beyond_the_tolerance_is_marked(predicted, error, beyond):
    outcome = Outcome("lora", predicted, 10.0)
    assert outcome.error == pytest.approx(error)
    assert (abs(outcome.error) > TOLERANCE) == beyond
    assert ("beyond the tolerance" in outcome.line()) == beyond


def test_a_run_is_predicted_and_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("HFTRANSFER_CACHE", str(tmp_path / "states"))
    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint", "bert")
    rows = [{"text": f"film {index}", "label": "ab"[index % 2]} for index in range(12)]
    recipe = Recipe(
        checkpoint=str(checkpoint),
        output_dir=str(tmp_path / "run"),
        strategy="top_layers",
        optim={"num_train_epochs": 2},
    )
    outcome = predict_and_run(recipe, rows, rows[:4])
    assert outcome.strategy == "top_layers"
    assert outcome.measured > 0
    assert outcome.predicted > 0
    assert math.isfinite(outcome.error)
