"""Defaults per strategy, checked with benchmarks/quality.py, and where every value of a recipe comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel

from hftransfer.errors import RecipeError
from hftransfer.recipe import Recipe
from hftransfer.training_settings import USUAL_BATCH, enough_steps, evaluations, optimizer_steps


@dataclass(frozen=True)
class Defaults:
    """Optimisation that a strategy starts from when the recipe says nothing (docs/quality.md has the scores)."""

    learning_rate: float
    num_train_epochs: int
    head_learning_rate: float | None = None
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    layer_decay: float = 1.0


STRATEGY_DEFAULTS: dict[str, Defaults] = {
    "feature_extraction": Defaults(learning_rate=1e-3, num_train_epochs=10),
    "top_layers": Defaults(learning_rate=5e-4, num_train_epochs=6, layer_decay=0.8),
    "gradual_unfreezing": Defaults(learning_rate=2e-4, head_learning_rate=1e-3, num_train_epochs=6, layer_decay=0.8),
    "full_fine_tuning": Defaults(learning_rate=1.5e-4, num_train_epochs=5, layer_decay=0.8),
    "lora": Defaults(learning_rate=1e-3, num_train_epochs=6),
    "ia3": Defaults(learning_rate=5e-3, head_learning_rate=1e-3, num_train_epochs=8),
    "bitfit": Defaults(learning_rate=2e-3, head_learning_rate=1e-3, num_train_epochs=8),
    "lp_ft": Defaults(learning_rate=2e-4, head_learning_rate=1e-3, num_train_epochs=6, layer_decay=0.8),
    "contrastive": Defaults(learning_rate=1e-4, num_train_epochs=1),
}

# A head on frozen features has nothing to forget and ends where its rate does; the best of ten epochs on some hundred
# validation rows is the luckiest one (docs/quality.md).
LAST_WEIGHTS = ("feature_extraction", "contrastive")

# Its single epoch counts pairs of texts, of which a few examples make many, and a closed form fits the head.
FIXED_SCHEDULES = ("contrastive",)

# Not tuned: 100 lets a weight go about 0.01 from its pretrained value (`training.retention`), what some hundred steps
# at 1.5e-4 move it at most; 0.7 is in the range of mixout's paper. `python -m benchmarks.retention` compares others.
RETAIN_STRENGTHS = {"l2_sp": 100.0, "ewc": 100.0, "mixout": 0.7}

Origins = dict[str, str]


def flatten(section: BaseModel, prefix: str = "", *, only_set: bool = False) -> dict[str, Any]:
    """The leaf values of a recipe by dotted name; with `only_set` those alone that were given."""
    leaves: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            if not only_set or name in section.model_fields_set:
                leaves |= flatten(value, f"{prefix}{name}.", only_set=only_set)
        elif not only_set or name in section.model_fields_set:
            leaves[f"{prefix}{name}"] = value
    return leaves


def resolve(recipe: Recipe, given: Mapping[str, str] | None = None) -> tuple[Recipe, Origins]:
    """Fill in the strategy's defaults.

    Args:
        recipe: The recipe as it was given.
        given: Dotted name -> "flag" or "YAML"; from Python, what was passed counts as given.

    Returns:
        The recipe without open optimisation fields, and the origin of every leaf.

    Raises:
        RecipeError: If it would hold pretrained weights, of which none learns.
    """
    check_retain(recipe)
    origins = dict.fromkeys(flatten(recipe), "default")
    origins |= dict(given) if given is not None else dict.fromkeys(flatten(recipe, only_set=True), "given")
    updates = {}
    for name, value in asdict(STRATEGY_DEFAULTS[recipe.strategy.type]).items():
        if getattr(recipe.optim, name) is None and value is not None:
            updates[name] = value
            origins[f"optim.{name}"] = f"default of {recipe.strategy.type}"
    sections: dict[str, Any] = {"optim": recipe.optim.model_copy(update=updates)}
    if recipe.optim.retain != "none" and recipe.optim.retain_strength is None:
        sections["optim"] = sections["optim"].model_copy(
            update={"retain_strength": RETAIN_STRENGTHS[recipe.optim.retain]}
        )
        origins["optim.retain_strength"] = f"default of {recipe.optim.retain}"
    if recipe.evaluation.keep == "auto":
        stops_early = recipe.evaluation.early_stopping_patience is not None
        keep = "best" if stops_early or recipe.strategy.type not in LAST_WEIGHTS else "last"
        sections["evaluation"] = recipe.evaluation.model_copy(update={"keep": keep})
        origins["evaluation.keep"] = f"default of {recipe.strategy.type}"
    return recipe.model_copy(update=sections), origins


def schedule_of(
    strategy: str, recipe: Recipe, origins: Mapping[str, str], train_examples: int, batches_per_step: int = 1
) -> dict[str, int]:
    """Epochs and batch size of a training: what was given, or the strategy's, or what few examples need.

    Who has set epochs or steps has chosen the schedule; who has set the batch size keeps it.

    Args:
        strategy: Its type; the recipe may have another.
        recipe: Resolved.
        origins: Where its values come from.
        train_examples: Rows to train on.
        batches_per_step: Devices times micro-steps of an optimizer step.

    Returns:
        `num_train_epochs` and `per_device_train_batch_size`.
    """
    optim = recipe.optim
    epochs_open = _epochs_open(origins)
    batch_open = origins["optim.per_device_train_batch_size"].startswith(("default", "derived"))
    epochs = STRATEGY_DEFAULTS[strategy].num_train_epochs if epochs_open else optim.num_train_epochs
    assert epochs is not None
    batch = USUAL_BATCH if batch_open else optim.per_device_train_batch_size
    found = {"num_train_epochs": epochs, "per_device_train_batch_size": batch}
    if epochs_open and optim.max_steps is None and strategy not in FIXED_SCHEDULES:
        kept = not batch_open
        found |= enough_steps(train_examples, epochs, batch, batches_per_step=batches_per_step, keep_batch=kept)
    return found


def _epochs_open(origins: Mapping[str, str]) -> bool:
    """Whether the number of epochs is the strategy's, not the user's."""
    return origins["optim.num_train_epochs"].startswith(("default of", "derived"))


def evaluated_every(
    strategy: str, recipe: Recipe, origins: Mapping[str, str], train_examples: int, batches_per_step: int = 1
) -> int | None:
    """Optimizer steps between evaluations; None: those of an epoch. See `schedule_of` for the arguments.

    What was given stays. Where few examples need more epochs than usual, there are as many evaluations as usual.
    """
    every = recipe.evaluation.every
    if every is not None and not origins["evaluation.every"].startswith("derived"):
        return every
    usual = STRATEGY_DEFAULTS[strategy].num_train_epochs
    found = schedule_of(strategy, recipe, origins, train_examples, batches_per_step)
    epochs, batch = found["num_train_epochs"], found["per_device_train_batch_size"]
    if epochs == usual or not _epochs_open(origins):
        return None
    return math.ceil(optimizer_steps(train_examples, epochs, batch, batches_per_step) / usual)


def evaluations_of(
    strategy: str, recipe: Recipe, origins: Mapping[str, str], train_examples: int, batches_per_step: int = 1
) -> int:
    """How often a training scores its validation data; see `schedule_of` for the arguments."""
    if strategy in FIXED_SCHEDULES:
        return 1  # there is a head only at the end
    found = schedule_of(strategy, recipe, origins, train_examples, batches_per_step)
    batch = found["per_device_train_batch_size"]
    an_epoch = optimizer_steps(train_examples, 1, batch, batches_per_step)
    every = evaluated_every(strategy, recipe, origins, train_examples, batches_per_step) or an_epoch
    return evaluations(recipe.optim.max_steps or found["num_train_epochs"] * an_epoch, every)


def check_retain(recipe: Recipe) -> None:
    """Refuse to hold pretrained weights where the strategy lets none of them learn."""
    if recipe.optim.retain != "none" and recipe.strategy.type in ("feature_extraction", "lora", "ia3"):
        raise RecipeError(
            f"no pretrained weight learns under {recipe.strategy.type}, so there is nothing to hold",
            where="optim.retain",
            fix="leave it out, or choose another strategy",
        )


def derive(recipe: Recipe, origins: Origins, section: str, name: str, value: Any, reason: str) -> Recipe:
    """Set a leaf to what was derived from data or checkpoint, with the reason as its origin."""
    part = getattr(recipe, section).model_copy(update={name: value})
    origins[f"{section}.{name}"] = f"derived: {reason}"
    return recipe.model_copy(update={section: part})
