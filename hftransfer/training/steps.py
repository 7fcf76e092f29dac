"""One optimizer step: micro-batches, a loss that is right for unequal batches, clipping, counters for all randomness.

A step is a pure function of the weights, the optimizer's state and (seed, step, rank): nothing else needs to be saved
to repeat it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hftransfer import interruption
from hftransfer.caching.states import Inputs
from hftransfer.data.batching import micro_batches, rank_slice, training_batches
from hftransfer.tasks.base import Features
from hftransfer.training.distributed import whole_tensor
from hftransfer.training.graphs import run_once

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from hftransfer.training.graphs import Graphs
    from hftransfer.training.retention import Retention
    from hftransfer.training.updates import Update
    from hftransfer.training_settings import OptimSection


class Objective(Protocol):
    """What a step minimises: the task, unless the stage has an objective of its own."""

    def weight(self, features: Features, rows: NDArray[np.int64], seed: int | None = None) -> float:
        """The denominator of the loss of these rows."""
        ...

    def loss(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The loss summed over the batch, a scalar."""
        ...


@dataclass(frozen=True)
class StepResult:
    """What a step tells all processes alike.

    Attributes:
        loss: The global batch's mean loss, before the update.
        stop: Whether one of the processes was asked to end.
    """

    loss: float
    stop: bool


AHEAD = StepResult(math.nan, stop=False)
"""Of a step that a GPU has been given and may not have made yet."""


class NotFinite(ArithmeticError):
    """Loss or gradient is infinite or no number; the weights are those before the step.

    Attributes:
        what: Which of them, and its value.
        rows: The rows in question, in order: of the micro-batches with such a loss, or of the whole global batch.
    """

    def __init__(self, what: str, rows: list[int]) -> None:
        super().__init__(what)
        self.what, self.rows = what, rows


class EpochBatches:
    """The global batches of a run, by global step. Their order does not depend on the number of processes.

    Args:
        lengths_N: Tokens of every row.
        global_batch_size: Rows per step.
        seed: The recipe's seed.
        cells_N: The cell of every row where cells are drawn equally often.
    """

    def __init__(
        self,
        lengths_N: NDArray[np.int64],
        global_batch_size: int,
        seed: int,
        cells_N: NDArray[np.int64] | None = None,
    ) -> None:
        self.lengths_N, self.global_batch_size, self.seed = lengths_N, global_batch_size, seed
        self.cells_N = cells_N
        self.per_epoch = -(-len(lengths_N) // global_batch_size)
        self._epoch, self._batches = -1, [np.empty(0, np.int64)]

    @property
    def rows_per_epoch(self) -> int:
        """How many rows are run in an epoch: each once."""
        return len(self.lengths_N)

    def first_row(self, step: int) -> int:
        """The row of all data that is row 0 of the features: they hold all."""
        return 0

    def __getitem__(self, step: int) -> NDArray[np.int64]:
        """The rows of the global batch of this step."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._batches = training_batches(
                self.lengths_N,
                global_batch_size=self.global_batch_size,
                seed=self.seed,
                epoch=epoch,
                cells=self.cells_N,
            )
        return self._batches[position]


def step_seed(seed: int, step: int, micro_step: int, rank: int) -> int:
    """The seed of dropout for one micro-step on one rank (63 bits)."""
    return int(np.random.SeedSequence([seed, step, micro_step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def training_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    objective: Objective,
    inputs: Inputs,
    rows: NDArray[np.int64],
    optim: OptimSection,
    *,
    seed: int,
    step: int,
    retention: Retention | None = None,
    graphs: Graphs | None = None,
    update: Update | None = None,
) -> StepResult:
    """Forward, backward and update on one global batch.

    Args:
        accelerator: Its processes share the batch.
        model: The prepared model, in train mode.
        optimizer: The prepared optimizer, its rates set for this step.
        objective: Computes the loss.
        inputs: Collates training rows and runs the model on them.
        rows: The global batch, the same on every rank.
        optim: Batch sizes and clipping.
        seed: The recipe's seed.
        step: The global step.
        retention: Holds pretrained weights near their values.
        graphs: Runs the micro-batches; gradients then stay in their places.
        update: Clips and updates in the place of accelerator and optimizer, and tells later what came of it.

    Returns:
        Loss and stop, the same on every rank; `AHEAD` with an update of its own, which does not raise `NotFinite`.

    Raises:
        NotFinite: Before the update, on every rank.
    """
    rank, world_size = accelerator.process_index, accelerator.num_processes
    # What a task draws at random is the same for a row however the batch is shared out.
    drawn = step_seed(seed, step, 0, 0)
    weight = objective.weight(inputs.features, rows, drawn)
    pieces = micro_batches(rank_slice(rows, rank, world_size), optim.per_device_train_batch_size)
    run, losses = _runner(accelerator, model, objective, inputs, graphs, update), []
    collate = inputs.collate if graphs is None else graphs.collate
    num_micro_steps = -(-len(rows) // (world_size * optim.per_device_train_batch_size))
    with contextlib.nullcontext() if retention is None else retention.mixed(seed, step):
        for micro_step in range(num_micro_steps):
            # A rank without rows left runs one row for nothing: all ranks must take part in the gradient's reduction.
            chosen, share = (pieces[micro_step], 1.0 / weight) if micro_step < len(pieces) else (rows[:1], 0.0)
            batch, dropout_seed = collate(chosen, drawn), step_seed(seed, step, micro_step, rank)
            with contextlib.nullcontext() if micro_step == num_micro_steps - 1 else accelerator.no_sync(model):
                losses.append(run(batch, share, dropout_seed))
    if update is not None:
        update.run(step)
        return AHEAD
    result, is_finite = _finish(accelerator, model, optimizer, optim, losses, retention)
    optimizer.zero_grad(set_to_none=graphs is None)
    if not is_finite:
        raise _not_finite(accelerator, result.loss, losses, pieces, rows)
    return result


def _finish(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    optim: OptimSection,
    losses: Sequence[torch.Tensor],
    retention: Retention | None,
) -> tuple[StepResult, bool]:
    """Clip, and update if loss and gradient are finite; the result, and whether they are: the same on all ranks."""
    # Without clipping the norm is still looked at; a limit of infinity changes no gradient.
    norm = accelerator.clip_grad_norm_(_learning(accelerator, model, optimizer), optim.max_grad_norm or math.inf)
    result, is_finite = _agree(accelerator, losses, norm)
    if is_finite:
        optimizer.step()
        if retention is not None:
            retention.pull(optimizer)
    return result, is_finite


def _learning(accelerator: Accelerator, model: nn.Module, optimizer: Any) -> Iterable[torch.Tensor]:
    """What a step updates.

    Accelerate knows a model in shards by the list of all its parameters; else nobody need walk through what is frozen.
    """
    if accelerator.distributed_type.value in ("FSDP", "DEEPSPEED"):
        return model.parameters()
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _backward(
    accelerator: Accelerator,
    model: nn.Module,
    objective: Objective,
    inputs: Inputs,
    batch: Mapping[str, torch.Tensor],
    share: float | torch.Tensor,
) -> torch.Tensor:
    """Add the gradient of a micro-batch's loss times its share; returns the loss."""
    loss = objective.loss(inputs.run(model, batch), batch)
    # DDP averages gradients over ranks; the loss is a sum over them.
    accelerator.backward(loss * share * accelerator.num_processes)
    return loss.detach()


def _runner(
    accelerator: Accelerator,
    model: nn.Module,
    objective: Objective,
    inputs: Inputs,
    graphs: Graphs | None,
    update: Update | None,
) -> Callable[[Mapping[str, torch.Tensor], float, int], torch.Tensor]:
    """What runs a micro-batch, given its share of the loss and the seed of dropout; returns its part of the loss."""
    run_pass = partial(_backward, accelerator, model, objective, inputs)

    def run(batch: Mapping[str, torch.Tensor], share: float, seed: int) -> torch.Tensor:
        if graphs is None:
            loss = run_once(run_pass, batch, share, seed, device=accelerator.device)
        else:
            loss = graphs.run(run_pass, batch, share, seed)
        return loss * share if update is None else update.add(loss, share)

    return run


def _agree(accelerator: Accelerator, losses: Sequence[torch.Tensor], norm: Any) -> tuple[StepResult, bool]:
    """Loss, whether to stop, and whether loss and gradient are finite: the same on all ranks.

    It takes one reduction, and one wait for a GPU.

    The wait comes before the update, so that a gradient that is no number never reaches the weights.
    """
    total = torch.zeros((), device=accelerator.device)
    for loss in losses:
        total += loss
    # A loss scaler meets infinite gradients and skips their steps; DeepSpeed has no norm before its first step.
    unknown = norm is None or accelerator.scaler is not None
    known = torch.zeros(()) if unknown else whole_tensor(torch.as_tensor(norm))
    asked = torch.tensor(float(interruption.requested()))
    values = torch.stack([total, *(value.to(total) for value in (known, asked))])
    if accelerator.num_processes > 1:
        values = accelerator.reduce(values, "sum")
    loss, norm_value, stop = values.tolist()
    return StepResult(loss, stop > 0), math.isfinite(loss) and math.isfinite(norm_value)


def _not_finite(
    accelerator: Accelerator,
    loss: float,
    losses: Sequence[torch.Tensor],
    pieces: Sequence[NDArray[np.int64]],
    rows: NDArray[np.int64],
) -> NotFinite:
    """What went wrong with which rows, the same on all ranks."""
    if math.isfinite(loss):
        return NotFinite("the gradient is not finite", sorted(rows.tolist()))
    # A rank may have had more micro-steps than pieces: those that it ran for nothing count nothing.
    bad = [row for value, piece in zip(losses, pieces, strict=False) if not value.isfinite() for row in piece.tolist()]
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        bad = gather_object(bad)
    return NotFinite(f"the loss is {loss}", sorted(bad or rows.tolist()))
