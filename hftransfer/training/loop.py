"""The training loop: stages from the strategy, an optimizer per stage, evaluation, the best weights, checkpoints."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hftransfer.caching.cache import BoundaryCache, StageInputs
from hftransfer.errors import TrainingError
from hftransfer.models.anatomy import Anatomy
from hftransfer.recipe import Recipe
from hftransfer.strategies import Strategy
from hftransfer.strategies.casting import autocast_dtype, frozen_weights_cast
from hftransfer.tasks.base import Features, Task
from hftransfer.tasks.metrics import greater_is_better
from hftransfer.training import distributed, summary
from hftransfer.training.distributed import copy_weights, restore, whole_weights
from hftransfer.training.evaluate import predict
from hftransfer.training.fast_training import fast_training
from hftransfer.training.schedule import StageSteps, rate_factor, split_steps
from hftransfer.training.state import Progress, TrainingState
from hftransfer.training.steps import EpochBatches, training_step
from hftransfer.training.streaming import ChunkedBatches, Chunks
from hftransfer.training.trackers import RunLog

if TYPE_CHECKING:
    from accelerate import Accelerator
    from rich.table import Table

LOG_EVERY = 10


@dataclass(frozen=True)
class StageRun:
    """What the steps of one stage work with: wrapped model and optimizer, the peak rate of each group, inputs, log."""

    current: StageSteps
    model: nn.Module
    optimizer: Any
    peak_rates: list[float]
    inputs: StageInputs
    log: RunLog
    started: float


@dataclass
class Training:
    """Everything one training needs, built by `finetune` in dependency order."""

    recipe: Recipe
    accelerator: Accelerator
    strategy: Strategy
    anatomy: Anatomy
    model: nn.Module
    task: Task
    train: Features
    validation: Features
    chunks: Chunks | None = None
    """Training rows that are streamed; `train` then holds the first of them."""
    _best: dict[str, torch.Tensor] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        optim = self.recipe.optim
        assert self.recipe.output_dir is not None
        assert self.recipe.evaluation.metric is not None
        self.folder, self.metric = Path(self.recipe.output_dir), self.recipe.evaluation.metric
        world_size = self.accelerator.num_processes
        global_batch = optim.per_device_train_batch_size * optim.gradient_accumulation_steps * world_size
        self.batches = (
            EpochBatches(self.train.lengths_N, global_batch, self.recipe.seed)
            if self.chunks is None
            else ChunkedBatches(self.chunks, global_batch, self.recipe.seed)
        )
        assert optim.num_train_epochs is not None
        self.total_steps = optim.max_steps or self.batches.per_epoch * optim.num_train_epochs
        self.stages = split_steps(self.strategy.stages(self.anatomy), self.total_steps)
        self.groups = self._groups_of_stages()
        self.learned_names = tuple(dict.fromkeys(name for _, names in self.groups for name in names))
        learned = set(self.learned_names)
        self.trained_count = sum(p.numel() for name, p in self.model.named_parameters() if name in learned)
        splits = (self.train, self.validation)
        distributed.check_support(self.accelerator, self.recipe, len(self.stages))
        held = {"validation": self.validation} | ({"train": self.train} if self.chunks is None else {})
        self.cache = BoundaryCache(self.recipe, self.task, self.accelerator, held, self.chunks)
        self.cache_facts: dict[str, float] = {}
        self.engine_weights: dict[str, torch.Tensor] = {}
        rest = "" if self.chunks is None else self.chunks.stream.digest
        self.state = TrainingState(self.folder / "checkpoints", self.recipe, splits, self.accelerator, rest)

    def _groups_of_stages(self) -> list[tuple[list[dict[str, Any]], list[str]]]:
        """The optimizer groups and the names of what learns in every stage.

        A best model from an early stage must restore what learned later, so the names of all stages are needed at once.
        """
        found = []
        for current in self.stages:
            self.strategy.enter_stage(self.model, current.stage)
            names = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
            found.append((self._param_groups(current), names))
        return found

    def describe(self) -> Table:
        """What learns in each stage, as a table."""
        return summary.strategy_table(self.strategy, self.model, self.stages, [groups for groups, _ in self.groups])

    def facts(self) -> dict[str, Any]:
        """Counts and times for metrics.json."""
        sizes = {name: parameter.numel() for name, parameter in self.model.named_parameters()}
        return {
            "seconds": round(self.progress.seconds, 3),
            "steps": self.progress.step,
            "best_step": self.progress.best_step,
            "metric": self.metric,
            "train_examples": len(self.train) if self.chunks is None else self.chunks.num_rows,
            "truncated_rows": (self.chunks or self.train).truncated_rows,
            "trained_parameters": self.trained_count,
            "processes": self.accelerator.num_processes,
            "mixed_precision": str(self.accelerator.mixed_precision),
            "parameters": sum(sizes.values()),
            **self.cache_facts,
        }

    def run(self) -> Progress:
        """Train to the end and leave the best weights in the model.

        Raises:
            TrainingError: If the loss is no longer a finite number.
        """
        with RunLog(self.accelerator, self.recipe, self.folder, self.total_steps) as log:
            if self.recipe.resume == "auto":
                self._resume(log)
            started = time.perf_counter() - self.progress.seconds
            for stage_steps in self.stages:
                if self.progress.step < stage_steps.end and not self.progress.stopped:
                    self._run_stage(stage_steps, log, started)
            self.progress.seconds = time.perf_counter() - started
        if self.recipe.evaluation.load_best:
            restore(self.model, self._best)
        return self.progress

    def _resume(self, log: RunLog) -> None:
        """Continue from the newest valid checkpoint, if there is one."""
        found = self.state.load()
        if found is None:
            log.say("no checkpoint to resume from: starting at step 0")
            return
        self.progress, weights, self._best = found
        restore(self.model, weights)
        log.rewind(self.progress.step)
        log.say(f"resumed at step {self.progress.step}")

    def _run_stage(self, current: StageSteps, log: RunLog, started: float) -> None:
        """Freeze, build optimizer and wrapper anew, and run the stage's steps.

        An optimizer that was built before a block thawed would not train it.
        """
        self.strategy.enter_stage(self.model, current.stage)
        optimizer = self._optimizer(current)
        peak_rates = [group["lr"] for group in optimizer.param_groups]
        was_sharded = distributed.is_sharded(self.model)
        model, optimizer = distributed.prepare(self.accelerator, self.recipe, self.model, optimizer)
        if distributed.is_sharded(self.model) and not was_sharded:
            self._best = distributed.own_shards(self.model, self._best)
        if current.start < self.progress.step:
            self.state.load_optimizer(optimizer)
        fast = fast_training(self.model, self.accelerator.device.type, compiled=self.recipe.optim.torch_compile)
        with fast as speed_note, self.cache.stage(self.model, *self._frozen_ahead(current)) as inputs:
            for note in filter(None, (speed_note if current is self.stages[0] else "", inputs.note)):
                log.say(note)
            with frozen_weights_cast(self.model, autocast_dtype(self.accelerator)):
                self._run_steps(StageRun(current, model, optimizer, peak_rates, inputs, log, started))
            self._count(inputs)
        self.engine_weights = distributed.engine_weights(self.accelerator, model)
        # A compiled wrapper that stayed would rename all parameters.
        self.model = self.accelerator.unwrap_model(model, keep_fp32_wrapper=False, keep_torch_compile=False)
        # With this mark Accelerate would take the model for prepared, and the next stage would run without autocast.
        self.model.__dict__.pop("_is_accelerate_prepared", None)
        self.accelerator.free_memory()

    def _frozen_ahead(self, current: StageSteps) -> tuple[list[int], float]:
        """The boundaries of this stage and of those to come, and the passes over the data of all that can be cached."""
        ahead = [later for later in self.stages if later.end >= current.end]
        steps = sum(later.steps for later in ahead if later.stage.boundary > 1)
        return [later.stage.boundary for later in ahead], steps / self.batches.per_epoch

    def _count(self, inputs: StageInputs) -> None:
        """Add what the cache did in a stage to the run's facts."""
        for name, value in inputs.facts().items():
            self.cache_facts[name] = round(self.cache_facts.get(name, 0) + value, 3)

    def _run_steps(self, now: StageRun) -> None:
        """The optimizer steps of a stage, from where the training stands."""
        current = now.current
        now.model.train()
        for step in range(max(current.start, self.progress.step), current.end):
            factor = self._rate_factor(current, step)
            for group, peak in zip(now.optimizer.param_groups, now.peak_rates, strict=True):
                group["lr"] = peak * factor
            loss = training_step(
                self.accelerator,
                now.model,
                now.optimizer,
                self.task,
                now.inputs.splits["train"],
                self.batches[step],
                self.recipe.optim,
                seed=self.recipe.seed,
                step=step,
            )
            self.progress.step = step + 1
            self._after_step(loss, max(now.peak_rates) * factor, now)
            if self.progress.stopped:
                break

    def _param_groups(self, current: StageSteps) -> list[dict[str, Any]]:
        """The optimizer groups of what learns in the stage that the model has entered."""
        optim = self.recipe.optim
        assert optim.learning_rate is not None
        only_head = len(self.stages) == 1 and current.stage.boundary == self.anatomy.head_depth
        return self.strategy.param_groups(
            self.model,
            optim.learning_rate,
            head_learning_rate=None if current.stage.shared_rate or only_head else optim.head_learning_rate,
            weight_decay=optim.weight_decay or 0.0,
            layer_decay=optim.layer_decay or 1.0,
        )

    def _optimizer(self, current: StageSteps) -> torch.optim.Optimizer:
        """AdamW over what learns in this stage."""
        fused = self.accelerator.device.type in ("cpu", "cuda")
        return torch.optim.AdamW(self._param_groups(current), fused=fused)

    def _rate_factor(self, current: StageSteps, step: int) -> float:
        """The learning rate at this step as a share of its peak; each stage warms up and falls anew."""
        optim = self.recipe.optim
        return rate_factor(optim.lr_scheduler_type, step - current.start, current.steps, optim.warmup_ratio or 0.0)

    def _after_step(self, loss: torch.Tensor, rate: float, now: StageRun) -> None:
        """Log, evaluate and save when it is time."""
        stage_name = now.current.stage.name
        step = self.progress.step
        checkpoint_every = self.recipe.checkpoint_every
        saves = checkpoint_every is not None and step % checkpoint_every == 0 and step < self.total_steps
        now.log.add_loss(loss)
        # Reading the loss waits for the GPU; on CPU it is free. A diverged state must not replace a good checkpoint.
        if saves or step % LOG_EVERY == 0 or step == self.total_steps or self.accelerator.device.type == "cpu":
            value = float(self.accelerator.reduce(loss, "sum")) if self.accelerator.num_processes > 1 else float(loss)
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss is {value} at step {step} (rate {rate:.2e}, stage {stage_name!r})",
                    where=str(self.folder),
                    fix="lower --optim.learning_rate or train in fp32 with --mixed_precision no",
                )
        now.log.step(step, step / self.batches.per_epoch, rate, stage_name, due=step % LOG_EVERY == 0)
        every = self.recipe.evaluation.every or self.batches.per_epoch
        if step % every == 0 or step == self.total_steps:
            self._evaluate(now)
        if saves:
            self.progress.seconds = time.perf_counter() - now.started
            keep = self.accelerator.is_main_process
            current = copy_weights(self.model, self.learned_names)
            weights, best = (whole_weights(self.model, part, keep=keep) for part in (current, self._best))
            self.state.save(self.progress, weights, best, now.optimizer)

    def _evaluate(self, now: StageRun) -> None:
        """Score the validation data, keep the best weights, count patience."""
        inner = self.accelerator.unwrap_model(now.model, keep_fp32_wrapper=True)
        # Accelerate's own autocast covers the forward pass alone, and what generates calls parts of the model.
        with self.accelerator.autocast():
            predictions = predict(
                inner,
                self.task,
                now.inputs.splits["validation"],
                max_examples=self.recipe.optim.per_device_eval_batch_size,
                accelerator=self.accelerator,
            )
        self.task.calibrate(predictions, self.validation)
        scores = self.task.score(predictions, self.validation)
        value = scores[self.metric]
        better = is_better(value, self.progress.best_score, self.metric)
        if better:
            self.progress.best_score, self.progress.best_step = value, self.progress.step
            self.progress.best_scores, self.progress.evaluations_without_gain = scores, 0
            if self.recipe.evaluation.load_best:
                self._best = copy_weights(self.model, self.learned_names)
        else:
            self.progress.evaluations_without_gain += 1
        now.log.evaluation(self.progress.step, self.progress.step / self.batches.per_epoch, scores, self.metric, better)
        patience = self.recipe.evaluation.early_stopping_patience
        self.progress.stopped = patience is not None and self.progress.evaluations_without_gain >= patience


def is_better(value: float, best: float | None, metric: str) -> bool:
    """Whether a score beats the best so far; an undefined one (NaN) is worse than every number."""
    if best is None or math.isnan(value) or math.isnan(best):
        return best is None or not math.isnan(value)
    return value > best if greater_is_better(metric) else value < best
