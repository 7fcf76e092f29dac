"""What is said of a suite of cases."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from hftransfer.diagnose.bias_words import _suite_words
from hftransfer.diagnose.cases import Share, SuiteReport, share_of


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
