"""Rates, gaps, areas and thresholds of groups: fairlearn and scikit-learn are the oracles."""

from __future__ import annotations

import numpy as np
import pytest
from fairlearn.metrics import MetricFrame, count, false_positive_rate, selection_rate, true_positive_rate
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, roc_auc_score

from hftransfer.diagnose import groups as measuring
from hftransfer.diagnose.groups import (
    GAPS,
    Decisions,
    areas_under_curves,
    calibration_error,
    group_report,
    group_sums,
    rates_of,
)
from hftransfer.diagnose.thresholds import thresholds_per_group
from hftransfer.errors import DataError
from hftransfer.tasks.reliability import reliability


def random_decisions(size: int, seed: int, *, shift: float = 0.0) -> tuple[list[str], Decisions, np.ndarray]:
    """Groups a and b; in b the positives' scores are lower by `shift`."""
    rng = np.random.default_rng(seed)
    groups = rng.choice(["a", "b"], size)
    labels = rng.integers(0, 2, size)
    margin = rng.normal(size=size) + 2.0 * labels - 1.0 - shift * (groups == "b") * labels
    logits = np.stack([np.zeros(size), margin], 1)
    return groups.tolist(), Decisions.from_logits(logits, labels, [1]), labels


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(30, 120), st.integers(0, 1000))
def test_rates_are_those_of_fairlearn(num_groups: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, codes = rng.integers(0, 2, size), rng.integers(0, num_groups, size)
    decisions = Decisions.from_logits(rng.normal(size=(size, 2)), labels, [1])
    flagged = decisions.flagged_N.astype(int)
    metrics = {
        "count": count,
        "accuracy": accuracy_score,
        "flagged": selection_rate,
        "true positives": true_positive_rate,
        "false positives": false_positive_rate,
    }
    frame = MetricFrame(metrics=metrics, y_true=labels, y_pred=flagged, sensitive_features=codes).by_group
    found = rates_of(group_sums(codes, num_groups, decisions).sum(0)[None], num_groups, least=1)
    for group in frame.index:
        has = {
            "true positives": (labels[codes == group] == 1).any(),
            "false positives": (labels[codes == group] == 0).any(),
        }
        for rate in (rate for rate in GAPS if has.get(rate, True)):
            assert found[rate][0, group] == pytest.approx(frame.loc[group, rate])


def test_a_gap_is_fairlearns_difference_and_a_real_one_is_found() -> None:
    groups, decisions, labels = random_decisions(800, 0, shift=2.0)
    report = group_report("who", groups, decisions)
    frame = MetricFrame(
        metrics=true_positive_rate,
        y_true=labels,
        y_pred=decisions.flagged_N.astype(int),
        sensitive_features=groups,
    )
    gap = report.gaps["true positives"]
    assert gap.interval.value == pytest.approx(frame.difference())
    assert (gap.highest, gap.lowest) == ("a", "b")
    assert gap.p_value <= 0.005
    assert gap.interval.low > gap.chance
    assert report.gaps["false positives"].p_value > 0.02


def test_groups_that_are_drawn_at_random_rarely_differ() -> None:
    p_values = [
        group_report("who", *random_decisions(120, seed)[:2]).gaps["true positives"].p_value for seed in range(1, 13)
    ]
    assert sum(value <= 0.05 for value in p_values) <= 3


def test_areas_are_those_of_borkan_et_al() -> None:
    groups, decisions, labels = random_decisions(300, 3, shift=1.0)
    own = np.asarray(groups) == "b"
    found = areas_under_curves(own.astype(int), ["a", "b"], decisions)
    rows = {
        "subgroup": own,
        "BPSN": (own & (labels == 0)) | (~own & (labels == 1)),
        "BNSP": (own & (labels == 1)) | (~own & (labels == 0)),
    }
    for kind, of_kind in rows.items():
        expected = roc_auc_score(labels[of_kind], decisions.scores_N[of_kind])
        interval = found[kind, "b"]
        assert interval.value == pytest.approx(expected)
        assert interval.low < expected < interval.high


def test_the_calibration_error_is_the_reports_and_chance_is_beside_it() -> None:
    rng = np.random.default_rng(5)
    logits, labels = rng.normal(size=(400, 3)), rng.integers(0, 3, 400)
    decisions = Decisions.from_logits(logits, labels, [2])
    error, chance = calibration_error(decisions)
    assert error == pytest.approx(reliability(logits, labels).error)
    assert error > chance
    right = rng.random(400) < decisions.confident_N
    calibrated = Decisions(right, decisions.positive_N, decisions.flagged_N, decisions.scores_N, decisions.confident_N)
    assert calibration_error(calibrated)[0] < 1.3 * chance


def test_thresholds_per_group_close_a_gap_and_tell_the_cost() -> None:
    fitted, tested = random_decisions(2000, 6, shift=1.5), random_decisions(2000, 7, shift=1.5)
    found = thresholds_per_group("who", (fitted[1], fitted[0]), (tested[1], tested[0]))
    assert found.gap_before > 0.3
    assert found.gap_after < 0.1
    assert found.groups == 2
    assert found.cost.interval.low < found.cost.interval.value < found.cost.interval.high


def test_thresholds_need_two_groups_with_both_labels() -> None:
    groups, decisions, _ = random_decisions(50, 8)
    with pytest.raises(DataError, match="fewer than two groups"):
        thresholds_per_group("who", (decisions, ["a"] * 50), (decisions, groups))


def by_score(groups: list[str], labels: np.ndarray, margin: np.ndarray) -> Decisions:
    assert len(groups) == len(labels)
    return Decisions.from_logits(np.stack([np.zeros(len(labels)), margin], 1), labels, [1])


def test_a_group_whose_scores_say_less_is_found_in_areas_and_calibration() -> None:
    rng = np.random.default_rng(0)
    groups, labels = rng.choice(["a", "b", "c"], 900, p=[0.45, 0.45, 0.1]), rng.integers(0, 2, 900)
    # The scores of c are as bold as those of others, and say nothing.
    margin = rng.normal(size=900) + np.where(groups == "c", rng.choice([-3, 3], 900), 3 * (2 * labels - 1))
    decisions = by_score(groups.tolist(), labels, margin)
    report = group_report("who", groups.tolist(), decisions)
    found = {(one.kind, one.group): one for one in report.worse}
    for kind in ("subgroup", "BPSN", "BNSP"):
        one = found[kind, "c"]
        assert one.overall == pytest.approx(roc_auc_score(labels, decisions.scores_N))
        assert one.value == report.areas[kind, "c"].value < one.overall
        assert one.p_value == 0.001
    assert found["calibration", "c"].value == report.calibration["c"][0]
    assert found["calibration", "c"].p_value == 0.001
    assert {group for _, group in found} == {"c"}


def test_p_values_of_areas_and_calibration_are_right_where_groups_are_drawn_at_random(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # All figures are compared, not the clearly worse ones alone: under the null hypothesis p-values are uniform.
    monkeypatch.setattr(measuring, "CLEARLY", -1.0)
    monkeypatch.setattr(measuring, "PERMUTATIONS", 39)
    p_values = []
    for seed in range(30):
        groups, decisions, _ = random_decisions(120, seed)
        codes = np.asarray([group == "b" for group in groups], np.int64)
        figures = {(kind, "b"): 0.0 for kind in ("subgroup", "BPSN", "calibration")}
        for kind, _ in figures:
            figures[kind, "b"] = measuring._figure(kind, codes == 1, decisions)
        p_values += [one.p_value for one in measuring.worse_than_all(codes, ["a", "b"], decisions, figures, seed)]
    assert len(p_values) == 90
    assert 0.4 < np.mean(p_values) < 0.6
    assert np.mean(np.asarray(p_values) <= 0.1) < 0.25
