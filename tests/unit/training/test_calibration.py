"""Temperature and thresholds inside the head: a stock pipeline gives them, and heads that cannot take them are told."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.optimize import minimize_scalar
from scipy.special import expit, logsumexp, softmax
from transformers import AutoModelForSequenceClassification, pipeline

from hftransfer.caching.states import PlainInputs
from hftransfer.errors import RecipeError
from hftransfer.models.load import load_model
from hftransfer.recipe import Recipe
from hftransfer.strategies import build_strategy
from hftransfer.tasks.registry import build_task
from hftransfer.tasks.reliability import TEMPERATURES, fit_temperature
from hftransfer.training import calibration
from hftransfer.training.evaluate import predict
from tests.tiny_models import WORDS

FAMILIES = ("bert", "roberta", "distilbert", "deberta-v2", "modernbert", "t5", "bart", "gpt2", "llama")
TEXTS = [" ".join(np.random.default_rng(row).choice(WORDS[:40], 5)) for row in range(60)]


def prepared(
    checkpoints: Path, family: str, labels: list[Any], strategy: str = "full_fine_tuning", **settings: Any
) -> Any:
    """Recipe, model, task, features and predictions."""
    columns = settings.pop("columns", {})
    recipe = Recipe(checkpoint=str(checkpoints / family), strategy=strategy, **settings)
    data = Dataset.from_dict({"text": TEXTS, "label": labels, **columns})
    task = build_task(recipe.task, recipe.data, data)
    loaded = load_model(recipe.checkpoint, task.auto_class, config_overrides=task.config_overrides())
    for name, parameter in loaded.model.named_parameters():
        if name in loaded.fresh_parameters and parameter.dim() > 1:
            # Sure of itself, and wrong.
            parameter.data.normal_(std=2.0, generator=torch.Generator().manual_seed(0))
    model = build_strategy(recipe.strategy).apply(loaded.model, loaded.anatomy).eval()
    task.attach(loaded.model, loaded.tokenizer)
    features = task.encode(data, loaded.tokenizer, 16)
    return recipe, loaded, model, task, features, predict(model, task, PlainInputs(task, features))


SINGLE = [("fresh", "rotten", "other")[row % 3] for row in range(60)]
MULTI = [[name for place, name in enumerate("abc") if (row >> place) % 3 == 0] for row in range(60)]


@pytest.fixture(autouse=True)
def _few_decisions_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "FEWEST_DECISIONS", 10)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_of_every_family_takes_a_temperature(checkpoints: Path, family: str) -> None:
    recipe, _, model, task, features, before = prepared(checkpoints, family, SINGLE)
    found, changed = calibration.calibrate(recipe, model, task, before, features)
    assert found.note == ""
    assert found.temperature == pytest.approx(fit_temperature(before, features.labels))
    assert abs(np.log(found.temperature)) > 0.1
    after = predict(model, task, PlainInputs(task, features))
    np.testing.assert_allclose(after, before / found.temperature, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after, changed, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.undo(found.apply(before)), before, rtol=1e-5, atol=1e-6)
    told = calibration.compare(found, task, {"validation": changed}, {"validation": features}).splits["validation"]
    assert told["after"]["loss"] < told["before"]["loss"]


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_stock_pipeline_gives_calibrated_probabilities(checkpoints: Path, tmp_path: Path, family: str) -> None:
    recipe, loaded, model, task, features, before = prepared(checkpoints, family, SINGLE, "lora")
    found, _ = calibration.calibrate(recipe, model, task, before, features)
    merged: Any = model
    merged.merge_and_unload().save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    stock: Any = pipeline("text-classification", model=str(tmp_path), top_k=None, device="cpu")
    expected = softmax(before / found.temperature, axis=-1)
    for text, row in zip(TEXTS[:5], expected, strict=False):
        scores = {one["label"]: one["score"] for one in stock([text])[0]}
        assert [scores[name] for name in task.labels.names] == pytest.approx(row.tolist(), abs=1e-4)


def test_a_stock_pipeline_at_a_half_decides_as_the_thresholds_do(checkpoints: Path, tmp_path: Path) -> None:
    recipe, loaded, model, task, features, before = prepared(checkpoints, "bert", MULTI)
    task.calibrate(before, features)
    decided = expit(before) >= task.thresholds_C
    assert (decided != (before >= 0)).any()
    found, _ = calibration.calibrate(recipe, model, task, before, features)
    assert found.shifts_C is not None
    assert task.saved_config()["label_thresholds"] == dict.fromkeys("abc", 0.5)
    loaded.model.save_pretrained(tmp_path)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    inputs = loaded.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        np.testing.assert_array_equal((stock(**inputs).logits.sigmoid() >= 0.5).numpy(), decided)


def test_a_head_without_a_bias_keeps_its_thresholds_beside_it(checkpoints: Path) -> None:
    recipe, _, model, task, features, before = prepared(checkpoints, "gpt2", MULTI)
    task.calibrate(before, features)
    thresholds_C = task.thresholds_C.copy()
    found, unchanged = calibration.calibrate(recipe, model, task, before, features)
    assert "no bias" in found.note
    assert unchanged is before
    np.testing.assert_array_equal(task.thresholds_C, thresholds_C)


def test_a_head_that_gives_something_else_is_put_back(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, _, model, task, features, before = prepared(checkpoints, "bert", SINGLE)
    # Another layer than that of the logits.
    wrong = model.bert.pooler.dense
    monkeypatch.setattr(calibration, "output_layer", lambda *_: wrong)
    weights = wrong.weight.detach().clone()
    found, unchanged = calibration.calibrate(recipe, model, task, before, features)
    assert "differs from what it should give" in found.note
    assert (found.temperature, unchanged is before) == (1.0, True)
    assert torch.equal(wrong.weight, weights)


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [("none", "switched off"), ("thresholds", "switched off"), ("auto", "a regression has no probabilities")],
)
def test_what_is_not_calibrated_says_why(checkpoints: Path, wanted: str, reason: str) -> None:
    labels = [row / 7 for row in range(60)] if wanted == "auto" else SINGLE
    made = prepared(checkpoints, "bert", labels, evaluation={"calibration": wanted})
    recipe, _, model, task, features, before = made
    found, unchanged = calibration.calibrate(recipe, model, task, before, features)
    assert reason in found.note
    assert unchanged is before


def test_what_is_required_and_impossible_is_refused_before_the_training(checkpoints: Path) -> None:
    labels = [row / 7 for row in range(60)]
    recipe, _, model, task, features, before = prepared(
        checkpoints, "bert", labels, evaluation={"calibration": "required"}
    )
    for refused in (
        partial(calibration.check_support, recipe, task, model),
        partial(calibration.calibrate, recipe, model, task, before, features),
    ):
        with pytest.raises(RecipeError, match=r"evaluation.calibration: not possible: a regression has no prob"):
            refused()


OTHER_TASKS: dict[str, dict[str, Any]] = {
    "token_classification": {
        "labels": [[("O", "B-a", "I-a")[(row + place) % 3] for place in range(5)] for row in range(60)],
        "columns": {"text": [text.split() for text in TEXTS]},
    },
    "multiple_choice": {
        "labels": [row % 2 for row in range(60)],
        "columns": {"choices": [WORDS[row % 20 : row % 20 + 2 + row % 3] for row in range(60)]},
        "data": {"text_pair": "choices"},
    },
}


@pytest.mark.parametrize("task_type", OTHER_TASKS)
def test_tagging_and_choices_take_a_temperature(checkpoints: Path, task_type: str) -> None:
    """The changed head gives what it gave, divided by the temperature of the least loss; decisions stay."""
    recipe, _, model, task, features, before = prepared(
        checkpoints, "bert", task={"type": task_type}, **OTHER_TASKS[task_type]
    )
    found, changed = calibration.calibrate(recipe, model, task, before, features)
    assert (found.note, found.shifts_C) == ("", None)
    assert abs(np.log(found.temperature)) > 0.1
    again = predict(model, task, PlainInputs(task, features))
    for old, new, run in zip(before, changed, again, strict=True):
        np.testing.assert_allclose(new, old / found.temperature, rtol=1e-5)
        np.testing.assert_allclose(run, new, rtol=1e-4, atol=1e-5)
    logits, labels = task.decisions(before, features)

    def loss(temperature: float) -> float:
        scaled = logits / temperature
        return float(np.mean(logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels]))

    best = minimize_scalar(loss, bounds=TEMPERATURES, method="bounded").x
    assert loss(found.temperature) == pytest.approx(loss(best), abs=1e-4)
    assert task.score(changed, features)[task.default_metric] == task.score(before, features)[task.default_metric]
    told = calibration.compare(found, task, {"validation": changed}, {"validation": features}).splits["validation"]
    assert told["after"]["loss"] < told["before"]["loss"]


def test_few_decisions_are_too_few(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "FEWEST_DECISIONS", 61)
    recipe, _, model, task, features, before = prepared(checkpoints, "bert", SINGLE)
    found, _ = calibration.calibrate(recipe, model, task, before, features)
    assert "60 decisions on validation data are fewer than 61" in found.note
