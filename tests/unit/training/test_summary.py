"""What a run says of its feature cache when a training is over."""

from __future__ import annotations

import pytest

from hftransfer.training.summary import cache_line


@pytest.mark.parametrize(
    ("served", "recomputed", "saved", "said"),
    [
        (1500, 0, 12.34, "feature cache: states found for 100.0% of 1,500 rows, 12.3 s saved"),
        (1, 2, -0.0, "feature cache: states found for 33.3% of 3 rows, 0.0 s saved"),
        (9, 1, -2.06, "feature cache: states found for 90.0% of 10 rows, encoding took 2.1 s more than they saved"),
        (0, 0, 0.0, ""),
    ],
)
def test_how_often_states_were_found_and_the_time_saved(served: int, recomputed: int, saved: float, said: str) -> None:
    facts = {"cache_served_rows": served, "cache_recomputed_rows": recomputed, "cache_saved_seconds": saved}
    assert cache_line(facts) == said


def test_a_training_without_stages_has_nothing_to_say() -> None:
    assert cache_line({}) == ""
