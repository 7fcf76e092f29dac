"""Which point of a curve is written, and where it is looked at more closely."""

from __future__ import annotations

import math

import pytest

from hftransfer.diagnose.retained import Measure
from hftransfer.diagnose.softening import Point, choose, refined


def measure(retained: float) -> Measure:
    return Measure("texts", "accuracy", 0.9, 0.9 * retained, retained, retained, retained, 100, known=False)


def points(*rows: tuple[float, float, float]) -> list[Point]:
    """Share, score and what is retained of each."""
    return [Point(share, score, [measure(1.0), measure(retained)]) for share, score, retained in rows]


CURVE = points((0.0, 0.3, 1.0), (0.5, 0.8, 0.97), (0.6, 0.9, 0.96), (0.7, 0.9, 0.95), (0.8, 0.95, 0.94))


@pytest.mark.parametrize(("retain", "share"), [(0.94, 0.8), (0.95, 0.6), (0.965, 0.5), (0.99, 0.0), (1.0, 0.0)])
def test_the_best_score_among_those_that_retain_enough(retain: float, share: float) -> None:
    assert choose(CURVE, retain, "accuracy").share == share


def test_of_a_loss_the_smallest_is_best() -> None:
    assert choose(points((0.0, 3.0, 1.0), (0.5, 1.0, 0.99), (0.9, 2.0, 0.98)), 0.9, "token_loss").share == 0.5


def test_an_undefined_score_is_never_chosen_over_another() -> None:
    undefined = points((0.0, math.nan, 1.0), (0.5, 0.4, 0.99), (0.6, math.nan, 0.99))
    assert choose(undefined, 0.9, "accuracy").share == 0.5


def test_what_is_retained_is_the_least_of_all_measures() -> None:
    assert points((0.5, 0.1, 0.4))[0].retained == 0.4


def test_it_is_looked_at_more_closely_where_enough_turns_into_too_little() -> None:
    assert refined(CURVE, 0.95) == [0.725, 0.75, 0.775]
    assert refined(CURVE, 0.9) == []
    assert refined(CURVE, 0.999) == [0.125, 0.25, 0.375]
