"""Medians, intervals, ratios and straight lines: the arithmetic of the benchmark tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Spread:
    """The middle and the ends of some measurements."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values), len(values))


def wilson(correct: float, total: int, z: float = Z_95) -> tuple[float, float]:
    """The interval of a proportion (Wilson 1927): never empty and never outside of 0 to 1, unlike the normal one."""
    share = correct / total
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def ratio_spread(numerators: Mapping[int, float], denominators: Mapping[int, float]) -> Spread:
    """How many times one contestant's values are another's: the ratio of the medians, and the ratios inside rounds.

    Args:
        numerators: Round -> value.
        denominators: Likewise; rounds that only one of both has count for the medians alone.

    Returns:
        The ratio; its ends are the lowest and highest ratio of two values of one round, which met the same machine.
    """
    ratio = statistics.median(numerators.values()) / statistics.median(denominators.values())
    paired = [numerators[key] / denominators[key] for key in sorted(numerators.keys() & denominators.keys())]
    return Spread(ratio, min([ratio, *paired]), max([ratio, *paired]), len(paired))


@dataclass(frozen=True)
class Line:
    """A straight line through measurements, and how far the worst of them lies from it, as a share of its value."""

    intercept: float
    slope: float
    worst: float

    def __call__(self, x: float) -> float:
        """The line's value."""
        return self.intercept + self.slope * x


def fit_line(xs: Sequence[float], ys: Sequence[float]) -> Line:
    """The line with the least sum of squared relative deviations; sizes that differ a hundredfold count alike."""
    weights = [1 / (y * y) for y in ys]
    total = sum(weights)
    mean_x = sum(w * x for w, x in zip(weights, xs, strict=True)) / total
    mean_y = sum(w * y for w, y in zip(weights, ys, strict=True)) / total
    variance = sum(w * (x - mean_x) ** 2 for w, x in zip(weights, xs, strict=True))
    slope = sum(w * (x - mean_x) * (y - mean_y) for w, x, y in zip(weights, xs, ys, strict=True)) / variance
    intercept = mean_y - slope * mean_x
    worst = max(abs(intercept + slope * x - y) / y for x, y in zip(xs, ys, strict=True))
    return Line(intercept, slope, worst)


def interleaved(names: Sequence[str], rounds: int) -> list[list[str]]:
    """The order of the contestants in every round: forwards, backwards, forwards (ABBA).

    What drifts during a measurement, such as the clock rate of a warming processor, then meets all of them alike.
    """
    return [list(names) if number % 2 == 0 else list(reversed(names)) for number in range(rounds)]
