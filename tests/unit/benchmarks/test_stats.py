"""Medians, intervals, ratios, lines and the order of turns."""

from __future__ import annotations

import pytest

from benchmarks.stats import Spread, fit_line, interleaved, ratio_spread, wilson


def test_spread_is_median_and_ends():
    assert Spread.of([5.0, 1.0, 2.0, 9.0]) == Spread(3.5, 1.0, 9.0, 4)


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    # Brown, Cai and DasGupta 2001, and R's prop.test(correct = FALSE).
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662), (10, 10, 0.7225, 1.0)],
)
def test_wilson_interval(correct, total, low, high):
    assert wilson(correct, total) == pytest.approx((low, high), abs=1e-4)


def test_ratio_is_of_medians_and_its_ends_are_inside_rounds():
    found = ratio_spread({0: 10.0, 1: 30.0, 2: 20.0}, {0: 2.0, 1: 5.0, 2: 1.0})
    assert (found.median, found.low, found.high, found.count) == (10.0, 5.0, 20.0, 3)


def test_ratio_of_rounds_that_only_one_side_has():
    assert ratio_spread({0: 8.0}, {1: 2.0}) == Spread(4.0, 4.0, 4.0, 0)


def test_line_through_its_own_points_is_exact():
    sizes = [1000.0, 4000.0, 64000.0]
    line = fit_line(sizes, [3.0 + 0.002 * size for size in sizes])
    assert (line.intercept, line.slope, line.worst) == pytest.approx((3.0, 0.002, 0.0), abs=1e-9)
    assert line(2000) == pytest.approx(7.0)


def test_a_curve_is_far_from_its_line():
    sizes = [1000.0, 2000.0, 4000.0, 8000.0, 16000.0]
    assert fit_line(sizes, [1e-6 * size**2 for size in sizes]).worst > 0.2
    noisy = [size * factor for size, factor in zip(sizes, (1.03, 0.97, 1.02, 1.0, 0.98), strict=True)]
    assert fit_line(sizes, noisy).worst < 0.1


def test_turns_go_forwards_and_backwards():
    assert interleaved(["a", "b", "c"], 3) == [["a", "b", "c"], ["c", "b", "a"], ["a", "b", "c"]]
    assert interleaved(["a", "b"], 2) == [["a", "b"], ["b", "a"]]
