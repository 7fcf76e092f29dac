"""Losses of classification, summed over the batch so that unequal batches and ranks add up exactly.

Shape legend: B rows of a batch, T tokens, C classes, M tokens with a label, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from hftransfer.models.vocabulary_head import logits_at


def classification_loss(
    logits_BC: Tensor,
    labels_B: Tensor,
    class_weights_C: Tensor | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    row_weights_B: Tensor | None = None,
) -> Tensor:
    """Cross-entropy summed over rows, with weights of classes or rows, label smoothing and the focal factor.

    The focal factor is equation 5 of arXiv:1708.02002.

    Divided by the sum of the rows' class weights this is `torch.nn.functional.cross_entropy(..., reduction="mean")`.
    """
    if not focal_gamma and row_weights_B is None:
        return functional.cross_entropy(
            logits_BC, labels_B, weight=class_weights_C, label_smoothing=label_smoothing, reduction="sum"
        )
    losses_B = functional.cross_entropy(
        logits_BC, labels_B, weight=class_weights_C, label_smoothing=label_smoothing, reduction="none"
    )
    if row_weights_B is not None:
        losses_B = losses_B * row_weights_B
    if not focal_gamma:
        return losses_B.sum()
    true_probability_B = logits_BC.softmax(-1).gather(1, labels_B[:, None])[:, 0]
    return (_focal_factor(true_probability_B, focal_gamma) * losses_B).sum()


def multi_label_loss(
    logits_BC: Tensor, targets_BC: Tensor, positive_weights_C: Tensor | None = None, focal_gamma: float = 0.0
) -> Tensor:
    """Binary cross-entropy, averaged over the labels of a row and summed over rows."""
    losses_BC = functional.binary_cross_entropy_with_logits(
        logits_BC, targets_BC, pos_weight=positive_weights_C, reduction="none"
    )
    if focal_gamma:
        probability_BC = logits_BC.sigmoid()
        true_probability_BC = torch.where(targets_BC > 0.5, probability_BC, 1 - probability_BC)
        losses_BC = _focal_factor(true_probability_BC, focal_gamma) * losses_BC
    return losses_BC.mean(-1).sum()


def _focal_factor(true_probability: Tensor, gamma: float) -> Tensor:
    """(1 - p) ** gamma; unclamped, its gradient at p = 1 is infinite for gamma < 1 and that of the loss NaN."""
    return (1 - true_probability).clamp_min(torch.finfo(true_probability.dtype).tiny) ** gamma


def regression_loss(predictions_B: Tensor, targets_B: Tensor) -> Tensor:
    """Squared error summed over rows."""
    return functional.mse_loss(predictions_B, targets_B, reduction="sum")


def token_loss(logits_MV: Tensor, labels_M: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy summed over tokens that have a label; smoothing spreads over the vocabulary."""
    return functional.cross_entropy(logits_MV.float(), labels_M, label_smoothing=label_smoothing, reduction="sum")


def losses_by_row(logits: Tensor, places_BT: Tensor, labels_M: Tensor) -> list[NDArray[Any]]:
    """The cross-entropy of every token with a label, by row; on the CPU, as predictions keep it.

    Args:
        logits: Of all places, or of these alone (`models.vocabulary_head`).
        places_BT: Where tokens have a label.
        labels_M: The labels.
    """
    losses_M = functional.cross_entropy(logits_at(logits, places_BT).float(), labels_M, reduction="none").cpu()
    return [row_M.numpy().copy() for row_M in losses_M.split(places_BT.sum(1).tolist())]
