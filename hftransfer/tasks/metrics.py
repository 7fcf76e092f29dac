"""Scores of text classification and regression on numpy arrays; the numbers are scikit-learn's and scipy's.

All scores are fractions (0 to 1, correlations -1 to 1), never percent. A score that the data leave undefined is NaN or
0 as scikit-learn defines it (each function says which), without an exception and without a warning.

Both packages are loaded when the first score is wanted: a training's start does not wait for them.

Shape suffixes: N = examples, C = classes or labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hftransfer.errors import DataError, RecipeError
from hftransfer.tasks.metric_names import METRICS as METRICS
from hftransfer.tasks.metric_names import did_you_mean as did_you_mean
from hftransfer.tasks.squad import best_scores

Array = NDArray[Any]

GREATER_IS_BETTER: dict[str, bool] = {
    "loss": False,
    **{name: name not in ("mse", "token_loss", "perplexity") for names in METRICS.values() for name in names},
}
"""Whether a larger value of the named score is better."""


def greater_is_better(metric_name: str) -> bool:
    """Say in which direction a score improves.

    Args:
        metric_name: "loss", a name of `METRICS`, or the F1 of one label as "f1/<label>".

    Raises:
        RecipeError: If no such score exists.
    """
    if metric_name.startswith("f1/") and metric_name != "f1/":
        return True
    if metric_name not in GREATER_IS_BETTER:
        raise RecipeError(f"unknown metric {metric_name!r}", fix=did_you_mean(metric_name, GREATER_IS_BETTER))
    return GREATER_IS_BETTER[metric_name]


def classification_metrics(labels_N: Array, probabilities_NC: Array, label_names: Sequence[str]) -> dict[str, float]:
    """Score a problem in which each example has exactly one of C >= 2 classes.

    The prediction is the class of highest probability, the first one among equals. What is undefined:

    - `f1/<label>` is 0 for a class in neither labels nor predictions; `f1_macro` averages over the other classes.
    - `balanced_accuracy` is the mean recall of the classes that occur in the labels.
    - `mcc` is 0 if labels or predictions hold one class only.
    - `roc_auc` (of class 1 if C = 2, else the mean of one-vs-rest) is NaN if a class is absent from the labels.
    - `average_precision` (of class 1 if C = 2, else the mean of one-vs-rest) counts 0 for an absent class.

    Args:
        labels_N: Class of each example, integers in 0..C-1.
        probabilities_NC: Probability of each class. The rows need not sum to exactly one.
        label_names: The C names, used in `f1/<name>`.

    Returns:
        The scores of `METRICS["single_label"]` and `f1/<name>` for each class.

    Raises:
        DataError: If shapes, labels or names do not fit together, a probability is not finite, or there is no example.
    """
    labels_N, probabilities_NC = np.asarray(labels_N), _as_scores(probabilities_NC, "probabilities")
    _check_table(probabilities_NC, label_names)
    count, classes = probabilities_NC.shape
    if classes < 2:
        raise DataError("one class only", where="probabilities", fix="give one column per class, two or more")
    if labels_N.shape != (count,):
        raise DataError(f"shape {labels_N.shape} instead of ({count},)", where="labels")
    if not np.isin(labels_N, np.arange(classes)).all():
        raise DataError(f"labels outside 0..{classes - 1}", where="labels", fix="map them to the classes of the model")
    labels_N = labels_N.astype(np.int64)
    predictions_N = probabilities_NC.argmax(axis=1)
    correct_N = predictions_N == labels_N

    hits_C = np.bincount(labels_N[correct_N], minlength=classes)
    actual_C = np.bincount(labels_N, minlength=classes)
    predicted_C = np.bincount(predictions_N, minlength=classes)
    f1_C = _f1(hits_C, predicted_C, actual_C)
    occurring_C = actual_C + predicted_C > 0
    present_C = actual_C > 0
    one_hot_NC = labels_N[:, None] == np.arange(classes)
    ranked = slice(1, 2) if classes == 2 else slice(None)
    return {
        "accuracy": float(correct_N.mean()),
        "balanced_accuracy": float((hits_C[present_C] / actual_C[present_C]).mean()),
        "f1_macro": float(f1_C[occurring_C].mean()),
        "f1_micro": float(_f1(hits_C.sum(), predicted_C.sum(), actual_C.sum())),
        "f1_weighted": float(np.average(f1_C, weights=actual_C)),
        "mcc": _matthews(labels_N, predictions_N),
        "roc_auc": float(_per_column("roc_auc_score", one_hot_NC[:, ranked], probabilities_NC[:, ranked]).mean()),
        "average_precision": float(
            _per_column("average_precision_score", one_hot_NC[:, ranked], probabilities_NC[:, ranked]).mean()
        ),
        **_named_f1(f1_C, label_names),
    }


def multi_label_metrics(
    labels_NC: Array, probabilities_NC: Array, thresholds_C: Array, label_names: Sequence[str]
) -> dict[str, float]:
    """Score a problem in which each example has any number of C labels.

    A label is predicted where its probability is at or above its threshold. `accuracy` is subset accuracy: the share of
    examples with every label right. What is undefined:

    - `f1/<label>` is 0 for a label with neither positives nor predictions, and counts as 0 in `f1_macro`; `f1_micro`
      and `f1_weighted` are 0 if there are none at all.
    - `roc_auc` and `average_precision` are means over the labels that have positives and negatives; `labels_skipped`
      says how many have not. They are NaN if all are skipped. (One such label would make scikit-learn's own mean NaN.)

    Args:
        labels_NC: 1 where the example has the label, else 0; bool, integer or float.
        probabilities_NC: Probability of each label.
        thresholds_C: Threshold of each label, as from `tune_thresholds`.
        label_names: The C names, used in `f1/<name>`.

    Returns:
        The scores of `METRICS["multi_label"]`, `f1/<name>` for each label, and `labels_skipped`, a count.

    Raises:
        DataError: If shapes, labels or names do not fit, a probability is outside 0..1, or no example is given.
    """
    labels_NC, probabilities_NC = _as_labels_and_scores(labels_NC, probabilities_NC)
    _check_table(probabilities_NC, label_names)
    thresholds_C = _as_scores(thresholds_C, "thresholds")
    if thresholds_C.shape != labels_NC.shape[1:]:
        raise DataError(f"shape {thresholds_C.shape} instead of {labels_NC.shape[1:]}", where="thresholds")
    predictions_NC = probabilities_NC >= thresholds_C

    hits_C, predicted_C = (labels_NC & predictions_NC).sum(axis=0), predictions_NC.sum(axis=0)
    actual_C = labels_NC.sum(axis=0)
    f1_C = _f1(hits_C, predicted_C, actual_C)
    rankable_C = (actual_C > 0) & (actual_C < len(labels_NC))
    ranked = labels_NC[:, rankable_C], probabilities_NC[:, rankable_C]
    any_ranked = bool(rankable_C.any())
    return {
        "accuracy": float((predictions_NC == labels_NC).all(axis=1).mean()),
        "f1_macro": float(f1_C.mean()),
        "f1_micro": float(_f1(hits_C.sum(), predicted_C.sum(), actual_C.sum())),
        "f1_weighted": float(np.average(f1_C, weights=actual_C)) if actual_C.any() else 0.0,
        "roc_auc": float(_per_column("roc_auc_score", *ranked).mean()) if any_ranked else np.nan,
        "average_precision": float(_per_column("average_precision_score", *ranked).mean()) if any_ranked else np.nan,
        "labels_skipped": float((~rankable_C).sum()),
        **_named_f1(f1_C, label_names),
    }


def regression_metrics(targets_N: Array, predictions_N: Array) -> dict[str, float]:
    """Score real-valued predictions.

    What is undefined:

    - `pearson` and `spearman` are NaN if targets or predictions are constant, or with fewer than two examples.
    - `r2` is NaN with fewer than two examples; with constant targets it is 1 if all predictions are exact, else 0.

    Args:
        targets_N: True values.
        predictions_N: Predicted values, in the unit of the targets.

    Returns:
        The scores of `METRICS["regression"]`; `mse` in squared units of the targets.

    Raises:
        DataError: If the shapes differ, a number is not finite, or there is no example.
    """
    from scipy import stats
    from sklearn import metrics as sklearn_metrics

    targets_N = _as_scores(targets_N, "targets").astype(np.float64)
    predictions_N = _as_scores(predictions_N, "predictions").astype(np.float64)
    if targets_N.ndim != 1 or targets_N.shape != predictions_N.shape:
        raise DataError(
            f"shapes {predictions_N.shape} and {targets_N.shape} instead of (N,)", where="predictions, targets"
        )
    correlated = len(targets_N) > 1
    with _quiet():
        return {
            "pearson": float(stats.pearsonr(targets_N, predictions_N).statistic) if correlated else np.nan,
            "spearman": float(stats.spearmanr(targets_N, predictions_N).statistic) if correlated else np.nan,
            "mse": float(np.mean((targets_N - predictions_N) ** 2)),
            "r2": float(sklearn_metrics.r2_score(targets_N, predictions_N)),
        }


def multiple_choice_metrics(labels_N: Array, logits: Iterable[Array]) -> dict[str, float]:
    """Score a problem in which each example has one right choice among its own.

    Args:
        labels_N: The number of the right choice, from 0.
        logits: For each example the logit of every choice.

    Returns:
        The scores of `METRICS["multiple_choice"]`, where the first of equally good choices counts, and `chance`, the
        accuracy of guessing.

    Raises:
        DataError: If a number is not finite, or there is no example.
    """
    checked = [_as_scores(row_C, "predictions") for row_C in logits]
    if not checked:
        raise DataError("no examples to score", where="predictions")
    hits = [int(row_C.argmax()) == label for row_C, label in zip(checked, labels_N, strict=True)]
    return {
        "accuracy": float(np.mean(hits)),
        "chance": float(np.mean([1 / len(row_C) for row_C in checked])),
    }


def question_answering_metrics(answers: Sequence[str], golds: Sequence[Sequence[str]]) -> dict[str, float]:
    """Score answers by SQuAD's rules (`squad.py`).

    Args:
        answers: The predicted texts, "" for no answer.
        golds: The right answers of each question; none where there is no answer.

    Returns:
        The scores of `METRICS["question_answering"]`, and `share_unanswerable`, which is the exact match and the F1 of
        never answering. `f1_answerable` and `accuracy_unanswerable` are NaN where there is no such question.

    Raises:
        DataError: If there is no question.
    """
    if not answers:
        raise DataError("no examples to score", where="predictions")
    scores_N2 = np.asarray([best_scores(answer, gold) for answer, gold in zip(answers, golds, strict=True)])
    is_empty_N = np.asarray([best_scores("", gold)[0] == 1.0 for gold in golds])
    exact_N, f1_N = scores_N2.T
    return {
        "exact_match": float(exact_N.mean()),
        "f1": float(f1_N.mean()),
        "f1_answerable": float(f1_N[~is_empty_N].mean()) if not is_empty_N.all() else np.nan,
        "accuracy_unanswerable": float(exact_N[is_empty_N].mean()) if is_empty_N.any() else np.nan,
        "share_unanswerable": float(is_empty_N.mean()),
    }


def tune_thresholds(labels_NC: Array, probabilities_NC: Array) -> NDArray[np.float64]:
    """Find for each label the threshold that maximises its F1 on these (validation) examples.

    The search is exact: sorting the scores shows the F1 of every cut between two different scores. The threshold lies
    halfway between the scores around the best cut (0 stands in below the lowest score), the highest one among equals.
    It is exact in the precision of the probabilities, so that float32 scores may be compared with it in float32.

    Args:
        labels_NC: 1 where the example has the label, else 0.
        probabilities_NC: Probability of each label, in 0..1.

    Returns:
        thresholds_C: A label is to be predicted at or above its threshold; 0.5 for a label without positives.

    Raises:
        DataError: If the shapes differ, a number is not finite or no probability, or there is no example.
    """
    labels_NC, probabilities_NC = _as_labels_and_scores(labels_NC, probabilities_NC)
    order_NC = np.argsort(-probabilities_NC, axis=0, kind="stable")
    scores_NC = np.take_along_axis(probabilities_NC, order_NC, axis=0)
    hits_NC = np.take_along_axis(labels_NC, order_NC, axis=0).cumsum(axis=0)
    actual_C = hits_NC[-1]
    f1_NC = _f1(hits_NC, np.arange(1, len(scores_NC) + 1)[:, None], actual_C)

    below_NC = np.vstack([scores_NC[1:], np.zeros_like(scores_NC[:1])])
    # Examples of equal score fall on the same side: no cut lies between them. Below the last there always is one.
    is_cut_NC = scores_NC > below_NC
    is_cut_NC[-1] = True
    best_C = np.where(is_cut_NC, f1_NC, -1.0).argmax(axis=0)
    columns_C = np.arange(scores_NC.shape[1])
    above_C, below_C = scores_NC[best_C, columns_C], below_NC[best_C, columns_C]
    halfway_C = below_C + (above_C - below_C) / 2
    # Between two neighbouring floating-point numbers lies nothing: the midpoint may round down onto the lower score.
    thresholds_C = np.where(halfway_C > below_C, halfway_C, above_C).astype(np.float64)
    return np.where(actual_C > 0, thresholds_C, 0.5)


def _f1(hits: Array, predicted: Array, actual: Array) -> Array:
    """F1 = 2 tp / (predicted + actual positives), elementwise; 0 where there are neither."""
    total = np.asarray(predicted + actual)
    result: Array = np.divide(2.0 * hits, total, out=np.zeros(total.shape), where=total > 0)
    return result


def _named_f1(f1_C: Array, label_names: Sequence[str]) -> dict[str, float]:
    return {f"f1/{name}": float(value) for name, value in zip(label_names, f1_C, strict=True)}


def _matthews(labels_N: Array, predictions_N: Array) -> float:
    """Matthews' correlation coefficient."""
    from sklearn.metrics import matthews_corrcoef

    with _quiet():
        return float(matthews_corrcoef(labels_N, predictions_N))


def _per_column(score: str, labels_NC: Array, scores_NC: Array) -> NDArray[np.float64]:
    """Apply one of scikit-learn's binary ranking scores to each column."""
    from sklearn import metrics

    with _quiet():
        return np.array(
            [
                getattr(metrics, score)(labels_N, scores_N)
                for labels_N, scores_N in zip(labels_NC.T, scores_NC.T, strict=True)
            ]
        )


def _as_scores(values: Array, where: str) -> Array:
    """Return a floating-point array of at least one row, all finite; its precision is kept."""
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float64)
    if array.ndim == 0 or len(array) == 0:
        raise DataError("no examples to score", where=where)
    if not np.isfinite(array).all():
        raise DataError("NaN or infinite values", where=where, fix="check the data and whether the training diverged")
    return array


def _as_labels_and_scores(labels_NC: Array, probabilities_NC: Array) -> tuple[NDArray[np.bool_], Array]:
    labels_NC, probabilities_NC = np.asarray(labels_NC), _as_scores(probabilities_NC, "probabilities")
    if labels_NC.ndim != 2 or labels_NC.shape != probabilities_NC.shape:
        shapes = f"{labels_NC.shape} and {probabilities_NC.shape}"
        raise DataError(f"shapes {shapes} instead of one (N, C)", where="labels, probabilities")
    if not np.isin(labels_NC, (0, 1)).all():
        raise DataError("values other than 0 and 1", where="labels", fix="give one 0/1 column per label")
    if probabilities_NC.min() < 0 or probabilities_NC.max() > 1:
        raise DataError("values outside 0..1", where="probabilities", fix="apply the sigmoid to the logits")
    return labels_NC.astype(bool), probabilities_NC


def _check_table(probabilities_NC: Array, label_names: Sequence[str]) -> None:
    if probabilities_NC.ndim != 2:
        raise DataError(f"shape {probabilities_NC.shape} instead of (N, C)", where="probabilities")
    if len(label_names) != probabilities_NC.shape[1]:
        raise DataError(f"{len(label_names)} names for {probabilities_NC.shape[1]} columns", where="label_names")
    if len(set(label_names)) != len(label_names):
        raise DataError("a name occurs twice", where="label_names", fix="give each label its own name")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the libraries' warnings about undefined scores: the conventions above say what the value is."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
