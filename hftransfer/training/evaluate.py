"""Predictions for encoded rows, in length-sorted batches under a token budget, on one or many processes.

Shape legend: N rows, P prediction values per row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from hftransfer.caching.states import Inputs
from hftransfer.data.batching import token_budget_batches
from hftransfer.errors import DataError
from hftransfer.tasks.base import Task
from hftransfer.training.distributed import is_sharded, release, same_passes

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

# Padded tokens per batch: large enough to fill the processor, small enough for its cache.
MAX_BATCH_TOKENS = 8192


def predict(
    model: nn.Module,
    task: Task,
    inputs: Inputs,
    *,
    max_examples: int = 256,
    accelerator: Accelerator | None = None,
) -> NDArray[np.float32]:
    """Run the model over all rows.

    Args:
        model: The model; it is put in eval mode and back.
        task: Reads the model's outputs.
        inputs: Collates rows and runs the model on them.
        max_examples: At most this many rows per batch.
        accelerator: Shares the batches between its processes; every process gets all predictions.

    Returns:
        Predictions in the order of the rows, (N, P).

    Raises:
        DataError: If there are no rows.
    """
    # Weights that were gathered in inference mode could not be trained afterwards.
    with torch.no_grad() if is_sharded(model) else torch.inference_mode():
        predictions_NP = _predict(model, task, inputs, max_examples, accelerator)
    release(model)
    return predictions_NP.float().cpu().numpy()


def _predict(
    model: nn.Module, task: Task, inputs: Inputs, max_examples: int, accelerator: Accelerator | None
) -> torch.Tensor:
    """The predictions of all rows on every process, (N, P)."""
    rank, world_size = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    batches = token_budget_batches(inputs.lengths_N, MAX_BATCH_TOKENS, max_examples)
    predictions_NP: torch.Tensor | None = None
    for position, counts in same_passes(len(batches), rank, world_size):
        rows = batches[position]
        batch = {name: tensor.to(device) for name, tensor in inputs.collate(rows).items() if name != "labels"}
        outputs_BP = task.predictions(inputs.run(model, batch))
        if predictions_NP is None:
            predictions_NP = torch.zeros(len(inputs.lengths_N), outputs_BP.shape[1], device=device)
        if counts:
            predictions_NP[torch.from_numpy(rows).to(device)] = outputs_BP
    if predictions_NP is None:
        raise DataError("no rows to predict", where="features", fix="give at least one example")
    if accelerator is not None and world_size > 1:
        predictions_NP = accelerator.reduce(predictions_NP, "sum")
    model.train(was_training)
    return predictions_NP
