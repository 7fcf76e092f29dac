"""LogME, H-score and neighbours against direct formulas, scikit-learn and numbers of transformer-ranker."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from hftransfer.advise.transferability import h_score, logme, nearest_neighbours, shrunk_covariance
from hftransfer.errors import DataError


def classes(rows, width, count=3, seed=0, apart=1.0):
    generator = np.random.default_rng(seed)
    labels_N = np.arange(rows) % count
    features_ND = generator.normal(size=(rows, width)) + apart * generator.normal(size=(count, width))[labels_N]
    return features_ND, labels_N, np.eye(count)[labels_N]


@pytest.mark.parametrize(("rows", "width"), [(60, 8), (20, 35)])
def test_logme_is_the_highest_evidence(rows, width):
    features_ND, _, targets_NC = classes(rows, width)

    def evidence(logs, target_N):
        alpha, beta = np.exp(logs)
        covariance_NN = features_ND @ features_ND.T / alpha + np.eye(rows) / beta
        return multivariate_normal.logpdf(target_N, np.zeros(rows), covariance_NN) / rows

    best = [
        -minimize(lambda logs, y=target_N: -evidence(logs, y), np.zeros(2), method="Nelder-Mead").fun
        for target_N in targets_NC.T
    ]
    assert logme(features_ND, targets_NC) == pytest.approx(np.mean(best), abs=1e-3)


def test_shrinkage_is_that_of_ledoit_and_wolf():
    features_ND, _, _ = classes(30, 12)
    oracle = LedoitWolf().fit(features_ND)
    covariance_DD, kept = shrunk_covariance(features_ND - features_ND.mean(0))
    np.testing.assert_allclose(covariance_DD, oracle.covariance_, rtol=1e-10)
    assert kept == pytest.approx(1 - oracle.shrinkage_)


def test_h_score_is_the_trace_of_its_definition():
    features_ND, labels_N, targets_NC = classes(40, 6)
    oracle = LedoitWolf().fit(features_ND)
    centred_ND = features_ND - features_ND.mean(0)
    means_ND = np.stack([centred_ND[labels_N == label].mean(0) for label in labels_N])
    between_DD = means_ND.T @ means_ND / (len(labels_N) - 1)
    expected = (1 - oracle.shrinkage_) * np.trace(np.linalg.inv(oracle.covariance_) @ between_DD)
    assert h_score(features_ND, targets_NC) == pytest.approx(expected)


def test_both_prefer_features_that_hold_the_labels():
    near, _, targets_NC = classes(90, 10, apart=0.2)
    far, _, _ = classes(90, 10, apart=3.0)
    assert logme(far, targets_NC) > logme(near, targets_NC)
    assert h_score(far, targets_NC) > h_score(near, targets_NC)
    assert h_score(far, targets_NC) <= targets_NC.shape[1] - 1


def test_neighbours_are_those_of_scikit_learn():
    features_ND, labels_N, targets_NC = classes(40, 5)
    found = nearest_neighbours(features_ND, targets_NC, k=3)
    centred_ND = features_ND - features_ND.mean(0)
    oracle = KNeighborsClassifier(3, metric="cosine", algorithm="brute")
    expected = cross_val_predict(oracle, centred_ND, labels_N, cv=LeaveOneOut(), method="predict_proba")
    np.testing.assert_allclose(found, expected)


# How far classes lie apart -> H-score and LogME by transformer-ranker 0.2.0 (with torch 2.13, on a CPU):
# `features, labels, _ = classes(200, 12, apart=apart)`, both as tensors into `HScore().fit(features, labels)` and
# `LogME().fit(features, labels)` of `transformer_ranker.estimators`. The package is not needed here.
RANKER = {
    0.6: (0.8921323909937732, -0.5748158353600856),
    0.1: (0.009667319554430833, -0.8668038580438943),
    2.0: (1.8596069362254122, 0.34521388219368676),
    0.3: (0.13778698118318322, -0.80117856670762),
    1.0: (1.4875718614665527, -0.249360542782064),
}


@pytest.mark.parametrize("apart", RANKER)
def test_the_same_as_transformer_ranker(apart):
    """Its LogME stops at a tolerance of 1e-3 and carries its precisions from one class to the next."""
    features_ND, _, targets_NC = classes(200, 12, apart=apart)
    of_h_score, of_logme = RANKER[apart]
    assert h_score(features_ND, targets_NC) == pytest.approx(of_h_score, rel=1e-6)
    assert logme(features_ND, targets_NC) == pytest.approx(of_logme, abs=1e-3)


@pytest.mark.parametrize(("measure", "which"), [(h_score, 0), (logme, 1)])
def test_the_same_order_as_transformer_rankers(measure, which):
    own = {apart: measure(*classes(200, 12, apart=apart)[::2]) for apart in RANKER}
    assert sorted(own, key=own.get) == sorted(RANKER, key=lambda apart: RANKER[apart][which])


@pytest.mark.parametrize("measure", [logme, h_score, nearest_neighbours])
def test_bad_shapes_are_told(measure):
    with pytest.raises(DataError, match="features"):
        measure(np.zeros((0, 3)), np.zeros((0, 2)))
    with pytest.raises(DataError, match="targets"):
        measure(np.zeros((4, 3)), np.zeros((5, 2)))


def test_features_without_information_have_the_evidence_of_noise_alone() -> None:
    rng = np.random.default_rng(0)
    targets_NC = np.eye(2)[rng.integers(0, 2, 60)]
    empty = logme(np.zeros((60, 4)), targets_NC)
    assert math.isfinite(empty)
    assert empty == pytest.approx(logme(1e-9 * rng.normal(size=(60, 4)), targets_NC), abs=0.05)
    assert logme(targets_NC + 0.1 * rng.normal(size=(60, 2)), targets_NC) > empty
