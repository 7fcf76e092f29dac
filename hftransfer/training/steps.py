"""One optimizer step: micro-batches, a loss that is right for unequal batches, clipping, counters for all randomness.

A step is a pure function of the weights, the optimizer's state and (seed, step, rank): nothing else needs to be saved
to repeat it.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from hftransfer.caching.states import Inputs
from hftransfer.data.batching import micro_batches, rank_slice, training_batches
from hftransfer.tasks.base import Task

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from hftransfer.recipe import OptimSection


class EpochBatches:
    """The global batches of a run, by global step. Their order does not depend on the number of processes."""

    def __init__(self, lengths_N: NDArray[np.int64], global_batch_size: int, seed: int) -> None:
        self.lengths_N, self.global_batch_size, self.seed = lengths_N, global_batch_size, seed
        self.per_epoch = -(-len(lengths_N) // global_batch_size)
        self._epoch, self._batches = -1, [np.empty(0, np.int64)]

    def __getitem__(self, step: int) -> NDArray[np.int64]:
        """The rows of the global batch of this step."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._batches = training_batches(
                self.lengths_N, global_batch_size=self.global_batch_size, seed=self.seed, epoch=epoch
            )
        return self._batches[position]


def step_seed(seed: int, step: int, micro_step: int, rank: int) -> int:
    """The seed of dropout for one micro-step on one rank (63 bits)."""
    return int(np.random.SeedSequence([seed, step, micro_step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def training_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    task: Task,
    inputs: Inputs,
    rows: NDArray[np.int64],
    optim: OptimSection,
    *,
    seed: int,
    step: int,
) -> torch.Tensor:
    """Forward, backward and update on one global batch.

    Args:
        accelerator: Its processes share the batch.
        model: The prepared model, in train mode.
        optimizer: The prepared optimizer, its rates set for this step.
        task: Computes the loss.
        inputs: Collates training rows and runs the model on them.
        rows: The global batch, the same on every rank.
        optim: Batch sizes and clipping.
        seed: The recipe's seed.
        step: The global step.

    Returns:
        This rank's part of the global batch's mean loss, detached; the sum over ranks is the loss.
    """
    rank, world_size = accelerator.process_index, accelerator.num_processes
    # What a task draws at random is the same for a row however the batch is shared out.
    drawn = step_seed(seed, step, 0, 0)
    weight = task.weight(inputs.features, rows, drawn)
    pieces = micro_batches(rank_slice(rows, rank, world_size), optim.per_device_train_batch_size)
    largest = -(-len(rows) // world_size)
    num_micro_steps = -(-largest // optim.per_device_train_batch_size)
    total = torch.zeros((), device=accelerator.device)
    for micro_step in range(num_micro_steps):
        # A rank without rows left runs one row for nothing: all ranks must take part in the gradient's reduction.
        idle = micro_step >= len(pieces)
        batch = inputs.collate(rows[:1] if idle else pieces[micro_step], drawn)
        batch = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
        torch.manual_seed(step_seed(seed, step, micro_step, rank))
        last = micro_step == num_micro_steps - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            loss = task.loss(inputs.run(model, batch), batch) * (0.0 if idle else 1.0 / weight)
            # DDP averages gradients over ranks; the loss is a sum over them.
            accelerator.backward(loss * world_size)
        total += loss.detach()
    if optim.max_grad_norm > 0:
        accelerator.clip_grad_norm_(model.parameters(), optim.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return total
