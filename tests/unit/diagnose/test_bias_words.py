"""What is said of a suite of cases, of groups, and of words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from hftransfer.diagnose.artefacts import Association
from hftransfer.diagnose.bias import Findings
from hftransfer.diagnose.bias_words import _artefact_words, _group_words, _suite_words
from hftransfer.diagnose.cases import Share, SuiteReport, share_of
from hftransfer.diagnose.groups import GAPS, Gap, GroupReport, Worse
from hftransfer.report.statistics import Interval


def share(right: int, count: int) -> Share:
    found = share_of(np.arange(count) < right)
    assert found is not None
    return found


def said(suite: SuiteReport) -> tuple[list[str], list[str]]:
    subject: Any = None
    findings: Any = SimpleNamespace(suite=suite)
    return _suite_words(subject, findings)


def test_a_suite_without_functionalities_can_fail() -> None:
    alarms, remarks = said(SuiteReport(share(2, 100), share(95, 100)))
    assert alarms == [
        "Of the cases the model gets right 2.0% of the 100 that should be flagged and 95.0% of the 100 that should not "
        "be flagged. It gets most of one side wrong."
    ]
    assert remarks == []


def test_targets_are_compared_where_no_functionality_fails() -> None:
    targets = {"women": (share(55, 100), None), "gay people": (share(95, 100), None)}
    alarms, remarks = said(SuiteReport(share(150, 200), None, {("derogation", True): share(150, 200)}, targets))
    assert alarms == ["What is aimed at women is found least often (55%), at gay people most often (95%)."]
    assert len(remarks) == 1


def test_a_suite_that_goes_well_is_told_without_an_alarm() -> None:
    alarms, remarks = said(SuiteReport(share(95, 100), share(95, 100), {("derogation", True): share(95, 100)}))
    assert (alarms, len(remarks)) == ([], 1)


def test_harmless_cases_that_are_flagged_are_told_by_target() -> None:
    targets = {"women": (share(95, 100), share(90, 100)), "Muslims": (share(95, 100), share(40, 100))}
    alarms, _ = said(SuiteReport(share(190, 200), share(130, 200), {("derogation", True): share(190, 200)}, targets))
    assert alarms == ["Harmless cases about Muslims are flagged most often (60%), about women least often (10%)."]
    few = {name: (positive, share(2, 10)) for name, (positive, _) in targets.items()}
    assert said(SuiteReport(share(190, 200), share(130, 200), {("derogation", True): share(190, 200)}, few))[0] == []


def report(column: str, p_values: list[float], worse: list[Worse] | None = None) -> GroupReport:
    """Two groups whose rates differ by 0.2, with these p-values."""
    gaps = {
        rate: Gap(Interval(0.2, 0.1, 0.3, 0.05), p_value, 0.1, "a", "b")
        for rate, p_value in zip(GAPS, p_values, strict=False)
    }
    areas = {(kind, group): Interval(0.7, 0.6, 0.8, 0.05) for kind in ("subgroup", "BPSN") for group in "ab"}
    calibration = dict.fromkeys("ab", (0.2, 0.1))
    return GroupReport(column, {"a": 50, "b": 50}, {}, gaps, areas, calibration, worse or [])


def of_groups(*reports: GroupReport) -> tuple[list[str], list[str]]:
    subject: Any = None
    return _group_words(subject, Findings(groups=list(reports)))


def test_gaps_of_all_columns_are_one_family() -> None:
    low = [0.01, 0.9, 0.9, 0.9]
    alarms, remarks = of_groups(report("who", low))
    assert alarms == [
        "By who, the accuracy differs by 0.200 [0.100, 0.300]: most for 'a', least for 'b' (chance alone: up to 0.100)."
    ]
    assert remarks == []
    # With four further gaps in each of two other columns, one of twelve has this p-value by chance in 11 % of cases.
    others = [report(column, [0.9] * 4) for column in ("age", "place")]
    alarms, remarks = of_groups(report("who", low), *others)
    assert alarms == []
    assert len(remarks) == 3
    alarms, remarks = of_groups(report("who", [0.004, 0.9, 0.9, 0.9]), *others)
    assert [words.split(",")[0] for words in alarms] == ["By who"]
    assert [words.split(",")[0] for words in remarks] == ["By age", "By place"]


def test_the_worst_areas_and_calibration_errors_are_told() -> None:
    worse = [
        Worse("subgroup", "a", 0.7, 0.85, 0.001),
        Worse("subgroup", "b", 0.6, 0.85, 0.001),
        Worse("calibration", "b", 0.31, 0.12, 0.001),
        Worse("BPSN", "b", 0.7, 0.85, 0.04),
    ]
    alarms, remarks = of_groups(report("who", [0.9] * 4, worse))
    assert alarms == [
        "By who, the model tells positives from negatives worst among those of 'b': subgroup AUC 0.600 [0.600, 0.800], "
        "0.850 over all.",
        "By who, its probabilities mislead most for 'b': calibration error 0.310, 0.120 over all.",
    ], "six figures were compared, so a p-value of 0.04 is no reason"
    assert remarks == []


def test_words_that_decide_a_label_are_told_without_a_table() -> None:
    subject: Any = None
    word = Association("zorbly", "rude", 30, 0.97, 0.5, 0.4, 9.0, 1e-9, 0.95)
    (told,), _ = _artefact_words(subject, Findings(words=[word]))
    assert told.startswith(
        "1 word nearly decides a label alone (one is in 30 texts, 97% of them 'rude', and in 40% of that class). Is"
    )
    assert "zorbly" not in told, "words of the data are for tables alone"
