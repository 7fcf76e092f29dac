"""Out of memory: how many rows a process runs at once is halved before the first step; the global batch stays.

And what garbage collection need not look at.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hftransfer.caching.states import Inputs
from hftransfer.data.batching import rank_slice
from hftransfer.training.distributed import is_sharded
from hftransfer.training.steps import Objective, StepResult, step_seed

if TYPE_CHECKING:
    from accelerate import Accelerator


class OutOfMemory(Exception):
    """A step did not fit into memory and was not made; the weights are those before it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the device or of the machine, is used up."""
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, Exception) and bool(should_reduce_batch_size(error))


def attempt(step: Callable[[], StepResult]) -> StepResult | None:
    """Make a step; None if it did not fit into memory, which is free again then."""
    try:
        return step()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Out here nothing refers to the step's tensors any more.
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    return None


def all_fit(
    accelerator: Accelerator,
    model: nn.Module,
    objective: Objective,
    inputs: Inputs,
    rows: NDArray[np.int64],
    micro_batch: int,
    seed: int,
) -> bool:
    """Whether one micro-batch of the first step fits on every process; nothing is left of the trial.

    Several processes must find out before the step: one that fails in its midst leaves the others waiting. One process
    tries the step itself.
    """
    if accelerator.num_processes == 1 or is_sharded(model):
        return True
    own = rank_slice(rows, accelerator.process_index, accelerator.num_processes)
    drawn = step_seed(seed, 0, 0, 0)

    def trial() -> StepResult:
        batch: Mapping[str, Any] = inputs.collate(own[:micro_batch] if len(own) else rows[:1], drawn)
        batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        with accelerator.no_sync(model):
            accelerator.backward(objective.loss(inputs.run(model, batch), batch) * 0.0)
        return StepResult(0.0, False)

    failed = attempt(trial) is None
    model.zero_grad()
    flag = torch.tensor(float(failed), device=accelerator.device)
    return float(accelerator.reduce(flag, "sum")) == 0.0


@contextlib.contextmanager
def quick_collections() -> Iterator[None]:
    """Leave what is there already out of garbage collection for as long as the context lasts.

    Accelerate asks for a collection at the end of every stage, which would go through all that the imported libraries
    hold. Where somebody has frozen objects before, nothing changes: they would not expect them to thaw.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
