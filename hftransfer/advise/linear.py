"""Linear heads at the optimum of one objective: logistic regression by L-BFGS, ridge regression in closed form.

Every head reads raw features, also where it was fitted on standardised ones. What the fits share with
`hftransfer.advise.probe` is here too: reading and checking features and labels, standardising, scoring.

Shape legend: N rows, D features, E = D + 1 (the features and a constant 1, which carries the bias), C classes, labels
or targets. "..." stands for any number of heads.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from hftransfer.errors import DataError, RecipeError, TrainingError
from hftransfer.tasks.labels import Problem
from hftransfer.tasks.metrics import did_you_mean, regression_metrics, tune_thresholds

Array = Tensor | NDArray[Any]

SCORES: dict[Problem, str] = {"single_label": "accuracy", "multi_label": "f1_macro", "regression": "spearman"}
"""The validation score of each problem, the task's own default; the thresholds of F1 are tuned on the same rows."""


@dataclass(frozen=True, eq=False)
class LinearHead:
    """An affine map from raw features to logits or predictions.

    Attributes:
        weight_CD: As in `torch.nn.Linear`.
        bias_C: As in `torch.nn.Linear`.
    """

    weight_CD: Tensor
    bias_C: Tensor

    def __call__(self, features_ND: Tensor) -> Tensor:
        """Logits or predictions, (N, C), in the precision of the weights."""
        return functional.linear(features_ND.to(self.weight_CD.dtype), self.weight_CD, self.bias_C)


@dataclass(frozen=True, eq=False)
class RidgeHead(LinearHead):
    """A ridge regression; `leave_one_out_C` is each target's mean squared error on left-out rows, if asked for."""

    leave_one_out_C: Tensor | None


def logistic_regression(
    features_ND: Array,
    labels: Array,
    *,
    l2: float | None = None,
    num_classes: int | None = None,
    standardize: bool = False,
    max_iterations: int = 1000,
) -> LinearHead:
    """Fit a logistic regression: `logistic_path` with a single penalty.

    Args:
        features_ND: As in `logistic_path`, with all that follows.
        labels: Classes (N,) or 0/1 labels (N, C).
        l2: The penalty, 1 / C of scikit-learn. None takes the total variance of the features, which is C = 1 for
            features scaled to a total variance of 1: the same head, whatever the scale that a layer norm gave them.
        num_classes: Number of classes; the highest label + 1 if None.
        standardize: Penalise the weights of standardised features.
        max_iterations: Most iterations.

    Returns:
        The head, in float64.

    Raises:
        DataError: If features or labels are empty, not finite, of one class only, or do not fit together.
        TrainingError: If the penalty is not positive.
    """
    options: dict[str, Any] = {"num_classes": num_classes, "standardize": standardize, "max_iterations": max_iterations}
    if l2 is None:
        l2 = total_variance(features_ND, standardize=standardize)
    return logistic_path(features_ND, labels, l2s=[l2], **options)[0]


def total_variance(features_ND: Array, *, standardize: bool) -> float:
    """The sum of the features' variances; the number of features that vary where they are standardised.

    1 where nothing varies, or what there is cannot be read: `logistic_path` says what is wrong with it.
    """
    values_ND = _as_tensor(features_ND, "features").double()
    variance_D = (values_ND - values_ND.mean(0)).square().mean(0)
    total = float((variance_D > 0).sum() if standardize else variance_D.sum())
    return total if math.isfinite(total) and total > 0 else 1.0


def logistic_path(
    features_ND: Array,
    labels: Array,
    *,
    l2s: Sequence[float],
    num_classes: int | None = None,
    standardize: bool = False,
    max_iterations: int = 1000,
) -> list[LinearHead]:
    """Fit a logistic regression per penalty, from the strongest down, each from the weights of the one before.

    The objective is scikit-learn's with C = 1 / l2: summed cross-entropy + l2 / 2 * squared norm of the weights, the
    biases free. As there, two classes are fitted as one logit; the head has both rows, -w/2 and w/2. A class or label
    without examples gets the low bias at which the optimiser's tolerance stops, so that it is never predicted.

    Args:
        features_ND: Cached features.
        labels: Classes (N,) for a multinomial regression, or 0/1 labels (N, C) for an independent one per label.
        l2s: Penalties.
        num_classes: Number of classes; the highest label + 1 if None.
        standardize: Penalise the weights of standardised features, so that one l2 suits features of any scale.
        max_iterations: Most iterations per penalty. A fit that needs more warns.

    Returns:
        One head per penalty, in the order given, in float64.

    Raises:
        DataError: If features or labels are empty, not finite, of one class only, or do not fit together.
        TrainingError: If a penalty is not positive.
    """
    labels = _as_tensor(labels, "labels")
    problem: Problem = "multi_label" if labels.ndim == 2 else "single_label"
    features_ND, targets_NC = read(features_ND, labels, problem, num_classes)
    require_variety(targets_NC)
    return fit_logistic(features_ND, targets_NC, problem, l2s, standardize=standardize, max_iterations=max_iterations)


def fit_logistic(
    features_ND: Tensor,
    targets_NC: Tensor,
    problem: Problem,
    l2s: Sequence[float],
    *,
    standardize: bool,
    max_iterations: int,
) -> list[LinearHead]:
    """`logistic_path` on what `read` returned: targets are one-hot classes or 0/1 labels, (N, C)."""
    require_positive("l2", l2s)
    binary = problem == "single_label" and targets_NC.shape[1] == 2
    if binary:
        problem, targets_NC = "multi_label", targets_NC[:, 1:]
    # The biases are free, so centring changes nothing but the number of iterations.
    scaled_ND, mean_D, scale_D = standardized(features_ND.double(), scale=standardize)
    design_NE = functional.pad(scaled_ND, (0, 1), value=1.0)
    coefficients_CE = design_NE.new_zeros(targets_NC.shape[1], design_NE.shape[1])
    heads: dict[float, LinearHead] = {}
    for l2 in sorted(set(l2s), reverse=True):
        _minimise(coefficients_CE, design_NE, targets_NC.double(), problem, l2, max_iterations)
        fitted_CE = torch.cat([-coefficients_CE / 2, coefficients_CE / 2]) if binary else coefficients_CE
        heads[l2] = LinearHead(*fold(fitted_CE, mean_D, scale_D))
    return [heads[l2] for l2 in l2s]


def ridge(
    features_ND: Array,
    targets_NC: Array,
    l2s: Sequence[float],
    *,
    standardize: bool = False,
    leave_one_out: bool = False,
) -> list[RidgeHead]:
    """Fit ridge regressions in float64, all from one eigendecomposition of the covariance.

    The objective is scikit-learn's with alpha = l2: summed squared error + l2 * squared norm of the weights, the biases
    free. A row's error when it is left out is its residual / (1 - leverage), without another fit (PRESS: Golub, Heath
    and Wahba 1979, Technometrics 21(2)); the bias adds 1 / N to the leverage.

    Args:
        features_ND: Cached features.
        targets_NC: Targets (N, C) or (N,).
        l2s: Penalties.
        standardize: Penalise the weights of standardised features, so that one l2 suits features of any scale.
        leave_one_out: Also compute the leave-one-out errors. With `standardize` the scales are those of all rows.

    Returns:
        One head per penalty, in the order given, in float64.

    Raises:
        DataError: If features or targets are empty, not finite, constant, or do not fit together.
        TrainingError: If a penalty is not positive.
    """
    require_positive("l2", l2s)
    features_ND, targets_NC = read(features_ND, targets_NC, "regression")
    require_variety(targets_NC)
    scaled_ND, mean_D, scale_D = standardized(features_ND.double(), scale=standardize)
    centre_C = targets_NC.double().mean(dim=0)
    centred_NC = targets_NC.double() - centre_C
    values_D, vectors_DD = torch.linalg.eigh(scaled_ND.mT @ scaled_ND)
    projected_DC = vectors_DD.mT @ (scaled_ND.mT @ centred_NC)
    squares_ND = (scaled_ND @ vectors_DD).square() if leave_one_out else None
    heads = []
    for l2 in l2s:
        # Eigenvalues that are zero come out as tiny numbers of either sign.
        shrinkage_D = 1 / (values_D.clamp_min(0) + l2)
        weight_DC = vectors_DD @ (shrinkage_D[:, None] * projected_DC)
        error_C = None
        if squares_ND is not None:
            leverage_N = 1 / len(scaled_ND) + squares_ND @ shrinkage_D
            error_C = ((centred_NC - scaled_ND @ weight_DC) / (1 - leverage_N)[:, None]).square().mean(dim=0)
        heads.append(RidgeHead(*fold(torch.cat([weight_DC.mT, centre_C[:, None]], dim=1), mean_D, scale_D), error_C))
    return heads


def _minimise(
    coefficients_CE: Tensor,
    design_NE: Tensor,
    targets_NC: Tensor,
    problem: Problem,
    l2: float,
    max_iterations: int,
) -> None:
    """Minimise summed loss + l2 / 2 * squared norm, over N, from and into the coefficients (last column free).

    L-BFGS is Liu and Nocedal 1989, Mathematical Programming 45, algorithm 2.1.
    """
    rows = len(design_NE)
    optimizer = torch.optim.LBFGS(
        [coefficients_CE],
        max_iter=max_iterations,
        max_eval=10 * max_iterations,
        tolerance_grad=1e-7,
        tolerance_change=1e-15,
        history_size=10,
        line_search_fn="strong_wolfe",
    )
    penalty_E = torch.full_like(coefficients_CE[0], l2 / rows)
    penalty_E[-1] = 0.0

    def objective() -> float:
        # The gradient is written out, so that a caller's no_grad or inference_mode does no harm.
        outputs_NC = functional.linear(design_NE, coefficients_CE)
        shrinkage_CE = penalty_E * coefficients_CE
        coefficients_CE.grad = residuals(outputs_NC, targets_NC, problem).mT @ design_NE / rows + shrinkage_CE
        labels = targets_NC.shape[1] if problem == "multi_label" else 1
        return float(labels * mean_loss(outputs_NC, targets_NC, problem) + (shrinkage_CE * coefficients_CE).sum() / 2)

    optimizer.step(objective)
    if optimizer.state[coefficients_CE]["n_iter"] >= max_iterations:
        message = f"logistic regression with l2={l2:g} has not converged in {max_iterations} iterations"
        warnings.warn(f"{message}; raise l2 or max_iterations, or standardize", stacklevel=2)


def residuals(outputs: Tensor, targets: Tensor, problem: Problem) -> Tensor:
    """Derivative of the summed loss by the outputs; the last dimension is C."""
    if problem == "single_label":
        return outputs.softmax(dim=-1) - targets
    return outputs.sigmoid() - targets if problem == "multi_label" else 2 * (outputs - targets)


def mean_loss(outputs_NC: Tensor, targets_NC: Tensor, problem: Problem) -> Tensor:
    """Mean cross-entropy of rows, or mean binary cross-entropy or squared error of rows and columns."""
    if problem == "single_label":
        return functional.cross_entropy(outputs_NC, targets_NC)
    loss = functional.binary_cross_entropy_with_logits if problem == "multi_label" else functional.mse_loss
    return loss(outputs_NC, targets_NC)


def standardized(features_ND: Tensor, *, scale: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Centre features and, if `scale`, divide them by their deviation.

    Returns:
        The features (N, D), their mean (D,) and what they were divided by (D,): 1 for a feature that is constant up to
        rounding.
    """
    variance_D, mean_D = torch.var_mean(features_ND, dim=0, correction=0)
    rounding_D = 10 * torch.finfo(features_ND.dtype).eps * mean_D.abs()
    deviation_D = variance_D.sqrt()
    divides = (deviation_D > rounding_D) & scale
    scale_D = torch.where(divides, deviation_D, torch.ones_like(deviation_D))
    return (features_ND - mean_D) / scale_D, mean_D, scale_D


def fold(coefficients_CE: Tensor, mean_D: Tensor, scale_D: Tensor) -> tuple[Tensor, Tensor]:
    """Turn coefficients (..., C, E) of standardised features into weights (..., C, D) and biases (..., C) of raw ones.

    w . (x - mean) / scale + b = (w / scale) . x + (b - (w / scale) . mean); in float64, as the last sum cancels.
    """
    weight_CD = coefficients_CE[..., :-1].double() / scale_D.double()
    return weight_CD, coefficients_CE[..., -1].double() - weight_CD @ mean_D.double()


def evaluate(head: LinearHead, features_ND: Tensor, targets_NC: Tensor, problem: Problem) -> tuple[float, float]:
    """Score (see `SCORES`) and mean loss; the score is NaN if it is undefined or the loss is not finite."""
    outputs_NC = head(features_ND)
    loss = float(mean_loss(outputs_NC, targets_NC.to(outputs_NC), problem))
    if not math.isfinite(loss):
        return math.nan, loss
    if problem == "single_label":
        return float((outputs_NC.argmax(dim=1) == targets_NC.argmax(dim=1)).double().mean()), loss
    if problem == "multi_label":
        return _tuned_f1_macro(targets_NC.cpu().numpy(), outputs_NC.sigmoid().cpu().numpy()), loss
    columns = zip(targets_NC.T.cpu().numpy(), outputs_NC.T.cpu().numpy(), strict=True)
    return float(np.mean([regression_metrics(*column)["spearman"] for column in columns])), loss


def rank(score: float, loss: float) -> tuple[float, float]:
    """A key that grows with quality: the score, then (few rows make many ties) the loss; NaN comes last."""
    return -math.inf if math.isnan(score) else score, -math.inf if math.isnan(loss) else -loss


def _tuned_f1_macro(labels_NC: NDArray[Any], probabilities_NC: NDArray[Any]) -> float:
    """`multi_label_metrics(...)["f1_macro"]` at tuned thresholds, without the costly areas under curves."""
    predictions_NC = probabilities_NC >= tune_thresholds(labels_NC, probabilities_NC)
    hits_C = (predictions_NC & (labels_NC > 0.5)).sum(axis=0)
    total_C = predictions_NC.sum(axis=0) + labels_NC.sum(axis=0)
    return float(np.mean(2 * hits_C / np.maximum(total_C, 1)))


def read(
    features_ND: Array, labels: Array, problem: Problem, num_classes: int | None = None, where: str = ""
) -> tuple[Tensor, Tensor]:
    """Check features and labels.

    Args:
        features_ND: Features (N, D).
        labels: Classes (N,), 0/1 labels (N, C), or targets (N,) or (N, C).
        problem: What the labels are.
        num_classes: Number of classes; the highest label + 1 if None.
        where: Goes before "features" or "labels" in errors.

    Returns:
        Features (N, D) in float32 or, if they were, in float64; labels (N, C) in the same type, classes one-hot.

    Raises:
        DataError: If one of the two is empty, not finite, or does not fit.
        RecipeError: If there is no such problem.
    """
    if problem not in SCORES:
        raise RecipeError(f"unknown problem {problem!r}", where="problem", fix=did_you_mean(problem, SCORES))
    features_ND, labels = _as_tensor(features_ND, f"{where}features"), _as_tensor(labels, f"{where}labels")
    if features_ND.ndim != 2 or features_ND.numel() == 0:
        empty = "no rows or no features, " if features_ND.ndim == 2 else ""
        what = f"{empty}shape {tuple(features_ND.shape)} instead of (rows, features)"
        raise DataError(what, where=f"{where}features")
    if labels.ndim == 0 or len(labels) != len(features_ND):
        what = f"shape {tuple(labels.shape)} for {len(features_ND)} rows of features"
        raise DataError(what, where=f"{where}labels", fix="give one label row per row of features")
    features_ND = features_ND if features_ND.dtype == torch.float64 else features_ND.float()
    for name, tensor in (("features", features_ND), ("labels", labels)):
        if not torch.isfinite(tensor).all():
            raise DataError("NaN or infinite values", where=f"{where}{name}", fix="check how they were made")
    targets_NC = _as_targets(labels, problem, num_classes, f"{where}labels")
    return features_ND, targets_NC.to(features_ND)


def _as_tensor(values: Array, where: str) -> Tensor:
    try:
        return torch.as_tensor(values).detach()
    except (TypeError, ValueError) as error:
        raise DataError("not an array of numbers", where=where, fix="give a tensor or an array") from error


def _as_targets(labels: Tensor, problem: Problem, num_classes: int | None, where: str) -> Tensor:
    if problem == "regression" and labels.ndim == 1:
        return labels[:, None]
    if labels.ndim != (1 if problem == "single_label" else 2):
        expected = "(rows,)" if problem == "single_label" else "(rows, columns)"
        raise DataError(f"shape {tuple(labels.shape)} instead of {expected}", where=where)
    if problem == "multi_label" and not ((labels == 0) | (labels == 1)).all():
        raise DataError("values other than 0 and 1", where=where, fix="give one 0/1 column per label")
    if problem != "single_label":
        return labels
    classes = labels.long()
    num_classes = num_classes or int(classes.max()) + 1
    if (classes != labels).any() or not 0 <= int(classes.min()) <= int(classes.max()) < num_classes:
        raise DataError(
            f"not classes from 0 to {num_classes - 1}", where=where, fix="number the classes from 0, give num_classes"
        )
    return functional.one_hot(classes, num_classes)


def require_variety(targets_NC: Tensor, where: str = "labels") -> None:
    """Raise a DataError if all rows have the same label or target."""
    if (targets_NC == targets_NC[0]).all():
        raise DataError("all rows have the same label", where=where, fix="give examples of two classes or more")


def require_positive(name: str, values: Sequence[float]) -> None:
    """Raise a TrainingError unless there are values and all are positive and finite."""
    if not len(values) or not all(0 < value < math.inf for value in values):
        raise TrainingError(f"{list(values)} instead of one or more positive numbers", where=name)
