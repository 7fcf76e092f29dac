"""What linear heads read from every layer of a frozen backbone, by cross-validation, and how that grows with the data.

Shape legend: N rows, D features, C classes, labels or targets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hftransfer.advise.transferability import Matrix, h_score, logme, nearest_neighbours
from hftransfer.data.batching import random_order
from hftransfer.errors import DataError
from hftransfer.tasks.labels import Problem
from hftransfer.tasks.metrics import regression_metrics, tune_thresholds

FOLDS, FEW_ROWS, REPEATS = 5, 300, 3
"""Folds; below so many rows they are drawn several times, since one division says little."""
L2 = 100.0
"""Penalty on standardised features: strong, as there are often more features than rows."""
SCORES: dict[Problem, str] = {"single_label": "accuracy", "multi_label": "f1_macro", "regression": "spearman"}
"""The score of each problem: the task's own default."""
CURVE = (0.125, 0.25, 0.5)
"""Shares of a fold's training rows at which the learning curve is taken, besides all of them."""
LEAST_ROWS = 8
MOST_RELATED_ROWS = 1000
"""Neighbours, LogME and H-score look at so many rows at most."""


@dataclass(frozen=True)
class LayerReading:
    """What one layer holds of the labels.

    Attributes:
        layer: 0 for the embeddings, 1 to L for the blocks.
        probe: Score of a linear head, by cross-validation.
        neighbours: Score of the nearest neighbours, each row left out.
        logme: Log evidence per row.
        h_score: Separation of the classes; NaN for a regression.
    """

    layer: int
    probe: float
    neighbours: float
    logme: float
    h_score: float


@dataclass(frozen=True)
class Reading:
    """What a backbone's features hold of the labels, before any of its weights has moved.

    Attributes:
        score_name: What the scores are.
        chance: The score of always predicting the most frequent answer.
        score: Of a linear head on the last layer, by cross-validation.
        deviation: Its standard error.
        layers: Every layer.
        curve: (training rows, score) of the last layer's head, ascending.
        right_N: The mean score of every row, where a row has one; empty otherwise.
    """

    score_name: str
    chance: float
    score: float
    deviation: float
    layers: tuple[LayerReading, ...]
    curve: tuple[tuple[int, float], ...]
    right_N: tuple[float, ...] = ()

    @property
    def best_layer(self) -> LayerReading:
        """The layer with the best probe; the higher one among equals."""
        return max(self.layers, key=lambda reading: (reading.probe, reading.layer))

    @property
    def slope(self) -> float:
        """What a doubling of the data adds to the head's score, from the upper half of the curve; 0 without one."""
        if len(self.curve) < 2:
            return 0.0
        (few, low), (many, high) = self.curve[-2:]
        return (high - low) / math.log2(many / few) if many > few else 0.0


def read_layers(layers: Mapping[int, NDArray[Any]], labels: NDArray[Any], problem: Problem, classes: int) -> Reading:
    """Measure every layer of a backbone.

    The head is a least-squares classifier on standardised features, whose optimum is one linear system.

    Args:
        layers: Layer -> features (N, D), the last layer last.
        labels: Classes (N,), 0/1 labels (N, C), or targets (N,).
        problem: What the labels are.
        classes: How many classes there are.

    Raises:
        DataError: If there are too few rows, all have the same label, or features are not finite.
    """
    last, targets_NC = max(layers), as_targets(labels, problem, classes)
    if len(targets_NC) < LEAST_ROWS:
        what = f"{len(targets_NC)} training rows are too few to cross-validate on"
        raise DataError(what, where="data", fix=f"give at least {LEAST_ROWS}")
    if (targets_NC == targets_NC[0]).all():
        raise DataError("all sampled rows have the same label", where="data", fix="give examples of two classes")
    plan = divisions(targets_NC, problem)
    features_ND = standardised(layers[last], f"layer {last}")
    scores, outputs_NC = _validated(features_ND, targets_NC, problem, plan)
    score, right_N = float(np.mean(scores)), _right(outputs_NC, targets_NC, problem)
    return Reading(
        SCORES[problem],
        chance(targets_NC, problem),
        score,
        _standard_error(score, right_N, len(targets_NC)),
        tuple(
            _layer(layer, standardised(values, f"layer {layer}"), targets_NC, problem, plan)
            for layer, values in layers.items()
        ),
        learning_curve(features_ND, targets_NC, problem, plan, score),
        tuple(map(float, right_N)),
    )


def as_targets(labels: NDArray[Any], problem: Problem, classes: int) -> Matrix:
    """Labels as numbers to fit, (N, C): classes one-hot."""
    labels = np.asarray(labels)
    if problem == "single_label":
        return np.eye(classes)[labels.astype(np.int64)]
    return labels.astype(np.float64).reshape(len(labels), -1)


def standardised(features_ND: NDArray[Any], where: str) -> Matrix:
    """Features of mean 0 and deviation 1; constant ones are 0.

    Raises:
        DataError: If some are not finite.
    """
    wide_ND = np.asarray(features_ND, np.float64)
    if not np.isfinite(wide_ND).all():
        raise DataError("NaN or infinite features", where=where, fix="try another precision or checkpoint")
    deviation_D = wide_ND.std(0)
    found: Matrix = (wide_ND - wide_ND.mean(0)) / np.where(deviation_D > 1e-9, deviation_D, np.inf)
    return found


def _layer(
    layer: int, features_ND: Matrix, targets_NC: Matrix, problem: Problem, plan: Sequence[NDArray[np.int64]]
) -> LayerReading:
    scores, _ = _validated(features_ND, targets_NC, problem, plan)
    rows = slice(0, MOST_RELATED_ROWS)
    own_ND, own_NC = features_ND[rows], targets_NC[rows]
    near = score_of(nearest_neighbours(own_ND, own_NC), own_NC, problem)
    separation = math.nan if problem == "regression" else h_score(own_ND, own_NC)
    return LayerReading(layer, float(np.mean(scores)), near, logme(own_ND, own_NC), separation)


def divisions(targets_NC: NDArray[Any], problem: Problem) -> list[NDArray[np.int64]]:
    """The fold of every row, once, or several times where rows are few; classes are spread evenly."""
    count = len(targets_NC)
    found = []
    for repeat in range(REPEATS if count < FEW_ROWS else 1):
        order = random_order(count, repeat)
        if problem == "single_label":
            # Rows of a class one after another, so that neighbours in this order go to different folds.
            order = order[np.argsort(targets_NC[order].argmax(1), kind="stable")]
        fold_N = np.empty(count, np.int64)
        fold_N[order] = np.arange(count) % FOLDS
        found.append(fold_N)
    return found


def _validated(
    features_ND: Matrix, targets_NC: Matrix, problem: Problem, plan: Sequence[NDArray[np.int64]]
) -> tuple[list[float], Matrix]:
    """The score of each division, and the outputs of every row, averaged over divisions."""
    total_NC, scores = np.zeros_like(targets_NC), []
    for fold_N in plan:
        outputs_NC = np.zeros_like(targets_NC)
        for fold in range(FOLDS):
            held_N = fold_N == fold
            outputs_NC[held_N] = fit_and_predict(features_ND[~held_N], targets_NC[~held_N], features_ND[held_N])
        scores.append(score_of(outputs_NC, targets_NC, problem))
        total_NC += outputs_NC / len(plan)
    return scores, total_NC


def fit_and_predict(train_ND: Matrix, targets_NC: Matrix, asked_MD: Matrix) -> Matrix:
    """Fit a least-squares head with a ridge penalty to some rows and predict others, (M, C).

    Targets are centred, so that the bias is free; the smaller of the two equivalent systems is solved, D by D or N by N
    (Saunders et al. 1998, "Ridge regression learning algorithm in dual variables").
    """
    centre_D, bias_C = train_ND.mean(0), targets_NC.mean(0)
    train_ND, targets_NC = train_ND - centre_D, targets_NC - bias_C
    rows, width = train_ND.shape
    if width <= rows:
        weight_DC = np.linalg.solve(train_ND.T @ train_ND + L2 * np.eye(width), train_ND.T @ targets_NC)
    else:
        weight_DC = train_ND.T @ np.linalg.solve(train_ND @ train_ND.T + L2 * np.eye(rows), targets_NC)
    found: Matrix = (asked_MD - centre_D) @ weight_DC + bias_C
    return found


def learning_curve(
    features_ND: Matrix,
    targets_NC: Matrix,
    problem: Problem,
    plan: Sequence[NDArray[np.int64]],
    whole: float,
) -> tuple[tuple[int, float], ...]:
    """(training rows, score) of heads that see a share of each fold's training rows; the last is `whole`."""
    count = len(features_ND)
    most = count * (FOLDS - 1) // FOLDS
    found = []
    for wanted in (round(share * most) for share in CURVE):
        if wanted < LEAST_ROWS:
            continue
        scores = []
        for repeat, fold_N in enumerate(plan):
            outputs_NC = np.zeros_like(targets_NC)
            for fold in range(FOLDS):
                order = random_order(count, repeat, fold)
                held_N, chosen = fold_N == fold, order[fold_N[order] != fold][:wanted]
                outputs_NC[held_N] = fit_and_predict(features_ND[chosen], targets_NC[chosen], features_ND[held_N])
            scores.append(score_of(outputs_NC, targets_NC, problem))
        found.append((wanted, float(np.mean(scores))))
    return (*found, (most, whole))


def score_of(outputs_NC: NDArray[Any], targets_NC: NDArray[Any], problem: Problem) -> float:
    """The score of predictions, as in `SCORES`."""
    if problem == "single_label":
        return float((outputs_NC.argmax(1) == targets_NC.argmax(1)).mean())
    if problem == "regression":
        value = regression_metrics(targets_NC[:, 0], outputs_NC[:, 0])["spearman"]
        return 0.0 if math.isnan(value) else value
    # Least squares leaves the range of a probability.
    shares_NC = np.clip(outputs_NC, 0.0, 1.0)
    chosen_NC = shares_NC >= tune_thresholds(targets_NC, shares_NC)
    hits_C = (chosen_NC & (targets_NC > 0.5)).sum(0)
    return float(np.mean(2 * hits_C / np.maximum(chosen_NC.sum(0) + targets_NC.sum(0), 1)))


def chance(targets_NC: NDArray[Any], problem: Problem) -> float:
    """The score of one answer for all: the most frequent class, all labels, or the mean."""
    if problem == "single_label":
        return float(targets_NC.mean(0).max())
    if problem == "regression":
        return 0.0
    share_C = targets_NC.mean(0)
    return float(np.mean(2 * share_C / (1 + share_C)))


def _right(outputs_NC: NDArray[Any], targets_NC: NDArray[Any], problem: Problem) -> NDArray[Any]:
    """Whether each row's class is the predicted one; nothing for scores that rows do not have."""
    if problem != "single_label":
        return np.empty(0)
    right_N: NDArray[Any] = (outputs_NC.argmax(1) == targets_NC.argmax(1)).astype(float)
    return right_N


def _standard_error(score: float, right_N: NDArray[Any], count: int) -> float:
    """Of an accuracy the binomial one; of other scores that of a correlation of as many rows, as an order of size."""
    if len(right_N):
        return math.sqrt(max(score * (1 - score), 0.25 / count) / count)
    return max(1 - score**2, 0.05) / math.sqrt(max(count - 1, 1))
