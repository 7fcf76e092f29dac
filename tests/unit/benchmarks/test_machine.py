"""The load of other processes, from the texts of /proc."""

from __future__ import annotations

import pytest

from benchmarks.machine import MARKED_SHARE, Reading, describe, is_marked, others_share, parse_reading

SYSTEM = "cpu  1000 20 300 5000 70 6 4 10 500 0\ncpu0 1 2 3\n"
OWN = "42 (a (odd) name) R 1 42 42 0 -1 4194304 100 200 0 0 150 50 400 100 20 0 1 0 99 1 1\n"


def test_reading_counts_all_but_idle_time_once():
    found = parse_reading(SYSTEM, OWN, 100, 5.0)
    # user + nice + system + irq + softirq + steal; guest time is part of user time.
    assert found.busy == pytest.approx(13.4)
    # utime + stime + cutime + cstime, whatever the process is called.
    assert found == Reading(found.busy, 7.0, 5.0)


def test_share_of_others_is_of_all_processors():
    before, after = Reading(100.0, 10.0, 0.0), Reading(119.0, 28.0, 10.0)
    assert others_share(before, after, 2) == pytest.approx(0.05)
    assert others_share(before, Reading(110.0, 25.0, 10.0), 2) == 0.0, "rounding of the counters is no load"


@pytest.mark.parametrize(
    ("share", "marked"), [(0.0, False), (MARKED_SHARE, False), (MARKED_SHARE + 1e-6, True), (None, True)]
)
def test_disturbed_samples_are_marked(share, marked):
    assert is_marked(share) is marked


def test_without_counters_nothing_is_known():
    assert others_share(None, Reading(1, 1, 1), 2) is None


def test_machine_is_described():
    found = describe()
    assert found["cores"] >= 1
    assert found["processor"]
