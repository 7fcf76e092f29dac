"""Predictions for encoded rows, in length-sorted batches under a token budget, on one or many processes.

Shape legend: N rows, P prediction values per row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from hftransfer.data.batching import token_budget_batches
from hftransfer.errors import DataError
from hftransfer.tasks.base import Features, Task

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

# Padded tokens per batch: large enough to fill the processor, small enough for its cache.
MAX_BATCH_TOKENS = 8192


@torch.inference_mode()
def predict(
    model: nn.Module,
    task: Task,
    features: Features,
    *,
    max_examples: int = 256,
    accelerator: Accelerator | None = None,
) -> NDArray[np.float32]:
    """Run the model over all rows.

    Args:
        model: The model; it is put in eval mode and back.
        task: Collates rows and reads the model's outputs.
        features: Encoded rows.
        max_examples: At most this many rows per batch.
        accelerator: Shares the batches between its processes; every process gets all predictions.

    Returns:
        Predictions in the order of the rows, (N, P).

    Raises:
        DataError: If there are no rows.
    """
    rank, world_size = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    batches = token_budget_batches(features.lengths_N, MAX_BATCH_TOKENS, max_examples)
    predictions_NP: torch.Tensor | None = None
    for position, rows in enumerate(batches):
        # Every process runs the first batch, which tells the width; it counts once.
        if position % world_size != rank and position != 0:
            continue
        batch = {name: tensor.to(device) for name, tensor in task.collate(features, rows).items() if name != "labels"}
        outputs_BP = task.predictions(model(**batch))
        if predictions_NP is None:
            predictions_NP = torch.zeros(len(features), outputs_BP.shape[1], device=device)
        if position % world_size == rank:
            predictions_NP[torch.from_numpy(rows).to(device)] = outputs_BP
    if predictions_NP is None:
        raise DataError("no rows to predict", where="features", fix="give at least one example")
    if accelerator is not None and world_size > 1:
        predictions_NP = accelerator.reduce(predictions_NP, "sum")
    model.train(was_training)
    return predictions_NP.float().cpu().numpy()
