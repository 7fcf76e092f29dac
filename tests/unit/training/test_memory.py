"""Running out of memory: what counts as such, and what is left of a step that did."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from hftransfer.training import memory
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


def test_a_training_leaves_garbage_collection_as_it_was():
    assert gc.get_freeze_count() == 0
    with memory.quick_collections():
        assert gc.get_freeze_count() > 0
        # As when a model is trained inside a training that is frozen already.
        with memory.quick_collections():
            pass
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0


def test_objects_of_a_training_are_collected_within_it():
    class Cycle:
        pass

    with memory.quick_collections():
        one = Cycle()
        one.itself = one
        gone = weakref.ref(one)
        del one
        gc.collect()
        assert gone() is None
