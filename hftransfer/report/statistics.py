"""How sure a score is, and whether two scores differ: bootstrap, McNemar, Holm, seeds.

A score is a function of how often each example is drawn. Nearly all of them depend on sums over the examples alone
(a confusion matrix, counts of entities, sums of losses), so that a resample is one multinomial draw over the distinct
rows and a matrix product, not a new evaluation.

Shape legend: N examples, S sums that a score is made of, K distinct rows, R resamples, M runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVEL, RESAMPLES, POWER = 0.95, 2000, 0.8
"""Coverage of an interval, how many resamples it rests on, and the power at which a difference counts as visible."""

# Draws that are held at once, in numbers.
BLOCK = 4_000_000
# With so few distinct rows a multinomial draw is cheaper than drawing every example.
FEW_DISTINCT = 1 / 8


@dataclass(frozen=True)
class Statistic:
    """A score as a function of the examples drawn; exactly one of the two forms is given.

    Attributes:
        count: N.
        sums_NS: What each example adds to the sums.
        of_sums: The score of R resamples from their sums (R, S).
        of_rows: The score of the examples with these numbers, (N,), where no sums suffice (ranks, areas under curves).
    """

    count: int
    sums_NS: Floats | None = None
    of_sums: Callable[[Floats], Floats] | None = None
    of_rows: Callable[[NDArray[np.int64]], float] | None = None

    def value(self) -> float:
        """The score of all examples, each drawn once."""
        if self.of_rows is not None:
            return self.of_rows(np.arange(self.count))
        assert self.sums_NS is not None
        assert self.of_sums is not None
        return float(self.of_sums(self.sums_NS.sum(0)[None])[0])


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval and standard error."""

    value: float
    low: float
    high: float
    standard_error: float


@dataclass(frozen=True)
class Difference:
    """How two runs differ on the same examples: the interval of first minus second, and the p-value of no difference.

    Attributes:
        interval: Difference, its interval and its standard error.
        p_value: Two-sided.
        test: "McNemar" or "paired bootstrap".
        count: How many examples it rests on.
        smallest: The smallest difference that this many examples show in four of five cases.
    """

    interval: Interval
    p_value: float
    test: str
    count: int
    smallest: float


def replicate(statistics: Sequence[Statistic], resamples: int, rng: np.random.Generator) -> Floats:
    """Scores of resampled examples; all statistics see the same draws, (number of statistics, R)."""
    count = statistics[0].count
    if all(statistic.of_rows is None for statistic in statistics):
        return _from_sums(statistics, resamples, rng)
    found = np.empty((len(statistics), resamples))
    for start, rows_RN in _draw_rows(count, resamples, rng):
        for place, statistic in enumerate(statistics):
            block = found[place, start : start + len(rows_RN)]
            if statistic.of_rows is not None:
                block[:] = [statistic.of_rows(rows_N) for rows_N in rows_RN]
            else:
                assert statistic.sums_NS is not None
                assert statistic.of_sums is not None
                block[:] = statistic.of_sums(_counts(rows_RN, count) @ statistic.sums_NS)
    return found


def _from_sums(statistics: Sequence[Statistic], resamples: int, rng: np.random.Generator) -> Floats:
    """The same for scores that are functions of sums."""
    widths = [part.sums_NS.shape[1] for part in statistics if part.sums_NS is not None]
    joint_NS = np.hstack([part.sums_NS for part in statistics if part.sums_NS is not None])
    parts = np.split(resampled_sums(joint_NS, resamples, rng), np.cumsum(widths)[:-1], axis=1)
    return np.stack([part.of_sums(sums) for part, sums in zip(statistics, parts, strict=True) if part.of_sums])


def resampled_sums(joint_NS: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """The sums of resampled examples, (R, S)."""
    count = len(joint_NS)
    distinct_KS, times_K = np.unique(joint_NS, axis=0, return_counts=True)
    sums_RS = np.empty((resamples, joint_NS.shape[1]))
    if len(times_K) <= max(count * FEW_DISTINCT, 1):
        sums_RS[:] = rng.multinomial(count, times_K / count, size=resamples) @ distinct_KS
    else:
        for start, rows_RN in _draw_rows(count, resamples, rng):
            sums_RS[start : start + len(rows_RN)] = _counts(rows_RN, count) @ joint_NS
    return sums_RS


def _draw_rows(count: int, resamples: int, rng: np.random.Generator) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Resampled numbers of examples in blocks: the number of the first resample, and (block, N)."""
    block = max(1, BLOCK // count)
    for start in range(0, resamples, block):
        yield start, rng.integers(0, count, size=(min(block, resamples - start), count))


def _counts(rows_RN: NDArray[np.int64], count: int) -> Floats:
    """How often each example is among the drawn ones, (R, N)."""
    flat = (rows_RN + np.arange(len(rows_RN))[:, None] * count).ravel()
    return np.bincount(flat, minlength=len(rows_RN) * count).reshape(len(rows_RN), count).astype(np.float64)


def bootstrap(statistic: Statistic, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The interval of a score over examples: percentiles of resamples, widened for few examples.

    The percentiles are those of Hesterberg's expanded interval (2015, The American Statistician 69(4)): a plain
    percentile interval is too narrow by the factor sqrt((n - 1) / n) and by the normal's tails for Student's.

    Args:
        statistic: The score.
        level: Coverage.
        resamples: How many.
        seed: Of the draws.
    """
    replicates_R = replicate([statistic], resamples, np.random.default_rng(seed))[0]
    return _percentile_interval(statistic.value(), replicates_R, statistic.count, level)


def bootstrap_all(
    sums_NS: Floats, of_sums: Callable[[Floats], Mapping[str, Floats]], *, level: float = LEVEL, seed: int = 0
) -> dict[str, Interval]:
    """`bootstrap` of several scores of the same sums, from the same draws.

    Args:
        sums_NS: What each example adds to the sums.
        of_sums: Scores (R,) by name, from sums (R, S).
        level: Coverage.
        seed: Of the draws.
    """
    values = of_sums(sums_NS.sum(0)[None])
    replicates = of_sums(resampled_sums(sums_NS, RESAMPLES, np.random.default_rng(seed)))
    return {
        name: _percentile_interval(float(values[name][0]), replicates[name], len(sums_NS), level) for name in values
    }


def _percentile_interval(value: float, replicates_R: Floats, count: int, level: float) -> Interval:
    """The expanded percentile interval of resampled scores; undefined ones are left out."""
    defined_R = replicates_R[np.isfinite(replicates_R)]
    if len(defined_R) < 2 or count < 2:
        return Interval(value, math.nan, math.nan, math.nan)
    from scipy import stats

    tail = float(stats.norm.cdf(math.sqrt(count / (count - 1)) * stats.t.ppf((1 - level) / 2, count - 1)))
    low, high = np.quantile(defined_R, [tail, 1 - tail])
    return Interval(value, float(low), float(high), float(defined_R.std(ddof=1)))


def over_seeds(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Student's interval of the mean of a score over seeds; its bounds are NaN for a single seed."""
    values_M = np.asarray(values, np.float64)
    mean, count = float(values_M.mean()), len(values_M)
    if count < 2:
        return Interval(mean, math.nan, math.nan, math.nan)
    from scipy import stats

    error = float(values_M.std(ddof=1) / math.sqrt(count))
    half = float(stats.t.ppf((1 + level) / 2, count - 1)) * error
    return Interval(mean, mean - half, mean + half, error)


def over_examples_and_seeds(
    statistics: Sequence[Statistic], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The interval of the mean over seeds of a score, for other examples and other seeds.

    Args:
        statistics: One per seed, of the same examples.
        level: Coverage.
        resamples: How many.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    values = [statistic.value() for statistic in statistics]
    replicates_R = _mean_over_seeds(replicate(statistics, resamples, rng), values, rng)
    value = float(np.mean(values))
    return _percentile_interval(value, replicates_R, statistics[0].count, level)


def _mean_over_seeds(replicates_MR: Floats, values: Sequence[float], rng: np.random.Generator) -> Floats:
    """Draws of the mean over seeds that vary as it does with other examples and other seeds, (R,).

    Resampled examples move all seeds together. What the seeds' scores scatter beyond the noise that each of them has
    from the examples alone is the spread of seeds; its share of the mean is drawn from Student's distribution.
    """
    seeds, resamples = replicates_MR.shape
    centre_R = replicates_MR.mean(0)
    if seeds == 1:
        return _as_floats(centre_R)
    # Resamples whose score is undefined (no example of a class was drawn) say nothing about the noise.
    defined_R = np.isfinite(centre_R)
    own_MR = replicates_MR[:, defined_R] - centre_R[defined_R]
    noise = float(own_MR.var(axis=1).mean()) * seeds / (seeds - 1) if defined_R.any() else 0.0
    spread = max(0.0, float(np.var(values, ddof=1)) - noise)
    return _as_floats(centre_R + math.sqrt(spread / seeds) * rng.standard_t(seeds - 1, resamples))


def _as_floats(values: object) -> Floats:
    found: Floats = np.asarray(values, np.float64)
    return found


def compare(
    first: Sequence[Statistic],
    second: Sequence[Statistic],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Whether two runs differ on the same examples: a paired bootstrap of the difference of their scores.

    The p-value is the share of resampled differences that lie at least as far from the observed one as that lies from
    zero (Efron and Tibshirani 1993, section 16.4: the null distribution is the resampled one, moved to zero).

    Args:
        first: The score of one run; several for several seeds, whose mean counts.
        second: That of the other, on the same examples.
        level: Coverage of the interval.
        resamples: How many.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    replicates = replicate([*first, *second], resamples, rng)
    values = [[part.value() for part in parts] for parts in (first, second)]
    moved = [
        _mean_over_seeds(part, own, rng)
        for part, own in zip((replicates[: len(first)], replicates[len(first) :]), values, strict=True)
    ]
    moved_R, value = moved[0] - moved[1], float(np.mean(values[0]) - np.mean(values[1]))
    interval = _percentile_interval(value, moved_R, first[0].count, level)
    defined_R = moved_R[np.isfinite(moved_R)]
    # The spread of resamples is that of n - 1 in n.
    spread = math.sqrt(first[0].count / max(first[0].count - 1, 1))
    further = np.abs(defined_R - value) * spread >= abs(value) - 1e-12
    p_value = float((1 + further.sum()) / (1 + len(defined_R)))
    smallest = smallest_difference(interval.standard_error, level)
    if max(len(first), len(second)) > 1 and len(defined_R):
        # Student's distribution of the seeds has no standard deviation for two of them: quantiles do.
        smallest = (interval.high - interval.low) / 2 + float(np.quantile(defined_R, POWER) - np.median(defined_R))
    return Difference(interval, p_value, "paired bootstrap", first[0].count, smallest)


def mcnemar(only_first: int, only_second: int) -> float:
    """McNemar's test of two classifiers on the same examples, two-sided, in its mid-p form.

    Of the examples that one alone gets right, half should be each one's if the two are equally good. The mid-p value
    (Fagerland, Lydersen and Laake 2013, BMC Medical Research Methodology 13:91) keeps the level without being as timid
    as the exact test.

    Args:
        only_first: How many examples the first alone gets right.
        only_second: How many the second alone gets right.
    """
    total, fewer = only_first + only_second, min(only_first, only_second)
    if not total:
        return 1.0
    from scipy import stats

    below = 2 * float(stats.binom.cdf(fewer, total, 0.5))
    return min(1.0, below - float(stats.binom.pmf(fewer, total, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): p-values that hold jointly for all of these comparisons."""
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = np.empty(len(p_values)), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return [float(value) for value in adjusted]


def smallest_difference(standard_error: float, level: float = LEVEL, power: float = POWER) -> float:
    """The true difference that a two-sided test at this level finds with this power, given the standard error."""
    from scipy import stats

    return float(stats.norm.ppf((1 + level) / 2) + stats.norm.ppf(power)) * standard_error


def selection_optimism(
    statistics: Sequence[Statistic], greater: bool = True, *, draws: int = 200, seed: int = 0
) -> float:
    """By how much the best of many scores on the same examples flatters the one that is chosen.

    Of every resample the candidate that is best on the drawn examples is scored on those that were not drawn; the
    mean loss is the optimism (a bootstrap of Tibshirani and Tibshirani 2009, arXiv:0908.2904).

    Args:
        statistics: One per candidate, of the same examples.
        greater: Whether a larger score is better.
        draws: How many resamples.
        seed: Of the draws.

    Returns:
        In the score's unit; positive: the best score is too good.
    """
    rng, count, losses = np.random.default_rng(seed), statistics[0].count, []
    for _ in range(draws):
        rows_N = rng.integers(0, count, count)
        left = np.setdiff1d(np.arange(count), rows_N)
        if len(left):
            inside = np.asarray([_on_rows(one, rows_N) for one in statistics])
            best = int(np.nanargmax(inside if greater else -inside)) if np.isfinite(inside).any() else 0
            losses.append(inside[best] - _on_rows(statistics[best], left))
    return float(np.nanmean(losses)) * (1.0 if greater else -1.0) if losses else math.nan


def _on_rows(statistic: Statistic, rows_N: NDArray[np.int64]) -> float:
    """The score of these examples."""
    if statistic.of_rows is not None:
        return statistic.of_rows(rows_N)
    assert statistic.sums_NS is not None
    assert statistic.of_sums is not None
    return float(statistic.of_sums(statistic.sums_NS[rows_N].sum(0)[None])[0])


def best_of(validation: Sequence[float], test: Sequence[float], greater: bool = True) -> dict[str, float]:
    """How much of the best seed's lead is luck: its lead over the mean on validation, which chose it, and on test.

    Args:
        validation: The validation score of every seed.
        test: Its test score.
        greater: Whether a larger score is better.

    Returns:
        `chosen`, the number of the seed that validation chooses; `lead_on_validation` and `lead_on_test`, how much
        better it is than the mean seed; and `optimism`, the first minus the second.
    """
    sign = 1.0 if greater else -1.0
    chosen = int(np.argmax(sign * np.asarray(validation)))
    leads = [sign * (values[chosen] - float(np.mean(values))) for values in (validation, test)]
    return {
        "chosen": chosen,
        "lead_on_validation": leads[0],
        "lead_on_test": leads[1],
        "optimism": leads[0] - leads[1],
    }
