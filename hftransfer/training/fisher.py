"""How much each pretrained weight matters to what the checkpoint knew: the diagonal of its Fisher information, for EWC.

It is the mean over examples of the squared gradient of an example's log-likelihood under the pretrained weights
(Kirkpatrick et al. 2017, arXiv:1612.00796; the labels are the data's, the "empirical" Fisher). The pretraining's own
data are out of reach, so the examples are texts of the run, under the checkpoint's language-modelling head; where the
checkpoint has none, the task's loss under the new head says how sensitive each weight is, not what was known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from hftransfer.caching.states import PlainInputs
from hftransfer.models.backbone import backbone_parameters
from hftransfer.models.load import LoadedModel
from hftransfer.tasks.base import Features, Task
from hftransfer.training.language_model import find_language_model, spread_rows, texts_of

if TYPE_CHECKING:
    from datasets import Dataset

    from hftransfer.recipe import Recipe

EXAMPLES = 128
"""Each costs a forward and a backward pass alone, since gradients are squared before they are added up."""


def importance(
    recipe: Recipe, task: Task, loaded: LoadedModel, dataset: Dataset, features: Features, device: torch.device
) -> dict[str, torch.Tensor]:
    """The Fisher diagonal of the backbone by name inside the backbone, scaled to a mean of 1.

    Args:
        recipe: The recipe.
        task: Its task.
        loaded: The pretrained model with the task's head, as it starts.
        dataset: Texts that stand for what is to be kept.
        features: The training rows, for a checkpoint without a language-modelling head.
        device: Where to compute.
    """
    language = find_language_model(recipe.checkpoint, recipe.trust_remote_code)
    if language is not None:
        loaded, task = language.loaded, language.task
        features = language.encode(texts_of(dataset, recipe, EXAMPLES))
    model: nn.Module = loaded.model
    before = next(model.parameters()).device
    inputs = PlainInputs(task, features)

    def losses() -> Iterable[Callable[[], torch.Tensor]]:
        for row in spread_rows(len(features), EXAMPLES):
            batch = {name: tensor.to(device) for name, tensor in inputs.collate(np.asarray([row])).items()}
            yield lambda batch=batch: task.loss(inputs.run(model, batch), batch)  # type: ignore[misc]

    found = diagonal_fisher(model.to(device), backbone_parameters(loaded.model, loaded.anatomy), losses())
    model.to(before)
    mean = sum(float(value.sum()) for value in found.values()) / sum(value.numel() for value in found.values())
    return {name: value.to(before) / (mean or 1.0) for name, value in found.items()}


def diagonal_fisher(
    model: nn.Module, parameters: dict[str, nn.Parameter], losses: Iterable[Callable[[], torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """The mean over examples of the squared gradient.

    Args:
        model: In eval mode, so that dropout draws nothing; which parameters learn is as before afterwards.
        parameters: Those that are asked for.
        losses: Computes the negative log-likelihood of an example, one after another.
    """
    learned = {name: weight.requires_grad for name, weight in model.named_parameters()}
    wanted = {id(weight) for weight in parameters.values()}
    for weight in model.parameters():
        weight.requires_grad_(id(weight) in wanted)
    training, count = model.training, 0
    model.eval()
    totals = {name: torch.zeros_like(weight) for name, weight in parameters.items()}
    with torch.enable_grad():
        for loss in losses:
            model.zero_grad()
            loss().backward()
            count += 1
            for name, weight in parameters.items():
                if weight.grad is not None:
                    totals[name].addcmul_(weight.grad, weight.grad)
    model.zero_grad()
    model.train(training)
    for name, weight in model.named_parameters():
        weight.requires_grad_(learned[name])
    return {name: total.detach() / max(count, 1) for name, total in totals.items()}
