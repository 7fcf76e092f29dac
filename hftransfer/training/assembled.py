"""What `finetune` has put together before anything is written: recipe, data, task, model and training, that fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hftransfer.data.load import Splits
from hftransfer.models.load import LoadedModel
from hftransfer.recipe import Recipe
from hftransfer.tasks.base import Features
from hftransfer.training.defaults import Origins
from hftransfer.training.loop import Training


@dataclass(frozen=True)
class Assembled:
    """A training that is ready to start.

    Attributes:
        recipe: Resolved, nothing left open.
        origins: Where its values come from.
        device_line: What it runs on.
        splits: The data as they were read.
        loaded: The checkpoint with its head; `training.model` is what the strategy made of it.
        features: The encoded splits.
        training: The loop.
    """

    recipe: Recipe
    origins: Origins
    device_line: str
    splits: Splits
    loaded: LoadedModel
    features: Mapping[str, Features]
    training: Training
