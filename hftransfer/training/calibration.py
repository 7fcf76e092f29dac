"""Calibration inside the head: a temperature, and the thresholds of labels, become part of its weights.

A stock `pipeline()` then gives calibrated probabilities and decides at 0.5 as our thresholds do. What cannot be folded
into one last linear layer is left as it is, with the reason.

Shape legend: C outputs of the head, D what it reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logit
from torch import nn

from hftransfer.caching.states import PlainInputs
from hftransfer.errors import RecipeError
from hftransfer.strategies.freezing import anatomy_of, transformers_model
from hftransfer.tasks.base import Features, Predictions, Task
from hftransfer.tasks.reliability import fit_temperature, reliability

if TYPE_CHECKING:
    from hftransfer.recipe import Recipe

# A temperature from fewer decisions is noise.
FEWEST_DECISIONS = 100
# Rows on which the folded head is compared with what it should give, and how near it must come.
CHECKED_ROWS, TOLERANCE = 4, 1e-4


class CannotFoldError(Exception):
    """The head cannot take a temperature; the message says why."""


@dataclass(frozen=True)
class Calibration:
    """What was folded into a head.

    Attributes:
        temperature: What the logits are divided by; 1 where nothing was folded.
        shifts_C: What is taken from them before: the logits of the labels' thresholds; None without thresholds.
        note: Why nothing was folded; empty where it was.
        splits: Split -> `before` and `after`, each a `Reliability` as a dict.
    """

    temperature: float = 1.0
    shifts_C: list[float] | None = None
    note: str = ""
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)

    def apply(self, logits: NDArray[Any]) -> NDArray[Any]:
        """The folded head's logits, from those of the head before."""
        return np.asarray((logits - (self.shifts_C or 0.0)) / self.temperature, logits.dtype)

    def undo(self, logits: NDArray[Any]) -> NDArray[Any]:
        """The reverse of `apply`."""
        return np.asarray(logits * self.temperature + (self.shifts_C or 0.0), logits.dtype)


def output_layer(model: nn.Module, outputs: int) -> nn.Linear:
    """The linear layer of the head that puts out the logits.

    Args:
        model: A transformers model, or a PEFT model around one.
        outputs: How many logits there are.

    Raises:
        CannotFoldError: If there is none.
    """
    inner, head = transformers_model(model), anatomy_of(model).head
    found = [
        module
        for name, module in inner.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == outputs
        and ".original_module" not in name
        and any(name == part or name.startswith(f"{part}.") for part in head)
    ]
    if not found:
        raise CannotFoldError(f"{type(inner).__name__} has no linear layer with {outputs} outputs in its head")
    return found[-1]


def calibrate(
    recipe: Recipe, model: nn.Module, task: Task, predictions: Predictions, features: Features, *, sharded: bool = False
) -> tuple[Calibration, Predictions]:
    """Fit a temperature on validation data and fold it, and a multi-label task's thresholds, into the head.

    Args:
        recipe: Its `evaluation.calibration` says whether.
        model: The trained model, changed in place.
        task: Its thresholds are 0.5 once they are folded.
        predictions: The model's, of the validation data.
        features: The validation data.
        sharded: Whether the model's weights are spread over processes.

    Returns:
        What was folded, and the validation predictions of the changed model.

    Raises:
        RecipeError: If calibration is required and the head cannot take it.
    """
    try:
        if not recipe.evaluation.folds:
            raise CannotFoldError("it is switched off")
        if sharded:
            raise CannotFoldError("the weights are spread over the processes")
        return _fold(model, task, predictions, features)
    except CannotFoldError as reason:
        if recipe.evaluation.calibration == "required":
            raise RecipeError(
                f"not possible: {reason}", where="evaluation.calibration", fix="choose auto or none"
            ) from None
        return Calibration(note=str(reason)), predictions


def check_support(recipe: Recipe, task: Task, model: nn.Module) -> None:
    """Refuse a calibration that is required and that this task or head can never have, before the training.

    Raises:
        RecipeError: If that is so.
    """
    if recipe.evaluation.calibration != "required":
        return
    try:
        if not can_calibrate(task):
            raise CannotFoldError(_no_probabilities(task))
        output_layer(model, num_outputs(model, task))
    except CannotFoldError as reason:
        raise RecipeError(
            f"not possible: {reason}", where="evaluation.calibration", fix="choose auto or none"
        ) from None


def can_calibrate(task: Task) -> bool:
    """Whether the task's probabilities come from one linear layer."""
    regression = getattr(getattr(task, "labels", None), "problem", "") == "regression"
    return type(task).decisions is not Task.decisions and not regression


def _no_probabilities(task: Task) -> str:
    reasons = {
        "question_answering": "the score of an answer is a sum of two logits, and the null threshold is on its scale",
        "text_classification": "a regression has no probabilities",
    }
    return reasons.get(task.type, "the head shares its weights with the embeddings")


def num_outputs(model: nn.Module, task: Task) -> int:
    """How many logits the head puts out for one input."""
    config: Any = transformers_model(model).config
    return 1 if task.type == "multiple_choice" else int(config.num_labels)


def _fold(
    model: nn.Module, task: Task, predictions: Predictions, features: Features
) -> tuple[Calibration, Predictions]:
    """Find temperature and shifts, change the head, and check it on a few rows; a head that fails is put back."""
    if not can_calibrate(task):
        raise CannotFoldError(_no_probabilities(task))
    found = task.decisions(predictions, features)
    layer = output_layer(model, num_outputs(model, task))
    thresholds_C = getattr(task, "thresholds_C", None) if found is not None and found[1].ndim == 2 else None
    if thresholds_C is not None and (thresholds_C == 0.5).all():
        thresholds_C = None
    if thresholds_C is not None and layer.bias is None:
        raise CannotFoldError("the head has no bias to take the thresholds")
    count = 0 if found is None else found[1].size
    if thresholds_C is None and count < FEWEST_DECISIONS:
        raise CannotFoldError(f"{count} decisions on validation data are fewer than {FEWEST_DECISIONS}")
    assert found is not None
    shifts_C = None if thresholds_C is None else logit(thresholds_C)
    logits = found[0] if shifts_C is None else found[0] - shifts_C
    temperature = fit_temperature(logits, found[1]) if count >= FEWEST_DECISIONS else 1.0
    calibration = Calibration(temperature, None if shifts_C is None else shifts_C.tolist())
    changed = mapped(predictions, calibration.apply)
    _change_and_check(model, layer, calibration, task, features, changed)
    if thresholds_C is not None:
        task.thresholds_C = np.full(len(thresholds_C), 0.5)  # type: ignore[attr-defined]
    return calibration, changed


@torch.no_grad()
def _change_and_check(
    model: nn.Module, layer: nn.Linear, calibration: Calibration, task: Task, features: Features, expected: Predictions
) -> None:
    """Divide the layer by the temperature, and compare the model with what it should predict."""
    before = [parameter.clone() for parameter in layer.parameters()]
    layer.weight.div_(calibration.temperature)
    if layer.bias is not None:
        if calibration.shifts_C is not None:
            layer.bias.sub_(torch.tensor(calibration.shifts_C).to(layer.bias))
        layer.bias.div_(calibration.temperature)
    rows = np.arange(min(CHECKED_ROWS, len(features)))
    inputs, device = PlainInputs(task, features), layer.weight.device
    batch = {name: tensor.to(device) for name, tensor in inputs.collate(rows).items()}
    training = model.training
    model.eval()
    found = task.predictions(partial(inputs.run, model), batch)
    model.train(training)
    listed = found.cpu().numpy() if isinstance(found, torch.Tensor) else found
    pairs = zip(listed, (expected[row] for row in rows), strict=True)
    error = max(float(np.abs(a - b).max(initial=0) / (1 + np.abs(b).max(initial=0))) for a, b in pairs)
    if not error <= TOLERANCE:
        for parameter, old in zip(layer.parameters(), before, strict=True):
            parameter.copy_(old)
        raise CannotFoldError(f"the folded head differs from what it should give by {error:.1e}")


def mapped(predictions: Predictions, change: Any) -> Predictions:
    """The predictions of all rows, each changed."""
    return change(predictions) if isinstance(predictions, np.ndarray) else [change(row) for row in predictions]


def compare(
    calibration: Calibration, task: Task, predictions: Mapping[str, Predictions], features: Mapping[str, Features]
) -> Calibration:
    """The same with the reliability of every split, before and after the folding."""
    splits: dict[str, dict[str, Any]] = {}
    if can_calibrate(task):
        for split, found in predictions.items():
            after, before = (task.decisions(part, features[split]) for part in (found, mapped(found, calibration.undo)))
            if after is not None and before is not None and len(after[0]):
                splits[split] = {
                    "before": asdict(reliability(*before)),
                    "after": asdict(reliability(*after)),
                }
    return Calibration(calibration.temperature, calibration.shifts_C, calibration.note, splits)
