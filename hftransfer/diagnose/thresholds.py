"""A threshold of its own for every group, so that all groups' positives are found equally often; and what it costs.

Hardt, Price and Srebro (2016, arXiv:1610.02413), by fairlearn's ThresholdOptimizer: fitted on validation data, measured
on test data. It needs to know the group of whoever is judged, may draw lots between two thresholds, and is no part of
the saved model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin

from hftransfer.diagnose.groups import Decisions, gap_of, group_sums, rates_of
from hftransfer.errors import DataError
from hftransfer.report.statistics import Difference, Statistic, compare


@dataclass(frozen=True)
class Thresholds:
    """What thresholds per group change on test data.

    Attributes:
        column: The groups.
        gap_before: Largest difference of the true-positive rate between groups, with the model's own decisions.
        gap_after: The same with a threshold per group.
        cost: Accuracy of the positive decision with thresholds per group, minus that without.
        groups: How many groups have one.
    """

    column: str
    gap_before: float
    gap_after: float
    cost: Difference
    groups: int


def available() -> bool:
    """Whether fairlearn is installed."""
    return find_spec("fairlearn") is not None


def thresholds_per_group(
    column: str,
    validation: tuple[Decisions, Sequence[str]],
    test: tuple[Decisions, Sequence[str]],
    *,
    seed: int = 0,
) -> Thresholds:
    """Fit on validation data, measure on test data; groups that lack a label in validation data are left out.

    Args:
        column: The groups' name.
        validation: Decisions, and the group of each.
        test: Likewise.
        seed: Of the lots.

    Raises:
        DataError: If fairlearn is absent, or fewer than two groups have both labels in validation data.
    """
    if not available():
        raise DataError(
            "thresholds per group need fairlearn", where="--groups", fix="pip install 'hftransfer[fairlearn]'"
        )
    from fairlearn.postprocessing import ThresholdOptimizer

    (fitted, fitted_groups), (tested, tested_groups) = validation, test
    names = np.asarray(fitted_groups, dtype=object)
    usable = [
        name
        for name in dict.fromkeys(fitted_groups)
        if 0 < fitted.positive_N[names == name].sum() < (names == name).sum()
    ]
    if len(usable) < 2:
        raise DataError("fewer than two groups have both labels in validation data", where=f"--groups {column}")
    keep_N, kept_M = np.isin(names, usable), np.isin(np.asarray(tested_groups, dtype=object), usable)
    fitted, tested = fitted.select(keep_N), tested.select(kept_M)
    own = [name for name, kept in zip(fitted_groups, keep_N, strict=True) if kept]
    theirs = [name for name, kept in zip(tested_groups, kept_M, strict=True) if kept]
    optimizer = ThresholdOptimizer(
        estimator=Scores(),
        constraints="true_positive_rate_parity",
        objective="accuracy_score",
        prefit=True,
        predict_method="predict",
    )
    optimizer.fit(fitted.scores_N[:, None], fitted.positive_N.astype(int), sensitive_features=own)
    flagged_M = optimizer.predict(tested.scores_N[:, None], sensitive_features=theirs, random_state=seed) > 0
    after = replace(tested, flagged_N=np.asarray(flagged_M))
    codes_M = np.unique(np.asarray(theirs, dtype=object), return_inverse=True)[1]
    before_gap, after_gap = _gap(codes_M, tested), _gap(codes_M, after)
    before_M, after_M = (decisions.flagged_N == decisions.positive_N for decisions in (tested, after))
    cost = compare([_accuracy(after_M)], [_accuracy(before_M)], seed=seed)
    return Thresholds(column, before_gap, after_gap, cost, len(usable))


class Scores(ClassifierMixin, BaseEstimator):
    """An estimator, as fairlearn wants one, that passes scores on."""

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, X: Any, y: Any) -> Scores:
        """There is nothing to fit."""
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """The scores, (N,)."""
        return np.asarray(X)[:, 0]


def _gap(codes_N: NDArray[np.int64], decisions: Decisions) -> float:
    count = int(codes_N.max()) + 1
    return float(gap_of(rates_of(group_sums(codes_N, count, decisions).sum(0)[None], count)["true positives"])[0])


def _accuracy(right_N: NDArray[np.bool_]) -> Statistic:
    sums_NS = np.stack([right_N, np.ones(len(right_N))], 1).astype(np.float64)
    return Statistic(len(right_N), sums_NS, lambda sums_RS: sums_RS[:, 0] / sums_RS[:, 1])
