"""Intervals and tests against known values, and a short run of the simulation behind docs/statistics.md."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftransfer.report.statistics import (
    Statistic,
    best_of,
    bootstrap,
    bootstrap_all,
    compare,
    holm,
    mcnemar,
    over_examples_and_seeds,
    over_seeds,
    replicate,
    selection_optimism,
    smallest_difference,
)
from scripts.simulate_statistics import POPULATIONS, coverage, false_positives, seed_coverage


def mean_of(values_N: np.ndarray) -> Statistic:
    """The mean as a function of sums."""
    sums_NS = np.stack([np.ones(len(values_N)), values_N], 1).astype(np.float64)
    return Statistic(len(values_N), sums_NS, lambda sums_RS: sums_RS[:, 1] / sums_RS[:, 0])


def ranked_mean_of(values_N: np.ndarray) -> Statistic:
    """The same, computed anew for every resample."""
    return Statistic(len(values_N), of_rows=lambda rows_N: float(values_N[rows_N].mean()))


@pytest.mark.parametrize("make", [mean_of, ranked_mean_of])
@pytest.mark.parametrize("distinct", [True, False], ids=["all distinct", "two values"])
def test_the_interval_of_a_mean_is_that_of_the_normal_distribution(make: type, distinct: bool) -> None:
    rng = np.random.default_rng(1)
    values_N = rng.normal(size=400) if distinct else (rng.random(400) < 0.7).astype(float)
    found = bootstrap(make(values_N))  # type: ignore[call-arg, arg-type]
    error = values_N.std(ddof=1) / 20
    assert found.value == pytest.approx(values_N.mean())
    assert found.standard_error == pytest.approx(error, rel=0.08)
    assert found.low == pytest.approx(values_N.mean() - 1.97 * error, abs=0.3 * error)
    assert found.high == pytest.approx(values_N.mean() + 1.97 * error, abs=0.3 * error)


def test_few_distinct_rows_draw_like_single_examples() -> None:
    values_N = (np.arange(300) % 3 == 0).astype(float)
    few, every = mean_of(values_N), mean_of(values_N + np.arange(300) * 1e-12)
    rng = np.random.default_rng
    assert replicate([few], 4000, rng(0)).std() == pytest.approx(replicate([every], 4000, rng(1)).std(), rel=0.06)


def test_several_scores_of_the_same_sums_come_from_one_draw() -> None:
    values_N = np.random.default_rng(0).normal(size=100)
    part = mean_of(values_N)
    assert part.sums_NS is not None
    found = bootstrap_all(part.sums_NS, lambda sums_RS: {"mean": sums_RS[:, 1] / sums_RS[:, 0], "n": sums_RS[:, 0]})
    assert found["mean"] == bootstrap(part)
    assert found["n"].low == found["n"].high == 100


def test_one_example_has_no_interval() -> None:
    found = bootstrap(mean_of(np.ones(1)))
    assert found.value == 1.0
    assert math.isnan(found.low)
    assert math.isnan(found.standard_error)


def test_seeds_alone_have_students_interval() -> None:
    found = over_seeds([0.80, 0.82, 0.84])
    assert (found.value, found.standard_error) == (pytest.approx(0.82), pytest.approx(0.02 / math.sqrt(3)))
    assert found.high == pytest.approx(0.82 + 4.302653 * 0.02 / math.sqrt(3), abs=1e-6)
    assert math.isnan(over_seeds([0.8]).low)


def test_seeds_that_agree_are_as_sure_as_one_and_those_that_scatter_less_sure() -> None:
    right_N = (np.arange(500) % 5 > 0).astype(float)
    one = bootstrap(mean_of(right_N))
    same = over_examples_and_seeds([mean_of(right_N)] * 3)
    assert same.high - same.low == pytest.approx(one.high - one.low, rel=0.1)
    worse = right_N.copy()
    worse[:150] = 0
    apart = over_examples_and_seeds([mean_of(right_N), mean_of(right_N), mean_of(worse)])
    assert apart.high - apart.low > 3 * (same.high - same.low)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    # 2 * P(X <= k) - P(X = k) of a binomial distribution with n = both, p = 1/2.
    [(0, 0, 1.0), (5, 5, 1.0), (0, 1, 0.5), (1, 9, 0.01171875), (10, 0, 0.0009765625)],
)
def test_mcnemar(only_first: int, only_second: int, p_value: float) -> None:
    assert mcnemar(only_first, only_second) == pytest.approx(p_value)
    assert mcnemar(only_second, only_first) == pytest.approx(p_value)


def test_holm_against_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_corrects_upwards_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= q <= 1.0 for p, q in zip(p_values, adjusted, strict=True))
    assert [adjusted[place] for place in np.argsort(p_values)] == sorted(adjusted)


def test_pairs_are_compared_on_the_same_draws() -> None:
    rng = np.random.default_rng(0)
    hard_N = rng.normal(size=300)
    first, second = hard_N + 0.1, hard_N + rng.normal(scale=0.05, size=300)
    found = compare([mean_of(first)], [mean_of(second)])
    # Unpaired, the standard error would be 0.08: what both have in common cancels.
    assert found.interval.standard_error < 0.005
    assert found.p_value < 0.01
    assert found.interval.low < 0.1 < found.interval.high
    assert found.smallest == pytest.approx(2.8016 * found.interval.standard_error, rel=1e-3)
    same = compare([mean_of(hard_N)], [mean_of(hard_N)])
    assert (same.interval.value, same.p_value) == (0.0, 1.0)


def test_the_smallest_difference_is_found_in_four_of_five_cases() -> None:
    error = 0.02
    rng, true = np.random.default_rng(0), smallest_difference(0.02)
    assert np.mean(np.abs(rng.normal(true, error, 20_000)) > 1.96 * error) == pytest.approx(0.8, abs=0.01)


def test_the_luck_of_the_best_seed() -> None:
    luck = best_of([0.80, 0.84, 0.82], [0.79, 0.79, 0.82])
    assert luck["chosen"] == 1
    assert luck["lead_on_validation"] == pytest.approx(0.02)
    assert luck["lead_on_test"] == pytest.approx(-0.01)
    assert luck["optimism"] == pytest.approx(0.03)
    assert best_of([1.0, 2.0], [1.0, 2.0], greater=False)["chosen"] == 0


@pytest.mark.parametrize("greater", [True, False])
def test_choosing_among_equals_flatters_and_choosing_the_evident_does_not(greater: bool) -> None:
    rng = np.random.default_rng(0)
    equals = [mean_of(rng.normal(size=200)) for _ in range(20)]
    assert 0.05 < selection_optimism(equals, greater) < 0.4
    evident = [mean_of(rng.normal(size=200)), mean_of(rng.normal(size=200) + (9 if greater else -9))]
    assert abs(selection_optimism(evident, greater)) < 0.05


def test_intervals_hold_the_truth_and_equal_models_rarely_differ() -> None:
    """A short subset of scripts/simulate_statistics.py; with 250 rounds two standard errors are 2.8 points."""
    accuracy, f1 = POPULATIONS[0], POPULATIONS[2]
    figures = {
        "accuracy": coverage(accuracy, 200, 250),
        "macro-F1": coverage(f1, 200, 250),
        "3 seeds": seed_coverage(3, 200, 250),
    }
    print(figures)
    assert all(0.92 <= share <= 0.98 for share in figures.values()), figures
    equal = false_positives(accuracy, 200, 250)
    print(equal)
    assert all(share <= 0.085 for share in equal.values()), equal


def test_a_resample_without_a_score_hides_no_spread_of_seeds() -> None:
    values_N = np.random.default_rng(0).normal(0.0, 0.1, 200)

    def seed(mean: float, *, needs_first: bool) -> Statistic:
        def score(rows_N: np.ndarray) -> float:
            return mean + float(values_N[rows_N].mean()) if not needs_first or 0 in rows_N else math.nan

        return Statistic(200, of_rows=score)

    whole, holed = (
        over_examples_and_seeds([seed(mean, needs_first=needs_first) for mean in (0.7, 0.8, 0.9)])
        for needs_first in (False, True)
    )
    assert holed.high - holed.low == pytest.approx(whole.high - whole.low, rel=0.25)
    assert holed.high - holed.low > 0.2, "that of the seeds, not of the examples alone"


@pytest.mark.parametrize("seeds", [2, 3])
def test_the_smallest_difference_of_few_seeds_is_a_number_to_use(seeds: int) -> None:
    rng = np.random.default_rng(1)
    runs = [
        [mean_of((rng.random(400) < share + 0.01 * at).astype(float)) for at in range(seeds)] for share in (0.8, 0.82)
    ]
    found = [compare(*runs, seed=seed).smallest for seed in range(6)]
    assert max(found) < 1.0
    assert max(found) < 2 * min(found)
