"""Predictions for encoded rows, in length-sorted batches under a token budget, on one or many processes.

Shape legend: N rows, B rows of a batch, P prediction values per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from hftransfer import interruption
from hftransfer.caching.states import Inputs
from hftransfer.data.batching import pass_tokens, token_budget_batches
from hftransfer.errors import DataError
from hftransfer.strategies.last_block import head_token_only
from hftransfer.tasks.base import Predictions, Task
from hftransfer.training.distributed import is_sharded, release, same_passes

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

# Several processes agree on whether to end once in so many passes.
AGREE_EVERY = 8

Piece: TypeAlias = tuple[NDArray[np.int64], Any]
"""Rows, and what was predicted for them: an array (B, P) or a list of B arrays."""


def predict(
    model: nn.Module,
    task: Task,
    inputs: Inputs,
    *,
    max_examples: int = 256,
    accelerator: Accelerator | None = None,
) -> Predictions:
    """Run the model over all rows.

    Args:
        model: The model; it is put in eval mode and back.
        task: Reads the model's outputs.
        inputs: Collates rows and runs the model on them.
        max_examples: At most this many rows per batch.
        accelerator: Shares the batches between its processes; every process gets all predictions.

    Returns:
        Predictions in the order of the rows: (N, P), or a list of N arrays where the task gives lists.

    Raises:
        DataError: If there are no rows.
        Interrupted: If the run was asked to end.
    """
    rank, world_size = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    batches = token_budget_batches(inputs.lengths_N, pass_tokens(next(model.parameters()).device.type), max_examples)
    if not batches:
        raise DataError("no rows to predict", where="features", fix="give at least one example")
    was_training = model.training
    model.eval()
    with head_token_only(model):
        pieces = _run(model, task, inputs, batches, same_passes(len(batches), rank, world_size), accelerator)
    release(model)
    model.train(was_training)
    if world_size > 1:
        from accelerate.utils import gather_object

        pieces = gather_object(pieces)
    return _in_order(pieces, len(inputs.lengths_N))


def _run(
    model: nn.Module,
    task: Task,
    inputs: Inputs,
    batches: list[NDArray[np.int64]],
    passes: Sequence[tuple[int, bool]],
    accelerator: Accelerator | None,
) -> list[Piece]:
    """The predictions of one process, on the CPU."""
    device = next(model.parameters()).device
    found: list[Piece] = []
    world_size = 1 if accelerator is None else accelerator.num_processes
    # Weights that were gathered in inference mode could not be trained afterwards.
    with torch.no_grad() if is_sharded(model) else torch.inference_mode():
        for turn, (position, counts) in enumerate(passes):
            if world_size == 1 or turn % AGREE_EVERY == 0:
                interruption.stop_if_any_requested(accelerator)
            rows = batches[position]
            batch = {name: tensor.to(device) for name, tensor in inputs.collate(rows).items()}
            predicted = task.predictions(partial(inputs.run, model), batch)
            if counts:
                found.append((rows, predicted))
    # Only now, so that a GPU need not wait for each batch to be copied.
    return [(rows, part.cpu().numpy() if isinstance(part, torch.Tensor) else part) for rows, part in found]


def _in_order(pieces: list[Piece], count: int) -> Predictions:
    """The predictions of all batches by row."""
    first = pieces[0][1]
    if isinstance(first, np.ndarray):
        array_NP = np.empty((count, *first.shape[1:]), first.dtype)
        for rows, part in pieces:
            array_NP[rows] = part
        return array_NP
    listed: list[NDArray[Any]] = [np.empty(0)] * count
    for rows, part in pieces:
        for row, values in zip(rows.tolist(), part, strict=True):
            listed[row] = values
    return listed
