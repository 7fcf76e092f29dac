"""Losses against torch's own means."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from hftransfer.tasks.losses import classification_loss, multi_label_loss, regression_loss

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -0.3], [-4.0, 3.0, 1.0], [0.0, 0.0, 0.0]])
CLASSES = torch.tensor([0, 2, 1, 2])
TARGETS = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 1], [1, 1, 1]])
WEIGHTS = torch.tensor([0.3, 2.0, 1.1])


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["even", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_is_the_mean_of_torch(weights, smoothing):
    denominator = len(CLASSES) if weights is None else weights[CLASSES].sum()
    expected = functional.cross_entropy(LOGITS, CLASSES, weight=weights, label_smoothing=smoothing)
    torch.testing.assert_close(classification_loss(LOGITS, CLASSES, weights, smoothing) / denominator, expected)
    # An exponent near 0 goes through the focal code.
    nearly = classification_loss(LOGITS, CLASSES, weights, smoothing, focal_gamma=1e-9) / denominator
    torch.testing.assert_close(nearly, expected)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["even", "weighted"])
def test_binary_cross_entropy_is_the_mean_of_torch(weights):
    expected = functional.binary_cross_entropy_with_logits(LOGITS, TARGETS, pos_weight=weights)
    torch.testing.assert_close(multi_label_loss(LOGITS, TARGETS, weights) / len(LOGITS), expected)
    torch.testing.assert_close(multi_label_loss(LOGITS, TARGETS, weights, 1e-9) / len(LOGITS), expected)


def test_focal_loss_by_hand():
    p = LOGITS.softmax(-1)[torch.arange(4), CLASSES]
    torch.testing.assert_close(classification_loss(LOGITS, CLASSES, focal_gamma=2.0), (-((1 - p) ** 2) * p.log()).sum())
    q = torch.where(TARGETS > 0, LOGITS.sigmoid(), 1 - LOGITS.sigmoid())
    torch.testing.assert_close(
        multi_label_loss(LOGITS, TARGETS, focal_gamma=2.0), (-((1 - q) ** 2) * q.log()).mean(-1).sum()
    )


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_a_sure_answer_has_a_finite_gradient(gamma):
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    classification_loss(logits, torch.tensor([0]), focal_gamma=gamma).backward()
    assert torch.isfinite(logits.grad).all()
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    multi_label_loss(logits, torch.tensor([[1.0, 0.0]]), focal_gamma=gamma).backward()
    assert torch.isfinite(logits.grad).all()


def test_squared_error_is_the_mean_of_torch():
    found = regression_loss(LOGITS[:, 0], TARGETS[:, 1]) / 4
    torch.testing.assert_close(found, functional.mse_loss(LOGITS[:, 0], TARGETS[:, 1]))
