"""Soften a trained model: its backbone part of the way back to the pretrained one (WiSE-FT, arXiv:2109.01903).

The backbone is (1 - a) * old + a * new; the head stays as it was trained, since the old model had none. LoRA's update
is multiplied by a, which is the same, and IA3's scales go the same way from 1. Task score and what is retained are
measured along the way, and the best-scoring point that retains enough is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hftransfer.caching.states import PlainInputs
from hftransfer.diagnose.backbones import own_data
from hftransfer.diagnose.retained import Measure
from hftransfer.diagnose.watch import Watch
from hftransfer.errors import CheckpointError
from hftransfer.models.backbone import backbone_parameters, interpolate
from hftransfer.models.load import LoadedModel, load_trained
from hftransfer.recipe import Recipe
from hftransfer.run_files import MODEL_FOLDER
from hftransfer.strategies.freezing import transformers_model
from hftransfer.tasks.base import Features, Task
from hftransfer.tasks.registry import task_of_model
from hftransfer.training.averaging import is_better
from hftransfer.training.evaluate import predict

SHARES = tuple(step / 10 for step in range(11))


@dataclass(frozen=True)
class Point:
    """A place on the way from the old backbone (0) to the new one (1).

    Attributes:
        share: a.
        score: The task's score on validation data.
        measures: What is retained, of each thing that is looked at.
    """

    share: float
    score: float
    measures: list[Measure]

    @property
    def retained(self) -> float:
        """The least that is retained of anything."""
        return min(measure.retained for measure in self.measures)


class Softened:
    """A trained model whose backbone can be put at any share.

    Args:
        loaded: The model, adapters and all; changed in place.
        old: The pretrained weights of the backbone, by name inside it.

    Raises:
        CheckpointError: If its update cannot be scaled (DoRA).
    """

    def __init__(self, loaded: LoadedModel, old: dict[str, torch.Tensor]) -> None:
        self.loaded = loaded
        model: Any = loaded.model
        self.parameters: dict[str, nn.Parameter] = {}
        self.starts: dict[str, torch.Tensor] = {}
        if hasattr(model, "peft_config"):
            if any("lora_magnitude_vector" in name for name, _ in model.named_parameters()):
                raise CheckpointError(
                    "DoRA's update is no sum that could be scaled",
                    where=loaded.checkpoint,
                    fix="train it with --strategy.merge true and soften that run",
                )
            self.parameters = {n: w for n, w in model.named_parameters() if ".lora_B." in n or ".ia3_l." in n}
            self.starts = {
                name: torch.ones_like(weight) if ".ia3_l." in name else torch.zeros_like(weight)
                for name, weight in self.parameters.items()
            }
        else:
            self.parameters = backbone_parameters(model, loaded.anatomy)
            self.starts = {name: old[name] for name in self.parameters}
        self.ends = {name: weight.detach().clone() for name, weight in self.parameters.items()}

    def put(self, share: float) -> None:
        """Put the backbone at a share."""
        interpolate(self.parameters, self.starts, self.ends, share)


@dataclass
class Examined:
    """The task of a run, its data, and the model to soften."""

    softened: Softened
    task: Task
    features: dict[str, Features]
    metric: str
    batch_size: int

    @classmethod
    def load(cls, folder: Path, recipe: Recipe, old: dict[str, torch.Tensor]) -> Examined:
        """Load the model, and read the run's validation and test data.

        Raises:
            DataError: If they are not there any more.
        """
        loaded = load_trained(folder / MODEL_FOLDER)
        inner = transformers_model(loaded.model)
        task = task_of_model(recipe.task, recipe.data, inner.config)
        task.attach(inner, loaded.tokenizer)
        splits = own_data(recipe)
        found = {"validation": splits.validation, "test": splits.test}
        assert recipe.data.max_length is not None
        assert recipe.evaluation.metric is not None
        features = {
            name: task.encode(rows, loaded.tokenizer, recipe.data.max_length)
            for name, rows in found.items()
            if rows is not None
        }
        size = recipe.optim.per_device_eval_batch_size
        return cls(Softened(loaded, old), task, features, recipe.evaluation.metric, size)

    def scores(self, split: str) -> dict[str, float]:
        """The task's scores as the model is now."""
        inputs = PlainInputs(self.task, self.features[split])
        found = predict(self.softened.loaded.model, self.task, inputs, max_examples=self.batch_size)
        return self.task.score(found, self.features[split])


def curve(examined: Examined, watch: Watch, shares: Sequence[float] = SHARES) -> list[Point]:
    """Task score and retention at every share; the model is at the last one afterwards."""
    points = []
    for share in shares:
        examined.softened.put(share)
        points.append(Point(share, examined.scores("validation")[examined.metric], watch.at(share)))
    return points


def choose(points: Sequence[Point], retain: float, metric: str) -> Point:
    """The point of the best score among those that retain enough, the one that retains more of equals.

    The old backbone retains all, so there is always one.

    Args:
        points: From the old backbone on.
        retain: How much is to be left.
        metric: What the score is.
    """
    best = points[0]
    for point in points[1:]:
        if point.retained >= retain and is_better(point.score, best.score, metric):
            best = point
    return best


def refined(points: Sequence[Point], retain: float) -> list[float]:
    """Shares worth looking at between the last point that retains enough and the first that does not."""
    enough = [point.share for point in points if point.retained >= retain]
    too_far = [point.share for point in points if point.retained < retain and point.share > max(enough, default=0.0)]
    if not too_far:
        return []
    low, high = max(enough, default=0.0), min(too_far)
    return [round(low + (high - low) * part, 4) for part in (0.25, 0.5, 0.75)]
