"""Calibration error against a count by hand, and the temperature that makes probabilities true."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logit

from hftransfer.errors import DataError
from hftransfer.tasks.reliability import fit_temperature, mean_loss, reliability


def test_the_error_is_the_distance_of_confidence_and_share_that_is_right() -> None:
    # Two bins: 0.9 confident and right in 3 of 4, 0.6 confident and right in 1 of 2.
    logits = np.stack([np.zeros(6), logit([0.9] * 4 + [0.6] * 2)], 1)
    found = reliability(logits, np.asarray([1, 1, 1, 0, 1, 0]), bins=10)
    assert found.error == pytest.approx((4 * 0.15 + 2 * 0.1) / 6)
    assert (found.counts_K[9], found.right_K[9]) == (4, 0.75)
    assert found.counts_K[6] == 2
    assert found.confidences_K[6] == pytest.approx(0.6)
    assert found.loss == pytest.approx(-(3 * np.log(0.9) + np.log(0.1) + np.log(0.6) + np.log(0.4)) / 6)


def test_every_label_of_a_multi_label_problem_is_a_decision() -> None:
    logits, labels = logit(np.asarray([[0.1, 0.8]] * 5)), np.asarray([[0, 1]] * 4 + [[1, 1]])
    found = reliability(logits, labels, bins=10)
    assert sum(found.counts_K) == 10
    assert found.error == pytest.approx((5 * 0.1 + 5 * 0.2) / 10)


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("multi_label", [False, True])
def test_the_temperature_is_found(true: float, multi_label: bool) -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(scale=2.0, size=(20_000, 3))
    if multi_label:
        labels = (rng.random(honest.shape) < 1 / (1 + np.exp(-honest))).astype(int)
    else:
        labels = (honest + rng.gumbel(size=honest.shape)).argmax(1)
    assert fit_temperature(honest * true, labels) == pytest.approx(true, rel=0.05)
    assert mean_loss(honest, labels) < mean_loss(honest * 2, labels)


def test_no_decision_is_an_error() -> None:
    with pytest.raises(DataError, match="no decisions"):
        reliability(np.empty((0, 2)), np.empty(0))
