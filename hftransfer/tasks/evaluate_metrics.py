"""`evaluate.Metric` objects that need neither the Hub nor a cache folder.

`evaluate.load("f1")` downloads a script; the metrics here are part of the package. Names, inputs, keywords and result
keys are those of the Hub's metrics, the values those of scikit-learn and scipy, which do the work.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr
from sklearn import metrics as sklearn_metrics

from hftransfer.errors import DataError, RecipeError
from hftransfer.tasks.metrics import did_you_mean

Array = NDArray[Any]

_INTEGER, _REAL = datasets.Value("int64"), datasets.Value("float64")
_INTEGERS, _REALS = datasets.List(_INTEGER), datasets.List(_REAL)


def _accuracy(
    predictions: Array, references: Array, normalize: bool = True, sample_weight: Any = None
) -> dict[str, Any]:
    value = sklearn_metrics.accuracy_score(references, predictions, normalize=normalize, sample_weight=sample_weight)
    return {"accuracy": float(value)}


def _balanced_accuracy(
    predictions: Array, references: Array, sample_weight: Any = None, adjusted: bool = False
) -> dict[str, Any]:
    value = sklearn_metrics.balanced_accuracy_score(
        references, predictions, sample_weight=sample_weight, adjusted=adjusted
    )
    return {"balanced_accuracy": float(value)}


def _f1(
    predictions: Array,
    references: Array,
    labels: Any = None,
    pos_label: int = 1,
    average: str | None = "binary",
    sample_weight: Any = None,
) -> dict[str, Any]:
    value = sklearn_metrics.f1_score(
        references, predictions, labels=labels, pos_label=pos_label, average=average, sample_weight=sample_weight
    )
    return {"f1": _scalar(value)}


def _matthews_correlation(predictions: Array, references: Array, sample_weight: Any = None) -> dict[str, Any]:
    value = sklearn_metrics.matthews_corrcoef(references, predictions, sample_weight=sample_weight)
    return {"matthews_correlation": float(value)}


def _roc_auc(
    prediction_scores: Array,
    references: Array,
    average: str | None = "macro",
    sample_weight: Any = None,
    max_fpr: float | None = None,
    multi_class: str = "ovr",
    labels: Any = None,
) -> dict[str, Any]:
    value = sklearn_metrics.roc_auc_score(
        references,
        _positive_class(prediction_scores, references),
        average=average,
        sample_weight=sample_weight,
        max_fpr=max_fpr,
        multi_class=multi_class,
        labels=labels,
    )
    return {"roc_auc": _scalar(value)}


def _average_precision(
    prediction_scores: Array,
    references: Array,
    average: str | None = "macro",
    pos_label: int = 1,
    sample_weight: Any = None,
) -> dict[str, Any]:
    scores = _positive_class(prediction_scores, references)
    value = sklearn_metrics.average_precision_score(
        references, scores, average=average, pos_label=pos_label, sample_weight=sample_weight
    )
    return {"average_precision": _scalar(value)}


def _pearsonr(predictions: Array, references: Array, return_pvalue: bool = False) -> dict[str, Any]:
    statistic, p_value = pearsonr(references, predictions) if len(references) > 1 else (np.nan, np.nan)
    return {"pearsonr": float(statistic), **({"p-value": float(p_value)} if return_pvalue else {})}


def _spearmanr(predictions: Array, references: Array, return_pvalue: bool = False) -> dict[str, Any]:
    statistic, p_value = spearmanr(references, predictions) if len(references) > 1 else (np.nan, np.nan)
    return {"spearmanr": float(statistic), **({"spearmanr_pvalue": float(p_value)} if return_pvalue else {})}


def _mse(
    predictions: Array,
    references: Array,
    sample_weight: Any = None,
    multioutput: Any = "uniform_average",
    squared: bool = True,
) -> dict[str, Any]:
    error = sklearn_metrics.mean_squared_error if squared else sklearn_metrics.root_mean_squared_error
    return {"mse": _scalar(error(references, predictions, sample_weight=sample_weight, multioutput=multioutput))}


def _r_squared(predictions: Array, references: Array) -> dict[str, Any]:
    return {"r_squared": float(sklearn_metrics.r2_score(references, predictions))}


def _scalar(value: Any) -> Any:
    return float(value) if np.size(value) == 1 else value


def _positive_class(prediction_scores: Array, references: Array) -> Array:
    """Take the scores of class 1 where a two-class problem comes with a column for each class."""
    two_classes = references.ndim == 1 and prediction_scores.ndim == 2 and prediction_scores.shape[1] == 2
    return prediction_scores[:, 1] if two_classes else prediction_scores


@dataclass(frozen=True)
class _Metric:
    """One metric as data: what it is, how it is computed, and the column types of each configuration."""

    description: str
    score: Callable[..., dict[str, Any]]
    inputs: dict[str, tuple[Any, Any]]

    @property
    def prediction_name(self) -> str:
        """The first argument of the score: "predictions" or "prediction_scores"."""
        return next(iter(inspect.signature(self.score).parameters))

    @property
    def keywords(self) -> tuple[str, ...]:
        """What `compute` takes besides the inputs."""
        return tuple(inspect.signature(self.score).parameters)[2:]

    def features(self, config_name: str) -> datasets.Features:
        """The column types of one configuration."""
        prediction, reference = self.inputs[config_name]
        return datasets.Features({self.prediction_name: prediction, "references": reference})


_CLASSES = {"default": (_INTEGER, _INTEGER)}
_CLASSES_OR_LABELS = {**_CLASSES, "multilabel": (_INTEGERS, _INTEGERS)}
_RANKED = {"default": (_REAL, _INTEGER), "multiclass": (_REALS, _INTEGER), "multilabel": (_REALS, _INTEGERS)}
_VALUES = {"default": (_REAL, _REAL)}

_METRICS: dict[str, _Metric] = {
    "accuracy": _Metric("Share of examples predicted right.", _accuracy, _CLASSES_OR_LABELS),
    "balanced_accuracy": _Metric("Mean recall of the classes that occur.", _balanced_accuracy, _CLASSES),
    "f1": _Metric("Harmonic mean of precision and recall.", _f1, _CLASSES_OR_LABELS),
    "matthews_correlation": _Metric("Correlation of predicted and true classes.", _matthews_correlation, _CLASSES),
    "roc_auc": _Metric("Area under the receiver operating characteristic.", _roc_auc, _RANKED),
    "average_precision": _Metric("Mean precision over the recall steps.", _average_precision, _RANKED),
    "pearsonr": _Metric("Linear correlation.", _pearsonr, _VALUES),
    "spearmanr": _Metric("Correlation of the ranks.", _spearmanr, _VALUES),
    "mse": _Metric("Mean squared error.", _mse, {**_VALUES, "multilist": (_REALS, _REALS)}),
    "r_squared": _Metric("Coefficient of determination.", _r_squared, _VALUES),
}
_ALL_KEYWORDS = frozenset(
    name for metric in _METRICS.values() for name in (*metric.keywords, metric.prediction_name, "references")
)


class OfflineMetric(evaluate.Metric):
    """One of our metrics behind the interface of `evaluate.Metric`.

    Inputs are kept in memory, so that instances share no file and a read-only home folder does no harm; only evaluate's
    own distributed mode (`num_process` > 1) needs its cache folder. The configuration need not be named: nested inputs
    are recognised.

    Args:
        name: A name of `names()`.
        config_name: "multilabel", "multiclass" or "multilist" to insist on that kind of input.
        **options: The options of `evaluate.Metric`.
    """

    def __init__(self, name: str, config_name: str | None = None, **options: Any) -> None:
        self._metric = _METRICS[name]
        if config_name is not None and config_name not in self._metric.inputs:
            fix = did_you_mean(config_name, self._metric.inputs)
            raise RecipeError(f"metric {name!r} has no configuration {config_name!r}", fix=fix)
        options.setdefault("keep_in_memory", options.get("num_process", 1) == 1)
        super().__init__(config_name=config_name, **options)
        self.info.module_name = name

    def _info(self) -> evaluate.MetricInfo:
        configurations = self._metric.inputs if self.config_name == "default" else [self.config_name]
        keywords = ", ".join(self._metric.keywords) or "none"
        return evaluate.MetricInfo(
            description=self._metric.description,
            citation="",
            inputs_description=f"Inputs: {self._metric.prediction_name}, references. Keywords: {keywords}.",
            features=[self._metric.features(name) for name in configurations],
        )

    def _build_data_dir(self) -> str:
        # evaluate makes its cache folder even when it keeps everything in memory.
        return self._data_dir_root if self.keep_in_memory else str(super()._build_data_dir())

    def _infer_feature_from_batch(self, batch: dict[str, Any]) -> datasets.Features:
        if any(len(column) == 0 for column in batch.values()):
            raise DataError("no examples to score", where=self.name)
        return self._infer_feature_from_example({name: column[0] for name, column in batch.items()})

    def _infer_feature_from_example(self, example: dict[str, Any]) -> datasets.Features:
        # By nesting alone: evaluate tries int() on each value, which takes a list-like of one element for a number.
        nesting = {name: np.ndim(value) for name, value in example.items()}
        for features in self.features:
            if nesting == {name: int(isinstance(feature, datasets.List)) for name, feature in features.items()}:
                return features
        kinds = " or ".join(str(dict(features)) for features in self.features)
        raise DataError(f"inputs nested {nesting} deep", where=self.name, fix=f"give {kinds}")

    def _finalize(self) -> None:
        if self.keep_in_memory and self.buf_writer is None:
            raise DataError(
                "no examples to score", where=self.name, fix="pass them to compute, or call add_batch before it"
            )
        super()._finalize()

    def _compute(self, **inputs_and_keywords: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        for name, value in inputs_and_keywords.items():
            if name not in _ALL_KEYWORDS:
                fix = did_you_mean(name, self._metric.keywords)
                raise RecipeError(f"metric {self.name!r} has no keyword {name!r}", fix=fix)
            # evaluate.combine passes every keyword to every metric: one meant for another of ours is no mistake.
            if name in (*self._feature_names(), *self._metric.keywords):
                arguments[name] = value
        for name in self._feature_names():
            arguments[name] = np.asarray(arguments[name])
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # Undefined values follow scikit-learn's documented convention.
            try:
                return self._metric.score(**arguments)
            except ValueError as error:
                raise DataError(str(error), where=self.name) from error


def names() -> list[str]:
    """The metrics that `load` knows."""
    return sorted(_METRICS)


def load(name: str, config_name: str | None = None, **options: Any) -> OfflineMetric:
    """Make a metric by its name, without the network.

    Args:
        name: A name of `names()`; the same names, inputs, keywords and result keys as the metrics of `evaluate.load`.
        config_name: "multilabel", "multiclass" or "multilist" to insist on that kind of input; recognised if not given.
        **options: The options of `evaluate.Metric`, such as `num_process`.

    Returns:
        An `evaluate.Metric`: `compute`, `add`, `add_batch`, and a part for `evaluate.combine`.

    Raises:
        RecipeError: If there is no such metric or configuration.
    """
    if name not in _METRICS:
        raise RecipeError(f"unknown metric {name!r}", fix=did_you_mean(name, _METRICS))
    return OfflineMetric(name, config_name, **options)
