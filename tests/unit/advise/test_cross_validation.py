from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from hftransfer.advise.cross_validation import (
    FOLDS,
    L2,
    as_targets,
    chance,
    divisions,
    fit_and_predict,
    read_layers,
    score_of,
    standardised,
)
from hftransfer.errors import DataError
from tests.unit.advise.test_transferability import classes


@pytest.mark.parametrize(("rows", "width"), [(50, 7), (20, 33)])
def test_the_head_is_ridge_regression(rows, width):
    features_ND, _, targets_NC = classes(rows, width)
    asked_MD = features_ND[:5] + 0.1
    expected = Ridge(alpha=L2).fit(features_ND, targets_NC).predict(asked_MD)
    np.testing.assert_allclose(fit_and_predict(features_ND, targets_NC, asked_MD), expected, atol=1e-9)


def test_folds_have_equal_sizes_and_all_classes():
    targets_NC = np.eye(3)[np.repeat([0, 1, 2], [70, 20, 10])]
    plan = divisions(targets_NC, "single_label")
    assert len(plan) > 1
    for fold_N in plan:
        assert np.bincount(fold_N).tolist() == [20] * FOLDS
        for fold in range(FOLDS):
            assert targets_NC[fold_N == fold].sum(0).tolist() == [14, 4, 2]


def test_layers_are_told_apart():
    useful_ND, labels_N, _ = classes(120, 6, apart=3.0)
    noise_ND = np.random.default_rng(1).normal(size=(120, 6))
    reading = read_layers({0: noise_ND, 1: useful_ND, 2: noise_ND}, labels_N, "single_label", 3)
    assert reading.best_layer.layer == 1
    assert reading.best_layer.probe > 0.9
    assert reading.best_layer.neighbours > 0.9
    assert reading.score < 0.6
    assert reading.chance == pytest.approx(1 / 3)
    assert max(reading.layers, key=lambda layer: layer.logme).layer == 1
    assert max(reading.layers, key=lambda layer: layer.h_score).layer == 1


def test_the_curve_rises_with_the_data():
    features_ND, labels_N, _ = classes(400, 30, apart=0.3)
    reading = read_layers({0: features_ND}, labels_N, "single_label", 3)
    counts, scores = zip(*reading.curve, strict=True)
    assert list(counts) == sorted(counts)
    assert counts[-1] == 320
    assert scores[0] < scores[-1] == reading.score
    assert reading.slope > 0


def test_multi_label_and_regression_have_their_own_scores():
    generator = np.random.default_rng(0)
    features_ND = generator.normal(size=(100, 5))
    several_NC = (features_ND[:, :3] > 0).astype(int)
    assert read_layers({0: features_ND}, several_NC, "multi_label", 3).score_name == "f1_macro"
    assert read_layers({0: features_ND}, several_NC, "multi_label", 3).score > 0.85
    regression = read_layers({0: features_ND}, features_ND[:, 0] * 2 + 1, "regression", 1)
    assert (regression.score_name, regression.right_N) == ("spearman", ())
    assert regression.score > 0.95
    assert np.isnan(regression.layers[0].h_score)


def test_chance_is_the_best_constant_answer():
    labels = np.asarray([0] * 6 + [1] * 4)
    targets_NC = as_targets(labels, "single_label", 2)
    constant_NC = np.tile([1.0, 0.0], (10, 1))
    assert chance(targets_NC, "single_label") == score_of(constant_NC, targets_NC, "single_label") == 0.6
    several_NC = np.eye(2)[labels]
    assert chance(several_NC, "multi_label") == pytest.approx(np.mean([2 * 0.6 / 1.6, 2 * 0.4 / 1.4]))


def test_constant_features_become_zero():
    found_ND = standardised(np.asarray([[1.0, 2.0], [1.0, 4.0]]), "layer 0")
    assert found_ND.tolist() == [[0.0, -1.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("features_ND", "labels", "message"),
    [
        (np.zeros((4, 3)), [0, 1, 0, 1], "too few"),
        (np.zeros((20, 3)), [1] * 20, "same label"),
        (np.full((20, 3), np.nan), [0, 1] * 10, "NaN"),
    ],
)
def test_what_cannot_be_measured_is_told(features_ND, labels, message):
    with pytest.raises(DataError, match=message):
        read_layers({0: features_ND}, np.asarray(labels), "single_label", 2)
