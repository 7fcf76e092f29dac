"""The metrics behave as those of `evaluate.load`, offline, in memory, alone and combined."""

from __future__ import annotations

import threading
import warnings

import evaluate
import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn import metrics as sklearn_metrics

from hftransfer.errors import DataError, RecipeError, UserError
from hftransfer.tasks.evaluate_metrics import load, names

PREDICTIONS, REFERENCES = [0, 1, 1, 0, 1], [0, 1, 0, 0, 1]
SCORES = [0.1, 0.9, 0.6, 0.2, 0.5]
CLASSES, PREDICTED_CLASSES = [0, 1, 2, 1], [0, 2, 2, 1]
CLASS_SCORES = [[0.8, 0.1, 0.1], [0.2, 0.3, 0.5], [0.1, 0.1, 0.8], [0.3, 0.6, 0.1]]
LABELS, PREDICTED_LABELS = [[1, 0], [0, 1], [1, 1]], [[1, 0], [1, 1], [0, 1]]
LABEL_SCORES = [[0.9, 0.2], [0.7, 0.6], [0.4, 0.5]]
TARGETS, VALUES = [1.0, 2.0, 4.0, 3.0], [1.5, 1.0, 3.0, 3.5]


def inputs(name):
    if name in ("roc_auc", "average_precision"):
        return {"prediction_scores": SCORES, "references": REFERENCES}
    if name in ("pearsonr", "spearmanr", "mse", "r_squared"):
        return {"predictions": VALUES, "references": TARGETS}
    return {"predictions": PREDICTIONS, "references": REFERENCES}


EXPECTED = {
    "accuracy": sklearn_metrics.accuracy_score(REFERENCES, PREDICTIONS),
    "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(REFERENCES, PREDICTIONS),
    "f1": sklearn_metrics.f1_score(REFERENCES, PREDICTIONS),
    "matthews_correlation": sklearn_metrics.matthews_corrcoef(REFERENCES, PREDICTIONS),
    "roc_auc": sklearn_metrics.roc_auc_score(REFERENCES, SCORES),
    "average_precision": sklearn_metrics.average_precision_score(REFERENCES, SCORES),
    "pearsonr": pearsonr(TARGETS, VALUES)[0],
    "spearmanr": spearmanr(TARGETS, VALUES)[0],
    "mse": sklearn_metrics.mean_squared_error(TARGETS, VALUES),
    "r_squared": sklearn_metrics.r2_score(TARGETS, VALUES),
}


def test_every_metric_has_an_expected_value():
    assert names() == sorted(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
@pytest.mark.parametrize("convert", [list, np.array, torch.tensor])
def test_value_and_key_for_lists_arrays_and_tensors(name, convert):
    metric = load(name)
    assert isinstance(metric, evaluate.Metric)
    assert metric.name == name
    for _ in range(2):  # an instance serves again after compute
        result = metric.compute(**{key: convert(values) for key, values in inputs(name).items()})
        assert result == {name: pytest.approx(EXPECTED[name], rel=1e-6)}
        assert type(result[name]) is float


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_batches_and_single_examples_add_up(name):
    data = inputs(name)
    batches, singles = load(name), load(name)
    first = next(iter(data))
    for part in (slice(0, 2), slice(2, None)):
        batches.add_batch(**{key: values[part] for key, values in data.items()})
    for prediction, reference in zip(data[first], data["references"], strict=True):
        if first == "predictions":
            singles.add(prediction=prediction, reference=reference)
        else:
            singles.add_batch(prediction_scores=[prediction], references=[reference])
    assert batches.compute() == singles.compute() == {name: pytest.approx(EXPECTED[name])}


@pytest.mark.parametrize(
    ("name", "data", "keywords", "expected"),
    [
        (
            "accuracy",
            {"predictions": PREDICTIONS, "references": REFERENCES},
            {"normalize": False},
            sklearn_metrics.accuracy_score(REFERENCES, PREDICTIONS, normalize=False),
        ),
        ("accuracy", {"predictions": PREDICTED_LABELS, "references": LABELS}, {}, 1 / 3),
        (
            "balanced_accuracy",
            {"predictions": PREDICTIONS, "references": REFERENCES},
            {"adjusted": True},
            sklearn_metrics.balanced_accuracy_score(REFERENCES, PREDICTIONS, adjusted=True),
        ),
        (
            "f1",
            {"predictions": PREDICTIONS, "references": REFERENCES},
            {"pos_label": 0},
            sklearn_metrics.f1_score(REFERENCES, PREDICTIONS, pos_label=0),
        ),
        (
            "f1",
            {"predictions": PREDICTED_CLASSES, "references": CLASSES},
            {"average": "macro", "labels": [1, 2]},
            sklearn_metrics.f1_score(CLASSES, PREDICTED_CLASSES, average="macro", labels=[1, 2]),
        ),
        (
            "f1",
            {"predictions": PREDICTED_LABELS, "references": LABELS},
            {"average": "micro"},
            sklearn_metrics.f1_score(LABELS, PREDICTED_LABELS, average="micro"),
        ),
        (
            "f1",
            {"predictions": PREDICTIONS, "references": REFERENCES},
            {"sample_weight": [1, 2, 3, 4, 5]},
            sklearn_metrics.f1_score(REFERENCES, PREDICTIONS, sample_weight=[1, 2, 3, 4, 5]),
        ),
        (
            "roc_auc",
            {"prediction_scores": CLASS_SCORES, "references": CLASSES},
            {"multi_class": "ovo"},
            sklearn_metrics.roc_auc_score(CLASSES, CLASS_SCORES, multi_class="ovo"),
        ),
        (
            "roc_auc",
            {"prediction_scores": LABEL_SCORES, "references": LABELS},
            {},
            sklearn_metrics.roc_auc_score(LABELS, LABEL_SCORES),
        ),
        (
            "average_precision",
            {"prediction_scores": LABEL_SCORES, "references": LABELS},
            {"average": "micro"},
            sklearn_metrics.average_precision_score(LABELS, LABEL_SCORES, average="micro"),
        ),
        (
            "mse",
            {"predictions": VALUES, "references": TARGETS},
            {"squared": False},
            sklearn_metrics.root_mean_squared_error(TARGETS, VALUES),
        ),
    ],
)
def test_keywords_and_nested_inputs(name, data, keywords, expected):
    assert load(name).compute(**data, **keywords) == {name: pytest.approx(expected)}
    tensors = {key: torch.tensor(values) for key, values in data.items()}
    assert load(name).compute(**tensors, **keywords) == {name: pytest.approx(expected)}


def test_no_average_gives_one_value_per_class():
    result = load("f1").compute(predictions=PREDICTED_CLASSES, references=CLASSES, average=None)
    assert result["f1"].tolist() == sklearn_metrics.f1_score(CLASSES, PREDICTED_CLASSES, average=None).tolist()
    result = load("mse", "multilist").compute(predictions=LABEL_SCORES, references=LABELS, multioutput="raw_values")
    assert result["mse"].shape == (2,)


def test_p_values_on_request():
    pearson = load("pearsonr").compute(predictions=VALUES, references=TARGETS, return_pvalue=True)
    assert pearson["p-value"] == pytest.approx(pearsonr(TARGETS, VALUES)[1])
    spearman = load("spearmanr").compute(predictions=VALUES, references=TARGETS, return_pvalue=True)
    assert spearman["spearmanr_pvalue"] == pytest.approx(spearmanr(TARGETS, VALUES)[1])


def test_two_columns_of_scores_mean_two_classes():
    both = [[1 - score, score] for score in SCORES]
    for name in ("roc_auc", "average_precision"):
        result = load(name).compute(prediction_scores=both, references=REFERENCES)
        assert result[name] == pytest.approx(EXPECTED[name])


def test_bfloat16_tensors_with_gradients_are_taken():
    scores = torch.tensor(SCORES, dtype=torch.bfloat16, requires_grad=True)
    result = load("roc_auc").compute(prediction_scores=scores, references=torch.tensor(REFERENCES))
    assert result["roc_auc"] == pytest.approx(EXPECTED["roc_auc"])


def test_undefined_values_are_quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(load("roc_auc").compute(prediction_scores=[0.1, 0.2], references=[1, 1])["roc_auc"])
        assert load("f1").compute(predictions=[0, 0], references=[0, 0]) == {"f1": 0.0}
        assert load("matthews_correlation").compute(predictions=[0, 0], references=[0, 1]) == {
            "matthews_correlation": 0.0
        }
        for name in ("pearsonr", "spearmanr"):
            assert np.isnan(load(name).compute(predictions=[1.0, 1.0], references=[1.0, 2.0])[name])
            assert np.isnan(load(name).compute(predictions=[1.0], references=[1.0])[name])


def test_combine_passes_each_metric_what_is_its_own():
    parts = ("accuracy", "f1", "roc_auc", "average_precision")
    combined = evaluate.combine([load(name) for name in parts])
    together = combined.compute(
        predictions=PREDICTIONS, references=REFERENCES, prediction_scores=SCORES, average="macro"
    )
    assert together["f1"] == pytest.approx(sklearn_metrics.f1_score(REFERENCES, PREDICTIONS, average="macro"))
    for part in (slice(0, 3), slice(3, None)):
        combined.add_batch(
            predictions=PREDICTIONS[part], references=REFERENCES[part], prediction_scores=torch.tensor(SCORES[part])
        )
    assert combined.compute() == {name: pytest.approx(EXPECTED[name], rel=1e-6) for name in parts}


def test_combine_prefixes_equal_metrics_by_name():
    combined = evaluate.combine({"first": load("roc_auc"), "second": load("roc_auc")})
    result = combined.compute(prediction_scores=SCORES, references=REFERENCES)
    assert set(result) == {"first_roc_auc", "second_roc_auc"}


def test_nothing_is_written_to_the_cache(tmp_path, monkeypatch):
    # A file where the cache folder should be: making the folder would fail.
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(blocked))
    assert load("f1").compute(predictions=PREDICTIONS, references=REFERENCES)["f1"] == pytest.approx(EXPECTED["f1"])
    on_disk = load("f1", keep_in_memory=False, cache_dir=str(tmp_path / "cache"))
    assert on_disk.compute(predictions=PREDICTIONS, references=REFERENCES)["f1"] == pytest.approx(EXPECTED["f1"])
    assert (tmp_path / "cache").is_dir()


def test_interleaved_instances_do_not_clash():
    right, wrong = load("accuracy"), load("accuracy")
    for _ in range(3):
        right.add_batch(predictions=[1, 1], references=[1, 1])
        wrong.add_batch(predictions=[0], references=[1])
    assert (right.compute(), wrong.compute()) == ({"accuracy": 1.0}, {"accuracy": 0.0})


def test_instances_in_parallel_threads_do_not_clash():
    results = {}

    def score(share):
        metric = load("accuracy")
        for _ in range(5):
            metric.add_batch(predictions=[1] * 4, references=[1] * share + [0] * (4 - share))
        results[share] = metric.compute()["accuracy"]

    threads = [threading.Thread(target=score, args=(share,)) for share in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {share: share / 4 for share in range(5)}


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda: load("acuracy"), RecipeError, "did you mean 'accuracy'"),
        (lambda: load("mse", "multilabel"), RecipeError, "did you mean 'multilist'"),
        (lambda: load("f1").compute(predictions=[0], references=[0], avrage="macro"), RecipeError, "mean 'average'"),
        (lambda: load("f1").compute(predictions=[0, 1, 2], references=[0, 1, 1]), DataError, "f1: Target is multicl"),
        (lambda: load("f1").compute(predictions=[], references=[]), DataError, "no examples"),
        (lambda: load("f1").compute(), DataError, "call add_batch before"),
        (lambda: load("pearsonr").compute(predictions=[[1.0]], references=[[1.0]]), DataError, "nested"),
        (lambda: load("f1", "multilabel").compute(predictions=[1], references=[1]), DataError, "nested"),
        (
            lambda: load("roc_auc").compute(prediction_scores=[[3.0, 1.0, 2.0]] * 3, references=[0, 1, 2]),
            DataError,
            "sum up to 1",
        ),
    ],
)
def test_mistakes_are_user_errors(act, error, message):
    with pytest.raises(error, match=message) as caught:
        act()
    assert isinstance(caught.value, UserError)


def test_an_instance_serves_again_after_a_mistake():
    metric = load("f1")
    with pytest.raises(DataError):
        metric.compute(predictions=[0, 1, 2], references=[0, 1, 1])
    with pytest.raises(ValueError, match="Mismatch"):
        metric.compute(predictions=[0, 1], references=[0])
    assert metric.compute(predictions=PREDICTIONS, references=REFERENCES)["f1"] == pytest.approx(EXPECTED["f1"])
