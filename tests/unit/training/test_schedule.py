"""Learning rates against transformers' own schedules; stages cover the steps exactly."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_scheduler

from hftransfer.strategies import Stage
from hftransfer.training.schedule import rate_factor, split_steps

OPTIONS = {"polynomial": {"power": 2.0, "lr_end": 0.0}}


@pytest.mark.parametrize("name", ["linear", "cosine", "constant_with_warmup", "polynomial"])
@pytest.mark.parametrize(("total", "warmup_ratio"), [(1, 0.0), (7, 0.0), (23, 0.1), (40, 0.5), (9, 0.7)])
def test_the_factor_is_that_of_transformers(name, total, warmup_ratio):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    warmup = math.ceil(total * warmup_ratio)
    scheduler = get_scheduler(name, optimizer, warmup, total, scheduler_specific_kwargs=OPTIONS.get(name))
    for step in range(total):
        assert rate_factor(name, step, total, warmup_ratio) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


@given(st.lists(st.floats(0.01, 10.0), min_size=1, max_size=12), st.integers(0, 5000))
def test_stages_cover_the_steps_without_gap_or_overlap(weights, total):
    stages = [Stage(str(index), 0, weight / sum(weights)) for index, weight in enumerate(weights)]
    found = split_steps(stages, total)
    assert [current.stage for current in found] == stages
    assert [step for current in found for step in range(current.start, current.end)] == list(range(total))
    assert sum(current.steps for current in found) == total
    for current in found:
        assert abs(current.steps - current.stage.share * total) <= 1 + 1e-6


@given(st.integers(0, 3), st.integers(0, 50))
def test_fixed_steps_come_off_the_total(fixed, total):
    stages = [Stage("pairs", 0), Stage("head", 4, share=0.0, steps=fixed)]
    first, last = split_steps(stages, total)
    assert (first.start, first.end, last.end) == (0, last.start, total)
    assert last.steps == min(fixed, total)
