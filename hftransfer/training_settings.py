"""The settings of optimisation, evaluation and the feature cache. Nothing here imports torch."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from hftransfer.strategy_settings import Fraction, Rate, Section

USUAL_BATCH, SMALLEST_BATCH = 32, 8
ENOUGH_STEPS = 300
"""With fewer optimizer steps a model stays near where it began, whatever the strategy (arXiv:2006.04884, section 6;
docs/decisions/0028-steps-of-few-examples.md)."""


class OptimSection(Section):
    """Optimisation. None means: the strategy's measured default."""

    learning_rate: Rate | None = Field(None, description="Peak rate of the top block, of adapters and of a head alone.")
    head_learning_rate: Rate | None = Field(None, description="Peak rate of the head when more than the head learns.")
    num_train_epochs: PositiveInt | None = Field(
        None, description="Passes over the training data; by default more of them where there are few examples."
    )
    max_steps: PositiveInt | None = Field(None, description="Stop after this many optimizer steps.")
    per_device_train_batch_size: PositiveInt = Field(
        USUAL_BATCH, description="Examples per device and micro-step; by default fewer where there are few examples."
    )
    per_device_eval_batch_size: PositiveInt = Field(256, description="At most this many examples per evaluation batch.")
    gradient_accumulation_steps: PositiveInt = Field(1, description="Micro-steps per optimizer step.")
    weight_decay: float | None = Field(
        None, ge=0.0, le=1.0, description="Decay of weight matrices (not biases or norms)."
    )
    warmup_ratio: Fraction | None = Field(None, description="Share of a stage's steps that ramps the rate up.")
    lr_scheduler_type: Literal["linear", "cosine", "constant_with_warmup", "polynomial"] = Field(
        "linear", description="How the rate falls after the warm-up."
    )
    layer_decay: Rate | None = Field(None, description="Factor on the rate for every block further down.")
    max_grad_norm: float = Field(1.0, ge=0.0, description="Clip the gradient's norm at this; 0 does not clip.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations to save memory.")
    torch_compile: bool = Field(False, description="Compile the model's forward pass.")
    retain: Literal["none", "l2_sp", "ewc", "mixout"] = Field(
        "none", description="Holds pretrained weights near their values while they learn (docs/forgetting.md)."
    )
    retain_strength: float | None = Field(
        None,
        ge=0.0,
        description="How hard: l2_sp and ewc, the pull; mixout, the share of weights put back in each step. By method "
        "when absent.",
    )

    @model_validator(mode="after")
    def _share_of_weights(self) -> OptimSection:
        """Mixout's strength is a probability."""
        if self.retain == "mixout" and self.retain_strength is not None and self.retain_strength >= 1:
            raise ValueError("retain_strength of mixout is a share of the weights, below 1")
        if self.retain == "none" and self.retain_strength is not None:
            raise ValueError("retain_strength needs a method: set retain to l2_sp, ewc or mixout")
        return self


class EvaluationSection(Section):
    """When to evaluate and what decides which model is kept."""

    every: PositiveInt | None = Field(None, description="Evaluate every N optimizer steps; each epoch when absent.")
    metric: str | None = Field(None, description="Metric that chooses the best model; derived from the problem.")
    keep: Literal["auto", "best", "last", "ema", "soup"] = Field(
        "auto",
        description="Which weights are kept: those of the best evaluation, the last ones, their moving average, or a "
        "greedy soup of the evaluated ones; auto: best or last, by strategy.",
    )
    early_stopping_patience: PositiveInt | None = Field(
        None, description="Stop after N evaluations without a gain, in the last stage."
    )
    calibration: Literal["auto", "required", "temperature", "thresholds", "none"] = Field(
        "auto",
        description="Fit a temperature and, multi-label, each label's threshold on validation data and fold them into "
        "the head; auto: where the head can take them; temperature: thresholds stay at 0.5; thresholds: they are kept "
        "beside the head, which stays as it is.",
    )

    @property
    def tunes_thresholds(self) -> bool:
        """Whether labels' thresholds are chosen on validation data."""
        return self.calibration in ("auto", "required", "thresholds")

    @property
    def folds(self) -> bool:
        """Whether the head is changed."""
        return self.calibration in ("auto", "required", "temperature")


class CacheSection(Section):
    """What the frozen part of a model computes is kept and found again, by this run and others."""

    max_bytes: int | None = Field(
        None,
        ge=0,
        description="Most bytes on disk ($HFTRANSFER_CACHE), beyond which is recomputed; 0 switches the cache off. "
        "Half of the free space when absent.",
    )
    dtype: Literal["fp32", "bf16", "fp16"] | None = Field(
        None, description="Precision of what is kept; that of the training when absent."
    )

    @property
    def is_off(self) -> bool:
        """Whether nothing is kept or looked up."""
        return self.max_bytes == 0


def optimizer_steps(train_examples: int, epochs: int, batch_size: int, batches_per_step: int = 1) -> int:
    """How many optimizer steps so many epochs make; see `enough_steps` for the arguments."""
    return epochs * max(1, math.ceil(train_examples / (batch_size * batches_per_step)))


def evaluations(steps: int, every: int) -> int:
    """How often the validation data are scored: behind every so many optimizer steps, and at the end."""
    return math.ceil(steps / every)


def enough_steps(
    train_examples: int,
    epochs: int,
    batch_size: int = USUAL_BATCH,
    *,
    batches_per_step: int = 1,
    keep_batch: bool = False,
    enough: int = ENOUGH_STEPS,
) -> dict[str, int]:
    """Batch size and epochs that make enough optimizer steps of few examples.

    The batch shrinks before the epochs grow: an epoch costs the same in smaller batches, and more epochs do not.

    Args:
        train_examples: Rows to train on.
        epochs: The usual number.
        batch_size: The usual one, per device and micro-step.
        batches_per_step: Devices times micro-steps of an optimizer step.
        keep_batch: Whether the batch stays as it is.
        enough: Steps to make at least.

    Returns:
        Settings of `OptimSection`; empty where the usual ones make enough steps.
    """

    def steps(epochs: int) -> int:
        return optimizer_steps(train_examples, epochs, batch_size, batches_per_step)

    if steps(epochs) >= enough:
        return {}
    while not keep_batch and batch_size > SMALLEST_BATCH and steps(epochs) < enough:
        batch_size //= 2
    more = max(epochs, math.ceil(enough / steps(1)))
    return {"per_device_train_batch_size": batch_size, "num_train_epochs": more}
