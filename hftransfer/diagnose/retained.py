"""How much of what a checkpoint could do is left, as one number with an interval for each thing that is looked at.

Language modelling: the ratio of perplexities, exp(loss before - loss after). Tasks: the ratio of accuracies. 1 = all
is left; above 1 it has become better.

Shape legend: N examples, M of them held out, D width of a state, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hftransfer.advise.linear import logistic_regression
from hftransfer.errors import DataError
from hftransfer.tasks.metrics import greater_is_better
from hftransfer.training.language_model import TextLosses

RESAMPLES, LEVEL = 1000, 0.95
PROBE_L2 = 10.0
"""Penalty of the probes on standardised states: the same before and after, so that nothing is chosen by its score."""
HELD_OUT = 0.5

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """What was measured before and after.

    Attributes:
        on: Which data, in words.
        what: What the two values are, in words.
        before: With the old backbone.
        after: With the new one.
        retained: How much is left.
        low: Lower end of its 95 % interval over the examples.
        high: Upper end.
        count: How many examples.
        known: Whether the data are those that the run was trained on, or like them.
    """

    on: str
    what: str
    before: float
    after: float
    retained: float
    low: float
    high: float
    count: int
    known: bool = False


def of_losses(on: str, guesses: str, before: TextLosses, after: TextLosses, *, known: bool = False) -> Measure:
    """The ratio of perplexities, resampling texts.

    Args:
        on: Which texts, in words.
        guesses: What is guessed, in words.
        before: With the old backbone.
        after: With the new one, on the same texts and tokens.
        known: Whether the run was trained on such texts.
    """

    def ratio(counts_RN: Floats) -> Floats:
        tokens_R = counts_RN @ before.tokens_N
        return np.exp((counts_RN @ (before.sums_N - after.sums_N)) / np.maximum(tokens_R, 1.0))

    value, low, high = _with_interval(ratio, len(before.sums_N))
    what = f"perplexity of {guesses}"
    return Measure(on, what, math.exp(before.mean), math.exp(after.mean), value, low, high, len(before.sums_N), known)


def of_hits(on: str, what: str, before_M: NDArray[np.bool_], after_M: NDArray[np.bool_]) -> Measure:
    """The ratio of accuracies, resampling examples.

    Args:
        on: Which data, in words.
        what: What decides, in words.
        before_M: Which examples are right with the old backbone.
        after_M: With the new one.
    """

    def ratio(counts_RN: Floats) -> Floats:
        before_R, after_R = counts_RN @ before_M, counts_RN @ after_M
        # Where nothing was right, nothing can have been lost.
        return np.where(before_R > 0, after_R / np.maximum(before_R, 1.0), np.maximum(after_R, 1.0))

    value, low, high = _with_interval(ratio, len(before_M))
    return Measure(on, what, float(before_M.mean()), float(after_M.mean()), value, low, high, len(before_M))


def share_of_score(metric: str, before: float, after: float, where: str) -> float:
    """How much is left of a score, 1 for all of it; of a loss per token, as of perplexities.

    Raises:
        DataError: If the score was such that there is no share of it: not above zero.
    """
    if metric == "token_loss":
        return math.exp(before - after)
    whole, left = (before, after) if greater_is_better(metric) else (after, before)
    if not whole > 0:
        raise DataError(f"{metric} was {before:.3g}, of which no share can be left", where=where, fix="leave it out")
    return max(0.0, left / whole)


def probe_hits(on: str, labels_N: NDArray[np.int64], states_ND: Tensor) -> NDArray[np.bool_]:
    """Which held-out examples a linear probe gets right: fitted on one half of the examples, scored on the other, (M,).

    Args:
        on: Which data, for an error.
        labels_N: Classes from 0.
        states_ND: Frozen states.

    Raises:
        DataError: If a half has one class alone.
    """
    order = np.random.default_rng(0).permutation(len(labels_N))
    fitted, held = np.split(order, [round(len(order) * (1 - HELD_OUT))])
    if len(np.unique(labels_N[fitted])) < 2 or not len(held):
        raise DataError("too few examples for a probe", where=on, fix="give at least some for each of two classes")
    classes = int(labels_N.max()) + 1
    head = logistic_regression(states_ND[fitted], labels_N[fitted], l2=PROBE_L2, num_classes=classes, standardize=True)
    found: NDArray[np.bool_] = head(states_ND[held]).argmax(1).numpy() == labels_N[held]
    return found


def _with_interval(ratio: Callable[[Floats], Floats], count: int) -> tuple[float, float, float]:
    """The value, and its percentile interval over resampled examples."""
    counts_RN = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(np.float64)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(ratio(counts_RN), [tail, 100 - tail])
    return float(ratio(np.ones((1, count)))[0]), float(low), float(high)
