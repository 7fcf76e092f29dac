"""Running out of memory: what counts as such, and what is left of a step that did."""

from __future__ import annotations

import weakref

import pytest
import torch

from hftransfer.training.memory import attempt
from hftransfer.training.steps import StepResult

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_step_that_does_not_fit_leaves_nothing_in_memory(error: Exception) -> None:
    held = []

    def step() -> StepResult:
        activations = torch.ones(8)
        held.append(weakref.ref(activations))
        raise error.with_traceback(None)

    assert attempt(step) is None
    error.__traceback__ = None
    assert held[0]() is None


def test_a_step_that_fits_is_made() -> None:
    assert attempt(lambda: StepResult(0.5, False)) == StepResult(0.5, False)


def test_other_errors_are_raised() -> None:
    def step() -> StepResult:
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        attempt(step)
