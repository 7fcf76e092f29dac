"""Rows of the test data that are in the training data, too, and the score with and without them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hftransfer.data.copies import Columns, copies
from hftransfer.report.statistics import Floats, Interval, bootstrap_all

LEAK = 0.01
"""From this share of copies on a test set is leaky."""


@dataclass(frozen=True)
class Leak:
    """Copies between two splits.

    Attributes:
        split: The split that is scored.
        count: Its rows.
        exact: How many of them are in train exactly.
        near: How many nearly: case, signs and spaces aside, or with a Jaccard similarity of five-letter pieces of 0.85.
        score: Accuracy on all rows, on those that are in train, on those that are not, and the first minus the last;
            empty without predictions or copies.
    """

    split: str
    count: int
    exact: int
    near: int
    score: dict[str, Interval]

    @property
    def warns(self) -> bool:
        """Whether there are enough copies to move the score."""
        return self.exact + self.near >= max(LEAK * self.count, 1)


def find_leak(split: str, train: Columns, test: Columns, right_N: NDArray[np.bool_] | None = None) -> Leak:
    """Look for test rows in the training data.

    Args:
        split: What the test rows are called.
        train: Texts of the training rows, by input column.
        test: Those of the test rows.
        right_N: Which test rows a model predicts right.
    """
    exact_N, near_N = copies(train, test)
    copied_N = exact_N | near_N
    score: dict[str, Interval] = {}
    if right_N is not None and copied_N.any() and not copied_N.all():
        sums_NS = np.stack([right_N, np.ones(len(right_N)), right_N & copied_N, copied_N], 1).astype(np.float64)
        score = bootstrap_all(sums_NS, _scores)
    return Leak(split, len(exact_N), int(exact_N.sum()), int(near_N.sum()), score)


def _scores(sums_RS: Floats) -> dict[str, Floats]:
    right_R, count_R, right_copied_R, copied_R = sums_RS.T
    with np.errstate(all="ignore"):
        every_R = right_R / count_R
        clean_R = (right_R - right_copied_R) / (count_R - copied_R)
        return {
            "all rows": every_R,
            "rows that are in train": right_copied_R / copied_R,
            "rows that are not": clean_R,
            "difference": every_R - clean_R,
        }
