"""How much of the labels frozen features hold, without training anything: LogME, H-score, nearest neighbours.

Shape legend: N rows, D features, C classes, labels or targets, K the smaller of N and D.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hftransfer.errors import DataError

Matrix = NDArray[np.float64]

MAX_ITERATIONS, TOLERANCE = 100, 1e-6
NEIGHBOURS = 5


def logme(features_ND: NDArray[Any], targets_NC: NDArray[Any]) -> float:
    """The logarithm of the maximum evidence of a linear model, per row, averaged over targets.

    You et al. 2021 (arXiv:2102.11005), equation 2, at the fixed point of its algorithm 1: targets are normal around a
    linear function with precision beta, its weights are normal around 0 with precision alpha, and both precisions are
    those of the highest evidence. Features have no bias and are used as they are, as there. The log-determinant counts
    all D directions, also where D > N.

    Args:
        features_ND: Features.
        targets_NC: One-hot classes, 0/1 labels or real targets.

    Returns:
        The mean over targets of log evidence / N; greater is better.

    Raises:
        DataError: If there are no rows, or the shapes do not fit together.
    """
    features_ND, targets_NC = _read(features_ND, targets_NC)
    rows, width = features_ND.shape
    left_NK, singular_K, _ = np.linalg.svd(features_ND, full_matrices=False)
    sigma_K = singular_K**2
    projected_KC = (left_NK.T @ targets_NC) ** 2
    outside_C = np.maximum((targets_NC**2).sum(0) - projected_KC.sum(0), 0.0)
    return float(
        np.mean(
            [
                _evidence(sigma_K, projected_K, outside, rows, width)
                for projected_K, outside in zip(projected_KC.T, outside_C, strict=True)
            ]
        )
    )


def _evidence(sigma_K: Matrix, projected_K: Matrix, outside: float, rows: int, width: int) -> float:
    """Log evidence per row of one target at the best alpha and beta.

    Args:
        sigma_K: Eigenvalues of F^T F.
        projected_K: Squares of the target's coordinates along the left singular vectors.
        outside: Square of what lies outside of them.
        rows: N.
        width: D.
    """
    alpha = beta = 1.0
    weights = residual = 0.0
    for _ in range(MAX_ITERATIONS):
        # Without a residual the prior weighs nothing, and a direction without data is none.
        shrunk_K = np.divide(sigma_K, sigma_K + alpha / beta, out=np.zeros_like(sigma_K), where=sigma_K > 0)
        gamma = shrunk_K.sum()
        # |m|^2 and |F m - y|^2 of the posterior mean m.
        weights = float((shrunk_K**2 * projected_K / np.maximum(sigma_K, 1e-300)).sum())
        residual = float(((1 - shrunk_K) ** 2 * projected_K).sum() + outside)
        if not gamma:
            # Features that are all zero: the best alpha is infinite, all weights are 0, and noise explains the target.
            return float(np.log(rows / (residual + 1e-5)) - 1.0 - np.log(2 * np.pi)) / 2
        old = alpha / beta
        alpha, beta = gamma / (weights + 1e-5), (rows - gamma) / (residual + 1e-5)
        if abs(alpha / beta - old) <= TOLERANCE * old:
            break
    log_determinant = np.log(alpha + beta * sigma_K).sum() + (width - len(sigma_K)) * np.log(alpha)
    found = width * np.log(alpha) + rows * np.log(beta) - log_determinant - beta * residual - alpha * weights
    return float(found - rows * np.log(2 * np.pi)) / (2 * rows)


def h_score(features_ND: NDArray[Any], targets_NC: NDArray[Any]) -> float:
    """How far apart the classes' means are, measured by the covariance of all features.

    trace(cov(f)^-1 cov(E[f | class])) of Bao et al. 2019 (ICIP, definition 2), with the covariance shrunk as in Ibrahim
    et al. 2021 (arXiv:2110.06893, section 4), by the amount of Ledoit and Wolf 2004 (Journal of Multivariate Analysis
    88(2)). A label of several is a partition in two of its own; the result is then their mean.

    Args:
        features_ND: Features.
        targets_NC: One-hot classes or 0/1 labels.

    Returns:
        From 0 to C - 1 for classes; greater is better.

    Raises:
        DataError: If there are no rows, or the shapes do not fit together.
    """
    features_ND, targets_NC = _read(features_ND, targets_NC)
    centred_ND = features_ND - features_ND.mean(0)
    covariance_DD, kept = shrunk_covariance(centred_ND)
    inverse_DD = np.asarray(np.linalg.pinv(covariance_DD, rcond=1e-15, hermitian=True), np.float64)
    if not (targets_NC.sum(1) == 1).all():
        parts = [np.stack([column, 1 - column], 1) for column in targets_NC.T]
        return float(np.mean([_between(centred_ND, part_N2, inverse_DD, kept) for part_N2 in parts]))
    return _between(centred_ND, targets_NC, inverse_DD, kept)


def _between(centred_ND: Matrix, classes_NC: Matrix, inverse_DD: Matrix, kept: float) -> float:
    """The trace for one partition."""
    counts_C = classes_NC.sum(0)
    present = counts_C > 0
    sums_CD = (classes_NC.T @ centred_ND)[present] / np.sqrt(counts_C[present])[:, None]
    return float(kept * np.einsum("cd,de,ce->", sums_CD, inverse_DD, sums_CD) / max(len(centred_ND) - 1, 1))


def shrunk_covariance(centred_ND: Matrix) -> tuple[Matrix, float]:
    """The covariance of centred features, shrunk towards a multiple of the identity.

    Returns:
        The covariance (D, D), and the weight that the empirical covariance kept in it.
    """
    rows, width = centred_ND.shape
    empirical_DD = centred_ND.T @ centred_ND / rows
    mean = np.trace(empirical_DD) / width
    squares_ND = centred_ND**2
    norm = (empirical_DD**2).sum()
    noise = ((squares_ND.T @ squares_ND).sum() / rows - norm) / (width * rows)
    distance = (norm - width * mean**2) / width
    shrinkage = float(np.clip(noise / distance, 0.0, 1.0)) if distance > 0 else 1.0
    return (1 - shrinkage) * empirical_DD + shrinkage * mean * np.eye(width), 1 - shrinkage


def nearest_neighbours(features_ND: NDArray[Any], targets_NC: NDArray[Any], k: int = NEIGHBOURS) -> Matrix:
    """What the k nearest other rows by cosine say of every row, features centred.

    Args:
        features_ND: Features.
        targets_NC: One-hot classes, 0/1 labels or real targets.
        k: How many; all others where there are fewer.

    Returns:
        Their mean target, (N, C).

    Raises:
        DataError: If there are fewer than two rows, or the shapes do not fit together.
    """
    features_ND, targets_NC = _read(features_ND, targets_NC)
    if len(features_ND) < 2:
        raise DataError("a single row has no neighbours", where="features", fix="give more rows")
    centred_ND = features_ND - features_ND.mean(0)
    unit_ND = centred_ND / np.maximum(np.linalg.norm(centred_ND, axis=1, keepdims=True), 1e-12)
    near_NN = unit_ND @ unit_ND.T
    np.fill_diagonal(near_NN, -np.inf)
    k = min(k, len(unit_ND) - 1)
    chosen_NK = np.argpartition(-near_NN, k - 1, axis=1)[:, :k]
    found: Matrix = targets_NC[chosen_NK].mean(1)
    return found


def _read(features_ND: NDArray[Any], targets_NC: NDArray[Any]) -> tuple[Matrix, Matrix]:
    features_ND, targets_NC = np.asarray(features_ND, np.float64), np.asarray(targets_NC, np.float64)
    if features_ND.ndim != 2 or not features_ND.size:
        raise DataError(f"shape {features_ND.shape} instead of (rows, features)", where="features")
    if targets_NC.ndim != 2 or len(targets_NC) != len(features_ND):
        what = f"shape {targets_NC.shape} for {len(features_ND)} rows of features"
        raise DataError(what, where="targets", fix="give a row of targets per row of features")
    return features_ND, targets_NC
