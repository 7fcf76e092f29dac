"""A head that is fitted is scikit-learn's logistic regression on what the head reads, in every family's stock head."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from hftransfer import Recipe, make_strategy
from hftransfer.caching.boundary import capture, find_tap
from hftransfer.caching.states import model_inputs
from hftransfer.errors import StrategyError
from hftransfer.models.load import load_model
from hftransfer.tasks.registry import build_task
from hftransfer.training.head_fit import INVERSE_L2, check_support, fit_head
from tests.tiny_models import FAMILIES
from tests.tiny_runs import TEXTS

# Behind the layer that passes the features on, this head normalises them.
NORMALISED = ("modernbert",)


def prepared(family: str, checkpoints: Any, classes: int, pooling: str = "own") -> tuple[Any, Any, Any]:
    rows = Dataset.from_dict({"text": TEXTS, "label": [str(at % classes) for at in range(len(TEXTS))]})
    recipe = Recipe(checkpoint="m")
    task = build_task(recipe.task, recipe.data, rows)
    loaded = load_model(
        str(checkpoints / family), task.auto_class, config_overrides=task.config_overrides(), pooling=pooling, seed=1
    )
    task.attach(loaded.model, loaded.tokenizer)
    strategy = make_strategy("contrastive")
    model: Any = strategy.apply(loaded.model, loaded.anatomy)
    strategy.enter_stage(model, strategy.stages(loaded.anatomy)[1])
    return model, task, task.encode(rows, loaded.tokenizer, 32)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_head_is_a_logistic_regression(family: str, classes: int, checkpoints: Any) -> None:
    model, task, features = prepared(family, checkpoints, classes)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    loss = fit_head(model, task, features, classes)
    assert model.training
    model.eval()
    batch = model_inputs(task.collate(features, np.arange(len(features))))
    tap = find_tap(model, make_strategy("contrastive").stages(model._hftransfer_anatomy)[1].boundary)
    with torch.no_grad():
        logits_NC = model(**batch).logits.numpy()
    states_ND = capture(model, [tap], batch)[tap.boundary][:, 0].double().numpy()
    found = softmax(logits_NC, -1)
    assert loss == pytest.approx(-np.log(found[np.arange(len(found)), features.labels]).mean(), rel=1e-3)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert all(torch.equal(before[name], dict(model.named_parameters())[name]) for name in frozen)
    if family in NORMALISED:
        return
    # Heads without a bias are fitted without an intercept.
    biased = family not in ("gpt2", "llama", "qwen2", "mistral")
    centre = states_ND.mean(0) if biased else 0.0
    scaled = (states_ND - centre) / np.sqrt(states_ND.var(0).mean())
    expected = LogisticRegression(C=INVERSE_L2, fit_intercept=biased, max_iter=1000).fit(scaled, features.labels)
    np.testing.assert_allclose(found, expected.predict_proba(scaled), atol=0.03)


def test_with_mean_pooling(checkpoints: Any) -> None:
    model, task, features = prepared("bert", checkpoints, 3, pooling="mean")
    loss = fit_head(model, task, features, 3)
    batch = task.collate(features, np.arange(len(features)))
    model.eval()
    with torch.no_grad():
        logits = model(**model_inputs(batch)).logits
    assert float(torch.nn.functional.cross_entropy(logits, batch["labels"])) == pytest.approx(loss, rel=1e-3)
    assert loss < np.log(3)


def test_fitting_twice_gives_the_same_bits(checkpoints: Any) -> None:
    heads = []
    for _ in range(2):
        model, task, features = prepared("bert", checkpoints, 3)
        fit_head(model, task, features, 3)
        fit_head(model, task, features, 3)
        heads.append([parameter.detach().clone() for parameter in model.parameters() if parameter.requires_grad])
    assert all(torch.equal(one, other) for one, other in zip(*heads, strict=True))


def test_a_class_without_examples_is_never_predicted(checkpoints: Any) -> None:
    model, task, features = prepared("bert", checkpoints, 3)
    features.labels[features.labels == 1] = 0
    fit_head(model, task, features, 3)
    model.eval()
    with torch.no_grad():
        logits_NC = model(**model_inputs(task.collate(features, np.arange(len(features))))).logits
    assert (logits_NC.softmax(-1)[:, 1] < 1e-3).all()


def test_a_model_without_an_output_layer_is_refused(checkpoints: Any) -> None:
    model, _, _ = prepared("bert", checkpoints, 3)
    with pytest.raises(StrategyError, match=r"the head cannot be fitted: .* no linear layer with 7 outputs"):
        check_support(model, 7)
