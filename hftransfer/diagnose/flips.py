"""Counterfactual flips: does the decision change when another group is named in the same text?

Kusner et al. (2017) in the form of Garg et al. (2019, arXiv:1809.10610): identity terms are exchanged, all else stays.
Where the group is what the text is about, a change may be right.

Shape legend: N texts, M counterfactuals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hftransfer.data.batching import random_order
from hftransfer.data.terms import Axis
from hftransfer.report.statistics import Floats, Interval, Statistic, bootstrap

MOST_TEXTS = 500
"""Per axis so many texts that name a group are exchanged, chosen at random."""
_SUBSET = 21

Predict = Callable[[list[list[str]]], tuple[NDArray[np.bool_], Floats]]
"""Whether each row's texts are flagged, and the probability of it."""


@dataclass(frozen=True)
class AxisFlips:
    """What exchanging the groups of an axis does.

    Attributes:
        axis: Its name.
        texts: How many texts were exchanged.
        counterfactuals: Into how many.
        flips: The share of counterfactuals with another decision than their original; texts count alike.
        change: The mean absolute change of the probability.
        pairs: (group named, group put there) -> counterfactuals, share flipped, mean signed change of the probability.
    """

    axis: str
    texts: int
    counterfactuals: int
    flips: Interval
    change: Interval
    pairs: dict[tuple[str, str], tuple[int, float, float]]


def naming_rows(columns: Sequence[Sequence[str]], axis: Axis, seed: int = 0) -> list[int]:
    """Rows that name a group of the axis, at most so many, at random."""
    rows = [row for row, texts in enumerate(zip(*columns, strict=True)) if any(map(axis.groups_in, texts))]
    if len(rows) > MOST_TEXTS:
        rows = sorted(rows[place] for place in random_order(len(rows), seed, _SUBSET)[:MOST_TEXTS].tolist())
    return rows


def flips_of_axis(
    columns: Sequence[Sequence[str]],
    axis: Axis,
    predict: Predict,
    flagged_N: NDArray[np.bool_],
    scores_N: Floats,
    seed: int = 0,
) -> AxisFlips | None:
    """Exchange the groups of an axis in all texts that name one; None where nothing can be exchanged.

    Args:
        columns: The texts, or both texts of pairs.
        axis: Groups and terms.
        predict: The model.
        flagged_N: Its decisions about the texts.
        scores_N: Its probabilities.
        seed: Of the choice among many texts, and of the interval.
    """
    rows, named, changed = [], [], []
    for row in naming_rows(columns, axis, seed):
        for one, other, texts in axis.counterfactuals([column[row] for column in columns]):
            rows.append(row)
            named.append((axis.groups[one], axis.groups[other]))
            changed.append(texts)
    if not rows:
        return None
    flagged_M, scores_M = predict([list(column) for column in zip(*changed, strict=True)])
    flipped_M = (flagged_M != flagged_N[rows]).astype(np.float64)
    moved_M = scores_M - scores_N[rows]
    # Counterfactuals of one text are no independent examples: texts are resampled, not counterfactuals.
    _, text_M, count = np.unique(rows, return_inverse=True, return_counts=True)
    shares = [np.bincount(text_M, values) / count for values in (flipped_M, np.abs(moved_M))]
    pairs = {}
    for pair in dict.fromkeys(named):
        own = np.asarray([name == pair for name in named])
        pairs[pair] = (int(own.sum()), float(flipped_M[own].mean()), float(moved_M[own].mean()))
    return AxisFlips(axis.name, len(count), len(rows), _mean(shares[0], seed), _mean(shares[1], seed), pairs)


def _mean(values_N: Floats, seed: int) -> Interval:
    sums = np.stack([values_N, np.ones(len(values_N))], 1)
    return bootstrap(Statistic(len(values_N), sums, lambda sums_RS: sums_RS[:, 0] / sums_RS[:, 1]), seed=seed)
