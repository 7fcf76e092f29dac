"""Logistic and ridge regression reach scikit-learn's optimum; what cannot be fitted is refused in one line."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.testing import assert_close

from hftransfer.advise.linear import (
    SCORES,
    LinearHead,
    evaluate,
    logistic_path,
    logistic_regression,
    rank,
    read,
    ridge,
    standardized,
)
from hftransfer.errors import DataError, RecipeError, TrainingError
from hftransfer.tasks.metrics import classification_metrics, multi_label_metrics, regression_metrics, tune_thresholds
from hftransfer.tasks.text_classification import DEFAULT_METRICS


def make(rows=120, width=7, columns=3, *, seed=0):
    """Features of unequal scales and means, and noisy linear outputs (rows, columns)."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(rows, width)) * generator.uniform(0.3, 3, width) + generator.normal(size=width)
    outputs = (features - features.mean(0)) @ generator.normal(size=(width, columns))
    return features, outputs + generator.normal(size=(rows, columns))


def reference(l2):
    return LogisticRegression(C=1 / l2, tol=1e-10, max_iter=10_000)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("l2", [0.05, 1.0, 20.0])
def test_single_label_equals_scikit_learn(classes, l2):
    features, outputs = make(columns=classes)
    labels = outputs.argmax(axis=1)
    head = logistic_regression(features, labels, l2=l2)
    theirs = reference(l2).fit(features, labels)
    probabilities = head(torch.tensor(features)).softmax(dim=1).numpy()
    np.testing.assert_allclose(probabilities, theirs.predict_proba(features), atol=1e-5)
    # scikit-learn keeps one row for two classes: the difference of ours.
    weight = head.weight_CD if classes > 2 else head.weight_CD[1:] - head.weight_CD[:1]
    bias = head.bias_C if classes > 2 else head.bias_C[1:] - head.bias_C[:1]
    np.testing.assert_allclose(weight.numpy(), theirs.coef_, atol=1e-4)
    np.testing.assert_allclose(bias.numpy(), theirs.intercept_, atol=1e-4)


@pytest.mark.parametrize("standardize", [False, True])
def test_without_a_penalty_the_scale_of_the_features_does_not_matter(standardize):
    features, labels = np.random.default_rng(3).normal(size=(40, 6)), [0, 1, 2, 1] * 10
    heads = [logistic_regression(scale * features, labels, standardize=standardize) for scale in (1.0, 20.0)]
    assert_close(20 * heads[1].weight_CD, heads[0].weight_CD, atol=1e-4, rtol=0)
    variance = 6 if standardize else features.var(0).sum()
    expected = logistic_regression(features, labels, l2=variance, standardize=standardize)
    assert_close(heads[0].weight_CD, expected.weight_CD, atol=1e-6, rtol=0)


def test_multi_label_equals_one_regression_per_label():
    features, outputs = make(columns=4)
    labels = (outputs > [0.0, 1.0, -2.0, 3.0]).astype(int)
    head = logistic_regression(torch.tensor(features), torch.tensor(labels), l2=0.5)
    for column in range(4):
        theirs = reference(0.5).fit(features, labels[:, column])
        np.testing.assert_allclose(head.weight_CD[column], theirs.coef_[0], atol=1e-4)
        np.testing.assert_allclose(head.bias_C[column], theirs.intercept_[0], atol=1e-4)


def test_standardize_equals_a_pipeline_and_reads_raw_features():
    features, outputs = make()
    labels = outputs.argmax(axis=1)
    scaled = features * np.logspace(-3, 3, features.shape[1]) + 50
    head = logistic_regression(scaled, labels, l2=1.0, standardize=True)
    theirs = make_pipeline(StandardScaler(), reference(1.0)).fit(scaled, labels)
    probabilities = head(torch.tensor(scaled)).softmax(dim=1).numpy()
    np.testing.assert_allclose(probabilities, theirs.predict_proba(scaled), atol=1e-5)


def test_a_path_equals_single_fits_in_the_order_given():
    features, outputs = make()
    labels = outputs.argmax(axis=1)
    l2s = [0.3, 30.0, 3.0, 30.0]
    for head, l2 in zip(logistic_path(features, labels, l2s=l2s), l2s, strict=True):
        assert_close(head.weight_CD, logistic_regression(features, labels, l2=l2).weight_CD, atol=1e-4, rtol=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 40), st.integers(1, 12), st.integers(2, 4), st.floats(0.1, 100), st.integers(0, 10_000))
def test_any_shape_equals_scikit_learn(rows, width, classes, l2, seed):
    features, outputs = make(rows, width, classes, seed=seed)
    labels = outputs.argmax(axis=1)
    labels[:classes] = range(classes)
    found = logistic_regression(features, labels, l2=l2)(torch.tensor(features)).softmax(dim=1).numpy()
    np.testing.assert_allclose(found, reference(l2).fit(features, labels).predict_proba(features), atol=1e-4)


def test_a_class_without_examples_is_never_predicted():
    features, outputs = make(columns=2)
    labels = outputs.argmax(axis=1)
    head = logistic_regression(features, labels, l2=1.0, num_classes=3)
    probabilities = head(torch.tensor(features)).softmax(dim=1).numpy()
    assert probabilities.shape == (len(labels), 3)
    assert 0 < probabilities[:, 2].max() < 1e-3
    # Two rows of weights share the norm of one: the same optimum as one logit at half the penalty.
    expected = reference(0.5).fit(features, labels).predict_proba(features)
    np.testing.assert_allclose(probabilities[:, :2], expected, atol=1e-3)


def test_a_label_without_examples_leaves_the_others_alone():
    features, outputs = make(columns=3)
    labels = (outputs > [0, 1, np.inf]).astype(int)
    head = logistic_regression(features, labels)
    assert_close(head.weight_CD[:2], logistic_regression(features, labels[:, :2]).weight_CD, atol=1e-4, rtol=0)
    assert head(torch.tensor(features)).sigmoid()[:, 2].max() < 1e-3
    assert torch.isfinite(head.bias_C).all()


def test_a_fit_needs_no_gradients_and_survives_inference_mode():
    features, outputs = make()
    labels = torch.tensor(outputs.argmax(axis=1))
    expected = logistic_regression(features, labels)
    with torch.inference_mode():
        inside = logistic_regression(torch.tensor(features), labels.clone())
    tracked = logistic_regression(torch.tensor(features, requires_grad=True), labels)
    for head in (inside, tracked):
        assert_close(head.weight_CD, expected.weight_CD)
        assert not head.weight_CD.requires_grad


def test_too_few_iterations_warn():
    features, outputs = make()
    with pytest.warns(UserWarning, match="l2=0.01 has not converged in 3 iterations"):
        logistic_regression(features, outputs.argmax(axis=1), l2=0.01, max_iterations=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logistic_regression(features, outputs.argmax(axis=1), l2=0.01)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 40), st.integers(1, 25), st.integers(1, 3), st.floats(1e-2, 1e3), st.booleans(), st.integers(0, 9999)
)
def test_ridge_equals_scikit_learn(rows, width, columns, l2, standardize, seed):
    features, targets = make(rows, width, columns, seed=seed)
    targets += 100
    other, head = ridge(features, targets, [7 * l2, l2], standardize=standardize)
    scaler = [StandardScaler()] if standardize else []
    for ours, alpha in ((other, 7 * l2), (head, l2)):
        theirs = make_pipeline(*scaler, Ridge(alpha, solver="svd")).fit(features, targets)
        predictions = theirs.predict(features).reshape(targets.shape)
        np.testing.assert_allclose(ours(torch.tensor(features)), predictions, atol=1e-6)
        if not standardize:
            np.testing.assert_allclose(ours.weight_CD, np.reshape(theirs[-1].coef_, (columns, width)), atol=1e-6)


def test_ridge_takes_more_and_equal_features_than_rows():
    features, targets = make(10, 4, 2)
    features = np.tile(features, (1, 5))
    (head,) = ridge(features, targets, [0.1])
    theirs = Ridge(0.1, solver="svd").fit(features, targets)
    np.testing.assert_allclose(head.weight_CD, theirs.coef_, atol=1e-8)


@pytest.mark.parametrize(("rows", "width"), [(15, 4), (8, 20)])
def test_leave_one_out_equals_fits_without_the_row(rows, width):
    features, targets = make(rows, width, 2)
    for l2, head in zip([0.5, 10.0], ridge(features, targets, [0.5, 10.0], leave_one_out=True), strict=True):
        errors = []
        for row in range(rows):
            rest = np.arange(rows) != row
            theirs = Ridge(l2, solver="svd").fit(features[rest], targets[rest])
            errors.append((theirs.predict(features[[row]])[0] - targets[row]) ** 2)
        np.testing.assert_allclose(head.leave_one_out_C, np.mean(errors, axis=0), rtol=1e-7)
    assert ridge(features, targets, [1.0])[0].leave_one_out_C is None


def test_a_constant_feature_is_centred_but_not_divided():
    features = torch.stack([torch.full((50,), 0.1), torch.full((50,), -3e4), torch.randn(50) * 1e-9], dim=1)
    scaled, mean, scale = standardized(features, scale=True)
    assert scale[:2].tolist() == [1, 1]
    assert_close(scaled[:, :2], torch.zeros(50, 2), atol=0.01, rtol=0)
    assert_close(scaled[:, 2].std(correction=0), torch.tensor(1.0))
    assert_close(mean[:2], torch.tensor([0.1, -3e4]))


def test_scores_are_the_tasks_default_metrics():
    assert SCORES == DEFAULT_METRICS
    features, outputs = make(60, columns=3)
    head = LinearHead(torch.randn(3, 7), torch.randn(3))
    ours = head(torch.tensor(features)).numpy()
    names = ["a", "b", "c"]

    labels, probabilities = outputs.argmax(axis=1), torch.tensor(ours).softmax(dim=1).numpy()
    score, loss = evaluate(head, *read(features, labels, "single_label"), "single_label")
    assert score == pytest.approx(classification_metrics(labels, probabilities, names)["accuracy"])
    assert loss == pytest.approx(-np.log(probabilities[np.arange(60), labels]).mean(), rel=1e-5)

    labels, probabilities = (outputs > [0, 2, 99]).astype(int), torch.tensor(ours).sigmoid().numpy()
    score, _ = evaluate(head, *read(features, labels, "multi_label"), "multi_label")
    expected = multi_label_metrics(labels, probabilities, tune_thresholds(labels, probabilities), names)
    assert score == pytest.approx(expected["f1_macro"])
    assert 0.2 < score < 0.67

    score, loss = evaluate(head, *read(features, outputs, "regression"), "regression")
    assert score == pytest.approx(
        np.mean([regression_metrics(outputs[:, c], ours[:, c])["spearman"] for c in range(3)])
    )
    assert loss == pytest.approx(((outputs - ours) ** 2).mean(), rel=1e-5)


def test_rank_prefers_score_then_loss_and_puts_nan_last():
    nan, inf = float("nan"), float("inf")
    ordered = [(nan, nan), (nan, inf), (nan, 1.0), (0.5, 2.0), (0.5, 1.0), (0.6, 9.0)]
    ranks = [rank(*pair) for pair in ordered]
    assert ranks == sorted(ranks)
    assert ranks[-1] > ranks[-2] > ranks[-3] > ranks[-4]


FEATURES = np.ones((4, 2))
BAD = [
    ([[1.0, float("nan")]] * 4, [0, 1, 0, 1], "features: NaN or infinite"),
    ([[1.0, float("inf")]] * 4, [0, 1, 0, 1], "features: NaN or infinite"),
    (np.ones((0, 2)), [], "features: no rows"),
    (np.ones((4, 0)), [0, 1, 0, 1], "features: no rows or no features"),
    (np.ones(4), [0, 1, 0, 1], r"features: shape \(4,\)"),
    ([["a"]] * 4, [0, 1, 0, 1], "features: not an array of numbers"),
    (FEATURES, [0, 1, 0], r"labels: shape \(3,\) for 4 rows"),
    (FEATURES, 1, r"labels: shape \(\) for 4 rows"),
    (FEATURES, [1, 1, 1, 1], "labels: all rows have the same label"),
    (FEATURES, [[1, 0]] * 4, "labels: all rows have the same label"),
    (FEATURES, [[1, 0], [2, 0], [0, 0], [0, 1]], "labels: values other than 0 and 1"),
    (FEATURES, [0, 1, -1, 0], "labels: not classes from 0 to 1"),
    (FEATURES, [0.0, 0.5, 1.0, 0.0], "labels: not classes"),
    (FEATURES, [0.0, float("nan"), 1.0, 0.0], "labels: NaN"),
    (FEATURES, ["a", "b", "a", "b"], "labels: not an array of numbers"),
    (FEATURES, np.zeros((4, 2, 2)), r"labels: shape \(4, 2, 2\)"),
]


@pytest.mark.parametrize(("features", "labels", "message"), BAD)
def test_bad_input_is_refused_in_one_line(features, labels, message):
    with pytest.raises(DataError, match=f"^{message}") as caught:
        logistic_regression(features, labels)
    assert "\n" not in str(caught.value)


def test_a_label_beyond_the_number_of_classes_is_refused():
    with pytest.raises(DataError, match="not classes from 0 to 1"):
        logistic_regression(FEATURES, [0, 1, 2, 1], num_classes=2)


@pytest.mark.parametrize("l2", [0.0, -1.0, float("nan"), float("inf")])
def test_a_penalty_must_be_positive(l2):
    with pytest.raises(TrainingError, match=r"^l2: "):
        logistic_regression(FEATURES, [0, 1, 0, 1], l2=l2)
    with pytest.raises(TrainingError, match=r"^l2: "):
        ridge(FEATURES, [0.0, 1, 2, 3], [1.0, l2])
    with pytest.raises(TrainingError, match=r"^l2: "):
        ridge(FEATURES, [0.0, 1, 2, 3], [])


def test_ridge_refuses_constant_and_misshapen_targets():
    with pytest.raises(DataError, match="all rows have the same label"):
        ridge(FEATURES, [2.0] * 4, [1.0])
    with pytest.raises(DataError, match=r"shape \(4, 1, 1\)"):
        ridge(FEATURES, np.zeros((4, 1, 1)), [1.0])


def test_an_unknown_problem_is_refused_with_advice():
    with pytest.raises(RecipeError, match="did you mean 'multi_label'"):
        read(FEATURES, [0, 1, 0, 1], "multilabel")
