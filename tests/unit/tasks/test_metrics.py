"""The numbers are scikit-learn's and scipy's, the conventions those of the docstrings, the thresholds optimal."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn import metrics as sklearn_metrics

from hftransfer.errors import DataError, RecipeError
from hftransfer.tasks.metrics import (
    GREATER_IS_BETTER,
    METRICS,
    classification_metrics,
    greater_is_better,
    multi_label_metrics,
    regression_metrics,
    tune_thresholds,
)

ROOT = Path(__file__).parents[3]


def names(count):
    return [f"label{index}" for index in range(count)]


def same(ours, theirs):
    return ours == pytest.approx(theirs, rel=1e-9, abs=1e-12, nan_ok=True)


@st.composite
def single_label_problems(draw):
    count, classes = draw(st.integers(1, 12)), draw(st.integers(2, 4))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    # Few distinct values, so that ties occur.
    scores = draw(st.lists(st.integers(1, 5), min_size=count * classes, max_size=count * classes))
    scores = np.array(scores, dtype=float).reshape(count, classes)
    return np.array(labels), scores / scores.sum(axis=1, keepdims=True)


@st.composite
def multi_label_problems(draw):
    count, classes = draw(st.integers(1, 12)), draw(st.integers(2, 4))
    labels = draw(st.lists(st.integers(0, 1), min_size=count * classes, max_size=count * classes))
    scores = draw(st.lists(st.integers(0, 6), min_size=count * classes, max_size=count * classes))
    return np.array(labels).reshape(count, classes), np.array(scores, dtype=float).reshape(count, classes) / 6


@given(single_label_problems())
@settings(max_examples=60, deadline=None)
def test_single_label_scores_equal_scikit_learn(problem):
    labels, probabilities = problem
    classes = probabilities.shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = classification_metrics(labels, probabilities, names(classes))
    predictions, everything = probabilities.argmax(axis=1), np.arange(classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if classes == 2:
            roc_auc = sklearn_metrics.roc_auc_score(labels, probabilities[:, 1])
            average_precision = sklearn_metrics.average_precision_score(labels, probabilities[:, 1])
        else:
            roc_auc = sklearn_metrics.roc_auc_score(labels, probabilities, multi_class="ovr", labels=everything)
            average_precision = sklearn_metrics.average_precision_score(np.eye(classes)[labels], probabilities)
        theirs = {
            "accuracy": sklearn_metrics.accuracy_score(labels, predictions),
            "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(labels, predictions),
            **{
                f"f1_{average}": sklearn_metrics.f1_score(labels, predictions, average=average)
                for average in ("macro", "micro", "weighted")
            },
            "mcc": sklearn_metrics.matthews_corrcoef(labels, predictions),
            "roc_auc": roc_auc,
            "average_precision": average_precision,
        }
        f1 = sklearn_metrics.f1_score(labels, predictions, labels=everything, average=None, zero_division=0)
    theirs |= {f"f1/label{index}": value for index, value in enumerate(f1)}
    assert set(ours) == set(theirs)
    assert all(type(value) is float for value in ours.values())
    assert {name for name in ours if not same(ours[name], theirs[name])} == set()


@given(multi_label_problems(), st.integers(0, 6))
@settings(max_examples=60, deadline=None)
def test_multi_label_scores_equal_scikit_learn_over_the_rankable_labels(problem, sixths):
    labels, probabilities = problem
    classes = labels.shape[1]
    thresholds = np.full(classes, sixths / 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = multi_label_metrics(labels, probabilities, thresholds, names(classes))
    predictions = (probabilities >= thresholds).astype(int)
    theirs = {"accuracy": sklearn_metrics.accuracy_score(labels, predictions)}
    for average in ("macro", "micro", "weighted"):
        theirs[f"f1_{average}"] = sklearn_metrics.f1_score(labels, predictions, average=average, zero_division=0)
    f1 = sklearn_metrics.f1_score(labels, predictions, average=None, zero_division=0)
    theirs |= {f"f1/label{index}": value for index, value in enumerate(f1)}
    rankable = [index for index in range(classes) if len(set(labels[:, index])) == 2]
    theirs["labels_skipped"] = classes - len(rankable)
    for name, score in (
        ("roc_auc", sklearn_metrics.roc_auc_score),
        ("average_precision", sklearn_metrics.average_precision_score),
    ):
        values = [score(labels[:, index], probabilities[:, index]) for index in rankable]
        theirs[name] = np.mean(values) if values else math.nan
    assert set(ours) == set(theirs)
    assert {name for name in ours if not same(ours[name], theirs[name])} == set()


@given(st.lists(st.tuples(st.integers(-5, 5), st.floats(-1e3, 1e3)), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_regression_scores_equal_scipy_and_scikit_learn(pairs):
    targets, predictions = np.array(pairs, dtype=float).T
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = regression_metrics(targets, predictions)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        theirs = {
            "pearson": pearsonr(targets, predictions)[0] if len(targets) > 1 else math.nan,
            "spearman": spearmanr(targets, predictions)[0] if len(targets) > 1 else math.nan,
            "mse": sklearn_metrics.mean_squared_error(targets, predictions),
            "r2": sklearn_metrics.r2_score(targets, predictions),
        }
    assert set(ours) == set(theirs) == set(METRICS["regression"])
    assert {name for name in ours if not same(ours[name], theirs[name])} == set()


def test_known_values_of_a_small_example():
    labels = np.array([0, 0, 0, 1])
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
    scores = classification_metrics(labels, probabilities, ["no", "yes"])
    assert scores["accuracy"] == 0.75
    assert scores["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["f1/no"] == pytest.approx(0.8)
    assert scores["f1/yes"] == pytest.approx(2 / 3)
    assert scores["f1_macro"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert scores["f1_weighted"] == pytest.approx(0.75 * 0.8 + 0.25 * 2 / 3)
    assert scores["mcc"] == pytest.approx(1 / math.sqrt(3))
    assert scores["roc_auc"] == pytest.approx(2 / 3)
    assert scores["average_precision"] == pytest.approx(0.5)


def test_class_absent_from_the_labels():
    probabilities = np.array([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.1, 0.8, 0.1]])
    scores = classification_metrics(np.array([0, 1, 1]), probabilities, ["a", "b", "c"])
    assert scores["accuracy"] == scores["f1_macro"] == scores["balanced_accuracy"] == 1.0
    assert scores["f1/c"] == 0.0
    assert math.isnan(scores["roc_auc"])
    assert scores["average_precision"] == pytest.approx(2 / 3)


def test_rows_that_do_not_sum_to_exactly_one_are_scored():
    probabilities = np.array([[0.5, 0.3, 0.21], [0.2, 0.5, 0.3], [0.1, 0.1, 0.79]], dtype=np.float16)
    assert classification_metrics(np.array([0, 1, 2]), probabilities, names(3))["roc_auc"] == 1.0


def test_labels_with_one_class_are_skipped_and_counted():
    labels = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1]])
    probabilities = np.array([[0.9, 0.1, 0.9], [0.2, 0.1, 0.8], [0.6, 0.2, 0.7]])
    scores = multi_label_metrics(labels, probabilities, np.full(3, 0.5), ["a", "b", "c"])
    assert scores["labels_skipped"] == 2.0
    assert scores["roc_auc"] == scores["average_precision"] == 1.0
    assert scores["f1/b"] == 0.0
    nothing = multi_label_metrics(labels[:, 1:2], probabilities[:, 1:2], np.full(1, 0.5), ["b"])
    assert math.isnan(nothing["roc_auc"])
    assert math.isnan(nothing["average_precision"])
    assert nothing["f1_weighted"] == nothing["f1_micro"] == 0.0


def test_multi_label_scores_of_a_single_column_are_those_of_its_positives():
    labels, probabilities = np.array([[1], [0], [1]]), np.array([[0.9], [0.6], [0.2]])
    scores = multi_label_metrics(labels, probabilities, np.array([0.5]), ["a"])
    assert scores["f1_macro"] == scores["f1_micro"] == scores["f1_weighted"] == scores["f1/a"] == 0.5


def test_float_and_bool_labels_and_each_label_its_threshold():
    labels = np.array([[1.0, 0.0], [0.0, 1.0]])
    probabilities = np.array([[0.4, 0.7], [0.3, 0.8]])
    for dtype in (np.float32, bool):
        scores = multi_label_metrics(labels.astype(dtype), probabilities, np.array([0.4, 0.8]), ["a", "b"])
        assert scores["accuracy"] == 1.0


def test_regression_conventions():
    constant = regression_metrics(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0]))
    assert math.isnan(constant["pearson"])
    assert math.isnan(constant["spearman"])
    assert constant["r2"] == 0.0
    assert regression_metrics(np.ones(3), np.ones(3))["r2"] == 1.0
    assert math.isnan(regression_metrics(np.ones(1), np.ones(1))["r2"])


@given(multi_label_problems(), st.sampled_from([np.float16, np.float32, np.float64]))
@settings(max_examples=40, deadline=None)
def test_no_threshold_beats_the_tuned_one(problem, dtype):
    labels, probabilities = problem[0], problem[1].astype(dtype)
    thresholds = tune_thresholds(labels, probabilities)
    for truth, scores, threshold in zip(labels.T, probabilities.T, thresholds, strict=True):
        if not truth.any():
            assert threshold == 0.5
            continue
        tried = [*scores, 2.0]
        best = max(sklearn_metrics.f1_score(truth, scores >= cut, zero_division=0) for cut in tried)
        assert sklearn_metrics.f1_score(truth, scores >= threshold, zero_division=0) == pytest.approx(best)
        # The same decisions when the scores stay in their own precision.
        assert np.array_equal(scores >= threshold, scores >= dtype(threshold))
        distinct = [0.0, *sorted(set(scores.astype(float)))]
        halves = [low + (high - low) / 2 for low, high in pairwise(distinct)]
        assert np.isclose([*halves, 0.0], threshold, atol=2e-3).any()


def test_threshold_lies_halfway():
    labels = np.array([[1, 0, 1], [1, 0, 1], [0, 0, 1], [0, 0, 1]])
    probabilities = np.array([[0.9, 0.9, 0.8], [0.6, 0.1, 0.6], [0.2, 0.2, 0.4], [0.1, 0.3, 0.2]])
    assert tune_thresholds(labels, probabilities).tolist() == pytest.approx([0.4, 0.5, 0.1])


def test_threshold_between_neighbouring_floats_separates_them():
    for dtype in (np.float32, np.float64):
        low = dtype(0.3)
        high = np.nextafter(low, dtype(1))
        threshold = tune_thresholds(np.array([[0], [1]]), np.array([[low], [high]], dtype=dtype))[0]
        assert not low >= threshold
        assert high >= threshold


def test_thresholds_at_zero_and_on_many_examples():
    assert tune_thresholds(np.array([[1], [1]]), np.zeros((2, 1)))[0] == 0.0
    generator = np.random.default_rng(0)
    labels = generator.random((20_000, 20)) < 0.1
    probabilities = np.clip(generator.random((20_000, 20)) + 0.3 * labels, 0, 1)
    tuned = multi_label_metrics(labels, probabilities, tune_thresholds(labels, probabilities), names(20))
    half = multi_label_metrics(labels, probabilities, np.full(20, 0.5), names(20))
    assert tuned["f1_macro"] > half["f1_macro"]


def test_score_names_are_those_declared():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8]])
    single = classification_metrics(np.array([0, 1]), probabilities, ["a", "b"])
    several = multi_label_metrics(np.eye(2), probabilities, np.full(2, 0.5), ["a", "b"])
    assert set(single) == {*METRICS["single_label"], "f1/a", "f1/b"}
    assert set(several) == {*METRICS["multi_label"], "f1/a", "f1/b", "labels_skipped"}
    assert set(GREATER_IS_BETTER) == {"loss"}.union(*METRICS.values())


def test_direction_of_each_metric():
    assert [name for name in GREATER_IS_BETTER if not greater_is_better(name)] == [
        "loss",
        "mse",
        "token_loss",
        "perplexity",
    ]
    assert greater_is_better("f1/entailment")


@pytest.mark.parametrize(
    ("wrong", "right"), [("f1_marco", "f1_macro"), ("Accuracy", "accuracy"), ("f1_w", "f1_weighted")]
)
def test_unknown_metric_names_the_nearest(wrong, right):
    with pytest.raises(RecipeError, match=f"did you mean '{right}'"):
        greater_is_better(wrong)


@pytest.mark.parametrize("wrong", ["zzzzzz", "", "/"])
def test_unknown_metric_far_from_all_lists_them(wrong):
    with pytest.raises(RecipeError, match="known names: accuracy, ") as error:
        greater_is_better(wrong)
    assert "did you mean" not in str(error.value)


GOOD = np.array([[0.9, 0.1], [0.2, 0.8]])


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda: classification_metrics(np.array([0, 2]), GOOD, ["a", "b"]), "labels outside 0..1"),
        (lambda: classification_metrics(np.array([0, -100]), GOOD, ["a", "b"]), "labels outside 0..1"),
        (lambda: classification_metrics(np.array([0]), GOOD, ["a", "b"]), "shape"),
        (lambda: classification_metrics(np.array([0, 1]), GOOD[:, :1], ["a"]), "one class only"),
        (lambda: classification_metrics(np.array([0, 1]), GOOD[:, 0], ["a"]), "shape"),
        (lambda: classification_metrics(np.array([0, 1]), GOOD * np.nan, ["a", "b"]), "NaN or infinite"),
        (lambda: classification_metrics(np.array([0, 1]), GOOD, ["a"]), "1 names for 2 columns"),
        (lambda: classification_metrics(np.array([0, 1]), GOOD, ["a", "a"]), "occurs twice"),
        (lambda: classification_metrics(np.zeros(0, int), np.zeros((0, 2)), ["a", "b"]), "no examples"),
        (lambda: multi_label_metrics(np.array([[0, 2], [0, 1]]), GOOD, np.full(2, 0.5), ["a", "b"]), "other than 0"),
        (lambda: multi_label_metrics(np.eye(3)[:2], GOOD, np.full(2, 0.5), ["a", "b"]), "shapes"),
        (lambda: multi_label_metrics(np.eye(2), GOOD, np.full(3, 0.5), ["a", "b"]), "thresholds"),
        (lambda: multi_label_metrics(np.eye(2), GOOD * 3, np.full(2, 0.5), ["a", "b"]), "sigmoid"),
        (lambda: tune_thresholds(np.eye(2), -GOOD), "sigmoid"),
        (lambda: regression_metrics(np.zeros(2), np.zeros((2, 1))), "shapes"),
        (lambda: regression_metrics(np.array([0.0, np.inf]), np.zeros(2)), "targets: NaN or infinite"),
        (lambda: regression_metrics(np.zeros(0), np.zeros(0)), "no examples"),
    ],
)
def test_what_cannot_be_scored_is_a_user_error(score, message):
    with pytest.raises(DataError, match=message):
        score()


def test_module_does_not_import_torch():
    code = "import sys, hftransfer.tasks.metrics; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
