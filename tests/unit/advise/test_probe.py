"""Heads trained together come out as if alone; the scan of layers finds the layer that knows."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional
from torch.testing import assert_close

from hftransfer.advise.probe import HeadSetting, ProbeResult, probe, probe_layers
from hftransfer.data.batching import epoch_order
from hftransfer.errors import DataError, TrainingError

LOSSES = {
    "single_label": functional.cross_entropy,
    "multi_label": functional.binary_cross_entropy_with_logits,
    "regression": functional.mse_loss,
}
RATES, DECAYS, SEEDS = [1e-3, 3e-2], [0.0, 1.0], [0, 7]


def make(problem, rows=70, width=5, columns=3, *, seed=0, dtype=torch.float64):
    """Features of unequal scales and means, and labels that a linear head can learn, not without errors."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, width, generator=generator, dtype=dtype) * torch.linspace(0.5, 4, width) + 1
    outputs = (features - 1) @ torch.randn(width, columns, generator=generator, dtype=dtype)
    outputs += torch.randn(rows, columns, generator=generator, dtype=dtype)
    labels = {"single_label": outputs.argmax(dim=1), "multi_label": (outputs > 0).long(), "regression": outputs}
    return features.to(dtype), labels[problem]


def sweep(features, labels, **options):
    """Probe with half of the rows to train on."""
    half = len(features) // 2
    defaults = {"learning_rates": RATES, "weight_decays": DECAYS, "seeds": SEEDS, "num_epochs": 4, "batch_size": 16}
    return probe(
        features[:half],
        labels[:half],
        validation_features_MD=features[half:],
        validation_labels=labels[half:],
        **{**defaults, **options},
    )


def train_alone(features, labels, problem, setting, *, num_epochs=4, batch_size=16, columns=3):
    """One head with torch's AdamW on the same batches; the decay is the weight's alone."""
    head = torch.nn.Linear(features.shape[1], columns, dtype=features.dtype)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    groups = [{"params": [head.weight], "weight_decay": setting.weight_decay}, {"params": [head.bias]}]
    optimizer = torch.optim.AdamW(groups, lr=setting.learning_rate, weight_decay=0.0)
    targets = labels if problem == "single_label" else labels.to(features.dtype)
    for epoch in range(num_epochs):
        for rows in torch.from_numpy(epoch_order(len(features), setting.seed, epoch)).split(batch_size):
            optimizer.zero_grad()
            LOSSES[problem](head(features[rows]), targets[rows]).backward()
            optimizer.step()
    return head.requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("problem", LOSSES)
def test_every_head_equals_training_it_alone(problem, dtype):
    features, labels = make(problem, dtype=dtype)
    # 35 rows make an incomplete last batch. No half or third of 17 is whole: at zero weights such a batch could have a
    # bias gradient of exactly 0, and Adam makes a step of the rounding error instead.
    result = sweep(features, labels, problem=problem, standardize=False, batch_size=17)
    assert result.settings == tuple(HeadSetting(r, d, s) for s, r, d in product(SEEDS, RATES, DECAYS))
    tolerance = {"atol": 1e-12 if dtype == torch.float64 else 1e-5, "rtol": 0}
    for index, setting in enumerate(result.settings):
        alone = train_alone(features[:35], labels[:35], problem, setting, batch_size=17)
        head = result.head(index)
        assert head.setting == setting
        assert_close(head.weight_CD, alone.weight, **tolerance)
        assert_close(head.bias_C, alone.bias, **tolerance)
        assert head.weight_CD.abs().max() > 1e-3
        loss = LOSSES[problem](
            alone(features[35:]), labels[35:] if problem == "single_label" else labels[35:].to(dtype)
        )
        assert head.loss == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize("problem", LOSSES)
def test_a_standardised_head_reads_raw_features(problem):
    features, labels = make(problem)
    features[:, 2] = 3.0
    result = sweep(features, labels, problem=problem)
    scaler = StandardScaler().fit(features[:35])
    scaled = torch.tensor(scaler.transform(features))
    for index, setting in enumerate(result.settings):
        alone = train_alone(scaled[:35], labels[:35], problem, setting)
        assert_close(result.head(index)(features), alone(scaled), atol=1e-10, rtol=0)
    assert result.weights_HCD[:, :, 2].abs().max() < 1e-12


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 30), st.integers(1, 9), st.integers(2, 4), st.integers(1, 40), st.integers(1, 3), st.integers(0, 99)
)
def test_any_shape_equals_training_alone(rows, width, columns, batch_size, num_epochs, seed):
    features, labels = make("single_label", 2 * rows, width, columns, seed=seed)
    labels[:2] = torch.tensor([0, 1])
    options = {"num_epochs": num_epochs, "batch_size": batch_size}
    result = sweep(features, labels, num_classes=columns, standardize=False, **options)
    for index in (0, -1):
        head = result.head(index)
        alone = train_alone(features[:rows], labels[:rows], "single_label", head.setting, columns=columns, **options)
        assert_close(head(features), alone(features), atol=1e-9, rtol=0)


def test_half_precision_and_numpy_train_in_float32():
    features, labels = make("single_label", dtype=torch.float32)
    features = features.half()
    expected = sweep(features.float(), labels)
    for found in (sweep(features, labels), sweep(features.numpy(), labels.numpy())):
        assert found.weights_HCD.dtype == torch.float32
        assert_close(found.weights_HCD, expected.weights_HCD)
        assert found.scores == expected.scores


def test_the_products_of_a_step_do_not_grow_with_the_heads(monkeypatch):
    calls = []
    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda *arguments: calls.append(0) or bmm(*arguments))
    result = sweep(*make("single_label"), learning_rates=[0.1 / n for n in range(1, 9)], seeds=range(4))
    assert len(result.scores) == 64
    # Forward and backward, 4 epochs, 3 batches each.
    assert len(calls) == 2 * 4 * 3


def test_best_is_the_highest_score_then_the_lowest_loss():
    nan = math.nan
    settings = tuple(HeadSetting(rate, 0.0, 0) for rate in (1.0, 2.0, 3.0, 4.0))
    tensors = torch.arange(4.0).reshape(4, 1, 1), torch.arange(4.0).reshape(4, 1)
    result = ProbeResult(*tensors, settings, "accuracy", (nan, 0.8, 0.8, 0.7), (0.1, 0.5, 0.4, 0.2))
    assert result.best.setting == settings[2]
    assert (result.best.score, result.best.loss) == (0.8, 0.4)
    assert result.best.weight_CD.item() == result.best.bias_C.item() == 2


def test_a_sweep_learns_and_scores_on_the_validation_rows():
    features, labels = make("single_label", rows=400)
    result = sweep(features, labels, num_epochs=20)
    assert result.score_name == "accuracy"
    for index, score in enumerate(result.scores):
        accuracy = (result.head(index)(features[200:]).argmax(dim=1) == labels[200:]).double().mean()
        assert score == pytest.approx(float(accuracy))
    assert result.best.score == max(result.scores) > 0.75


def test_a_head_that_diverges_is_never_the_best_and_all_of_them_an_error():
    features, labels = make("regression", dtype=torch.float32)
    result = sweep(features, labels, problem="regression", learning_rates=[1e30, 1e-2], weight_decays=[0.0])
    diverged = [setting.learning_rate == 1e30 for setting in result.settings]
    assert [math.isnan(score) for score in result.scores] == diverged == [True, False] * 2
    assert result.best.setting.learning_rate == 1e-2
    with pytest.raises(TrainingError, match="every head diverged"):
        sweep(features, labels, problem="regression", learning_rates=[1e30])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rates": []}, "learning_rates: "),
        ({"learning_rates": [0.1, -0.1]}, "learning_rates: "),
        ({"weight_decays": []}, "weight_decays: "),
        ({"weight_decays": [-1.0]}, "weight_decays: "),
        ({"weight_decays": [math.nan]}, "weight_decays: "),
        ({"seeds": []}, "seeds: "),
        ({"seeds": [-1]}, "seeds: "),
        ({"num_epochs": 0}, "num_epochs, batch_size: "),
        ({"batch_size": 0}, "num_epochs, batch_size: "),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(TrainingError, match=f"^{message}") as caught:
        sweep(*make("single_label"), **options)
    assert "\n" not in str(caught.value)


FEATURES, LABELS = np.arange(8.0).reshape(4, 2), np.array([0, 1, 2, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features_ND": FEATURES * np.nan}, "features: NaN"),
        ({"labels": LABELS * 0}, "labels: all rows have the same label"),
        ({"labels": LABELS[:3]}, "labels: shape"),
        ({"validation_features_MD": np.full((4, 2), np.inf)}, "validation features: NaN or infinite"),
        ({"validation_features_MD": FEATURES[:, :1]}, "validation features: 1 columns instead of 2"),
        ({"validation_features_MD": FEATURES[:0], "validation_labels": LABELS[:0]}, "validation features: no rows"),
        ({"validation_labels": LABELS + 1}, "validation labels: not classes from 0 to 2"),
        ({"problem": "regression", "validation_labels": np.ones((4, 2))}, "validation labels: 2 columns instead of 1"),
        ({"problem": "multi_label"}, r"labels: shape \(4,\) instead of \(rows, columns\)"),
    ],
)
def test_bad_data_are_refused_in_one_line(changes, message):
    good = {"features_ND": FEATURES, "labels": LABELS}
    good |= {"validation_features_MD": FEATURES, "validation_labels": LABELS, "learning_rates": [0.1]}
    probe(**good)
    with pytest.raises(DataError, match=f"^{message}") as caught:
        probe(**(good | changes))
    assert "\n" not in str(caught.value)


def scan(problem, **options):
    """A scan where layer 2 holds the features in full, layer 1 a noisy copy, layer 0 noise, and the widths differ."""
    features, labels = make(problem, rows=200)
    noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(1), dtype=features.dtype)
    layers = {(2, "mean"): features, (0, "mean"): noise[:, :3], (1, "cls"): features + 6 * noise}
    table = probe_layers(
        {key: layer[:120] for key, layer in layers.items()},
        labels[:120],
        validation_features={key: layer[120:] for key, layer in layers.items()},
        validation_labels=labels[120:],
        problem=problem,
        **options,
    )
    return layers, labels, table


@pytest.mark.parametrize("problem", LOSSES)
def test_the_scan_finds_the_layer_that_knows(problem):
    _, _, table = scan(problem)
    assert [(row.layer, row.pooling) for row in table] == [(2, "mean"), (0, "mean"), (1, "cls")]
    assert table[0].score > table[2].score > table[1].score
    assert table[0].loss < table[2].loss < table[1].loss
    assert {row.score_name for row in table} <= {"accuracy", "f1_macro", "spearman"}


def test_the_scan_scores_what_scikit_learn_scores():
    layers, labels, table = scan("single_label", l2s=[2.0])
    for row, layer in zip(table, layers.values(), strict=True):
        layer, labels = np.asarray(layer), np.asarray(labels)
        theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.5, tol=1e-8)).fit(layer[:120], labels[:120])
        assert row.score == pytest.approx(theirs.score(layer[120:], labels[120:]))
    layers, targets, table = scan("regression", l2s=[2.0])
    for row, layer in zip(table, layers.values(), strict=True):
        layer, targets = np.asarray(layer), np.asarray(targets)
        theirs = make_pipeline(StandardScaler(), Ridge(2.0)).fit(layer[:120], targets[:120])
        error = np.square(theirs.predict(layer[120:]) - targets[120:]).mean()
        assert row.loss == pytest.approx(error)


def test_the_scan_keeps_the_best_penalty_of_each_layer():
    l2s = [1e-2, 10.0, 1e4]
    single = [scan("single_label", l2s=[l2])[2] for l2 in l2s]
    for rows in zip(scan("single_label", l2s=l2s)[2], *single, strict=True):
        best = max(rows[1:], key=lambda row: (row.score, -row.loss))
        assert (rows[0].l2, rows[0].score) == (best.l2, best.score)
        assert rows[0].loss == pytest.approx(best.loss, abs=1e-5)


def test_the_scan_says_which_layer_is_bad():
    layers = {(0, "mean"): FEATURES, (3, "cls"): FEATURES}
    both = {"validation_features": layers, "validation_labels": LABELS}
    with pytest.raises(DataError, match="no layers to probe"):
        probe_layers({}, LABELS, validation_features={}, validation_labels=LABELS)
    with pytest.raises(DataError, match="validation_features: other layers or poolings"):
        probe_layers({(0, "mean"): FEATURES}, LABELS, **both)
    with pytest.raises(DataError, match=r"^layer 3, cls, features: NaN"):
        probe_layers({**layers, (3, "cls"): FEATURES * np.nan}, LABELS, **both)
    with pytest.raises(DataError, match=r"^layer 3, cls, validation features: 1 columns instead of 2"):
        probe_layers(layers, LABELS, **(both | {"validation_features": {**layers, (3, "cls"): FEATURES[:, :1]}}))
    with pytest.raises(DataError, match="all rows have the same label"):
        probe_layers(layers, LABELS * 0, **both)
    with pytest.raises(TrainingError, match=r"^l2s: "):
        probe_layers(layers, LABELS, l2s=[], **both)
