"""Are probabilities what they say? Expected calibration error, reliability, and the temperature that mends them.

Shape legend: M decisions, C classes or labels, K bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_expit, log_softmax, softmax

from hftransfer.errors import DataError

BINS = 15
TEMPERATURES = (0.05, 20.0)
"""Where a temperature is looked for; beyond, the logits are degenerate."""


@dataclass(frozen=True)
class Reliability:
    """How often decisions of about one confidence are right, in bins of equal width.

    Attributes:
        error: The expected calibration error: the mean distance of confidence and share of right decisions, weighed by
            the bins' counts (Guo et al. 2017, arXiv:1706.04599).
        loss: The mean negative log-likelihood.
        counts_K: Decisions per bin.
        confidences_K: Their mean confidence, 0 in an empty bin.
        right_K: The share of them that is right, 0 in an empty bin.
    """

    error: float
    loss: float
    counts_K: list[int]
    confidences_K: list[float]
    right_K: list[float]


def reliability(logits_MC: NDArray[Any], labels: NDArray[Any], bins: int = BINS) -> Reliability:
    """Compare confidence with the share of right decisions.

    Args:
        logits_MC: Logits; with classes the most probable one is the decision, with 0/1 labels each label is one, and
            its confidence is the probability of the label.
        labels: The right class (M,), or 0/1 labels (M, C).
        bins: How many bins.

    Raises:
        DataError: If there is no decision.
    """
    if not len(logits_MC):
        raise DataError("no decisions", where="reliability")
    logits_MC = np.asarray(logits_MC, np.float64)
    if labels.ndim == 1:
        probabilities_MC = softmax(logits_MC, axis=-1)
        confident, right = probabilities_MC.max(-1), probabilities_MC.argmax(-1) == labels
    else:
        confident, right = expit(logits_MC).ravel(), labels.ravel() > 0
    place = np.minimum((confident * bins).astype(int), bins - 1)
    counts_K = np.bincount(place, minlength=bins)
    sums_K, hits_K = (np.bincount(place, values, bins) for values in (confident, right.astype(np.float64)))
    filled_K = np.maximum(counts_K, 1)
    return Reliability(
        float(np.abs(sums_K - hits_K).sum() / counts_K.sum()),
        mean_loss(logits_MC, labels),
        counts_K.tolist(),
        (sums_K / filled_K).tolist(),
        (hits_K / filled_K).tolist(),
    )


def mean_loss(logits_MC: NDArray[Any], labels: NDArray[Any]) -> float:
    """The mean negative log-likelihood of the right classes, or of all labels."""
    if labels.ndim == 1:
        chosen_M = np.take_along_axis(log_softmax(logits_MC, axis=-1), labels[:, None].astype(np.int64), 1)
        return float(-chosen_M.mean())
    return float(-log_expit(np.where(labels > 0, logits_MC, -logits_MC)).mean())


def fit_temperature(logits_MC: NDArray[Any], labels: NDArray[Any]) -> float:
    """The temperature T for which logits / T have the smallest negative log-likelihood (arXiv:1706.04599, section 4.2).

    Args:
        logits_MC: Logits of examples that the model has not learnt from.
        labels: The right class (M,), or 0/1 labels (M, C).
    """
    from scipy.optimize import minimize_scalar

    logits_MC = np.asarray(logits_MC, np.float64)
    found = minimize_scalar(
        lambda log_t: mean_loss(logits_MC * np.exp(-log_t), labels),
        bounds=tuple(np.log(TEMPERATURES)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(np.exp(found.x))
