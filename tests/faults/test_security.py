"""A short subset of the campaigns: every planted attack that is over in a moment, and some of the controls."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.attack import Attack, protected, unprotected
from tests.faults.attacks_code import ATTACKS as CODE
from tests.faults.attacks_path import ATTACKS as PATHS
from tests.faults.attacks_size import ATTACKS as SIZES

# What takes seconds to plant or to refuse is left to the campaign.
LONG = {"packed weights", "layers copied by an adapter", "recipe nested 400,000 deep", "recipe of 16 MB"}
ALL = [attack for attack in (*CODE, *SIZES, *PATHS) if attack.name not in LONG]
# One control of each kind: a pickle, a model's own code, the same with the flag that allows it, a template, a link.
CONTROLS = {
    "pickle as weights",
    "code of a model",
    "code, trusted on a branch",
    "chat template that leaves its sandbox",
    "log.jsonl of the output is a link",
}


@pytest.mark.parametrize("attack", ALL, ids=lambda attack: attack.name)
def test_a_planted_attack_does_not_work(tmp_path: Path, attack: Attack) -> None:
    outcome, control, canary = protected(attack, tmp_path / "planted")
    assert not outcome.fired, outcome.verdict
    if attack.name in CONTROLS:
        assert unprotected(control, canary)
