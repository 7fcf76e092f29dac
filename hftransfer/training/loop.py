"""The training loop: stages from the strategy, an optimizer per stage, evaluation, the best weights, checkpoints."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from hftransfer import interruption
from hftransfer.caching.cache import BoundaryCache
from hftransfer.caching.states import Inputs, StageInputs
from hftransfer.interruption import Interrupted
from hftransfer.models.anatomy import Anatomy
from hftransfer.recipe import Recipe
from hftransfer.strategies import Strategy
from hftransfer.strategies.casting import autocast_dtype, frozen_weights_cast
from hftransfer.strategies.freezing import release
from hftransfer.strategies.last_block import head_token_only
from hftransfer.tasks.base import CELLS, Features, Task
from hftransfer.training import distributed, head_fit, memory, summary
from hftransfer.training.anchoring import build_retention
from hftransfer.training.averaging import Kept, is_better, is_kept
from hftransfer.training.contrastive import PairBatches, PairInputs, PairLoss
from hftransfer.training.distributed import copy_weights
from hftransfer.training.drift import States
from hftransfer.training.evaluate import predict
from hftransfer.training.fast_training import fast_training
from hftransfer.training.graphs import graphs_of_stage
from hftransfer.training.memory import OutOfMemory
from hftransfer.training.saving import Saving
from hftransfer.training.schedule import StageSteps, rate_factor, split_steps
from hftransfer.training.stage_run import StageRun
from hftransfer.training.state import Progress
from hftransfer.training.steps import EpochBatches, NotFinite, Objective, StepResult, training_step
from hftransfer.training.streaming import ChunkedBatches, Chunks
from hftransfer.training.trackers import RunLog
from hftransfer.training.updates import update_of_stage

if TYPE_CHECKING:
    from accelerate import Accelerator
    from rich.table import Table

LOG_EVERY = 10


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
    fresh: tuple[str, ...] = ()
    """Names of the parameters that the checkpoint did not bring."""
    importance: dict[str, torch.Tensor] = field(default_factory=dict)
    """How much each weight of the backbone matters, for EWC."""
    before: States = field(default_factory=dict)
    """The states of some validation texts before the training, by depth."""
    final: dict[str, torch.Tensor] = field(default_factory=dict)
    _facts_before: dict[str, float] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        optim = self.recipe.optim
        assert self.recipe.output_dir is not None
        assert self.recipe.evaluation.metric is not None
        self.folder, self.metric = Path(self.recipe.output_dir), self.recipe.evaluation.metric
        self.plan = self.strategy.stages(self.anatomy)
        self.learned_names = self._names_that_learn()
        self.retention = build_retention(self)
        learned = distributed.live_weights(self.model, self.learned_names)
        self.trained_count = sum(weight.numel() for weight in learned.values())
        self.kept = Kept(self)
        self.saving = Saving(self)
        self.batching = self.saving.batching()
        self.batches = self._batches()
        assert optim.num_train_epochs is not None
        fixed = sum(stage.steps or 0 for stage in self.plan)
        self.total_steps = optim.max_steps or self.batches.per_epoch * optim.num_train_epochs + fixed
        self.stages = split_steps(self.plan, self.total_steps)
        self.groups = [self._groups_of_stage(current) for current in self.stages]
        distributed.check_support(self.accelerator, self.recipe, len(self.stages))
        self.saving.check_room()
        held = {"validation": self.validation} | ({"train": self.train} if self.chunks is None else {})
        self.cache = BoundaryCache(self.recipe, self.task, self.accelerator, held, self.chunks)
        self.engine_weights: dict[str, torch.Tensor] = {}
        self._stepped = False

    def _batches(self) -> EpochBatches | ChunkedBatches | PairBatches:
        """The rows of every step."""
        size, seed = self.batching.global_batch, self.recipe.seed
        if any(stage.objective == "pairs" for stage in self.plan):
            head_fit.check_support(self.model, len(self.task.config_overrides()["id2label"]))
            assert isinstance(self.train.labels, np.ndarray)
            return PairBatches(self.train.labels, self.strategy.settings.pairs, size, seed)
        if self.chunks is None:
            return EpochBatches(self.train.lengths_N, size, seed, self.train.extra.get(CELLS))
        return ChunkedBatches(self.chunks, size, seed)

    def _names_that_learn(self) -> tuple[str, ...]:
        """The names of what learns in any stage: a best model from an early one must restore what learned later."""
        names: dict[str, None] = {}
        for stage in self.plan:
            self.strategy.enter_stage(self.model, stage)
            names |= dict.fromkeys(name for name, weight in self.model.named_parameters() if weight.requires_grad)
        return tuple(names)

    def _groups_of_stage(self, current: StageSteps) -> tuple[list[dict[str, Any]], list[str]]:
        """The optimizer groups and the names of what learns in a stage."""
        self.strategy.enter_stage(self.model, current.stage)
        names = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        return self._param_groups(current), names

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
            **self.kept.facts(),
            "metric": self.metric,
            "train_examples": len(self.train) if self.chunks is None else self.chunks.num_rows,
            "truncated_rows": (self.chunks or self.train).truncated_rows,
            "trained_parameters": self.trained_count,
            "processes": self.accelerator.num_processes,
            "mixed_precision": str(self.accelerator.mixed_precision),
            "parameters": sum(sizes.values()),
            "rows_at_once": self.batching.micro_batch,
            **self.progress.cache_facts,
        }

    def run(self) -> Progress:
        """Train to the end and leave the best weights in the model.

        Raises:
            Interrupted: If a signal asked the run to end; its state is saved.
            TrainingError: If loss or gradient is no finite number any more, or memory or disk is used up.
        """
        log = RunLog(self.accelerator, self.recipe, self.folder, self.total_steps)
        with log, interruption.held(), memory.quick_collections():
            try:
                self.saving.started = time.perf_counter()
                if self.recipe.resume != "never":
                    self.saving.resume(log)
                for stage_steps in self.stages:
                    due = self.progress.evaluation_due and self.progress.step == stage_steps.end
                    if not self.progress.stopped and (self.progress.step < stage_steps.end or due):
                        self._run_stage(stage_steps, log)
                self.progress.seconds = time.perf_counter() - self.saving.started
                self.saving.state.flush()
                log.say(summary.cache_line(self.progress.cache_facts))
            finally:
                self.saving.state.close()
            try:
                self.kept.choose(log)
            except Interrupted:
                self.final = copy_weights(self.model, self.learned_names)
                raise self.saving.ending_after_training() from None
        self.final = copy_weights(self.model, self.learned_names)
        release(self.model)
        return self.progress

    def _run_stage(self, current: StageSteps, log: RunLog) -> None:
        """Freeze, build optimizer and wrapper anew, and run the stage's steps.

        An optimizer that was built before a block thawed would not train it.
        """
        self._facts_before = dict(self.progress.cache_facts)
        if self.progress.step == current.start:
            self.progress.evaluations_without_gain = 0
        self.strategy.enter_stage(self.model, current.stage)
        optimizer = self.build_optimizer(current)
        peak_rates = [group["lr"] for group in optimizer.param_groups]
        was_sharded = distributed.is_sharded(self.model)
        model, optimizer = distributed.prepare(self.accelerator, self.recipe, self.model, optimizer)
        if distributed.is_sharded(self.model) and not was_sharded:
            self.kept.shard()
        if current.start < self.progress.step and (trouble := self.saving.state.load_optimizer(optimizer)):
            log.event(self.progress.step, trouble)
        if self.recipe.checkpoint_every is not None and not distributed.is_sharded(self.model):
            self.saving.state.prepare(distributed.live_weights(self.model, self.learned_names), optimizer)
        fast = fast_training(self.model, self.accelerator.device.type, compiled=self.recipe.optim.torch_compile)
        try:
            cached = self.cache.stage(self.model, *self._frozen_ahead(current))
            with fast as speed_note, head_token_only(self.model), cached as inputs:
                for note in filter(None, (speed_note if current is self.stages[0] else "", inputs.note)):
                    log.say(note)
                now = StageRun(current, model, optimizer, peak_rates, inputs, log)
                now = replace(now, graphs=graphs_of_stage(self, now))
                now = replace(now, update=update_of_stage(self, now))
                try:
                    # A head is fitted in full precision.
                    fits = current.stage.objective == "fit"
                    with frozen_weights_cast(self.model, None if fits else autocast_dtype(self.accelerator)):
                        self._run_steps(now)
                finally:
                    self.progress.cache_facts = self._facts_with(inputs)
        except (Interrupted, NotFinite, OutOfMemory) as reason:
            raise self.saving.ending(reason, current.stage.name, optimizer, log) from None
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

    def _facts_with(self, inputs: StageInputs) -> dict[str, float]:
        """The facts of earlier stages with what the cache has done in this one."""
        before = self._facts_before
        return {name: round(before.get(name, 0) + value, 3) for name, value in inputs.facts().items()}

    def _run_steps(self, now: StageRun) -> None:
        """The optimizer steps of a stage, from where the training stands."""
        current = now.current
        now.model.train()
        if self.progress.evaluation_due:
            self._evaluate(now)
        for step in range(max(current.start, self.progress.step), current.end):
            if self.progress.stopped:
                break
            now.set_rates(self._rate_factor(current, step))
            try:
                result = self._step(now, step)
            except OutOfMemory:
                self._catch_up(now)
                raise
            if now.update is None:
                self._after_step(result, step, now)
            elif now.update.is_full or self._is_awaited(step + 1, now):
                self._catch_up(now)

    def _is_awaited(self, step: int, now: StageRun) -> bool:
        """Whether what came of the steps before this one is needed before the next may begin."""
        checkpoint = self.recipe.checkpoint_every is not None and step % self.recipe.checkpoint_every == 0
        due = self._log_due(step, now) or self._evaluation_due(step, now) or checkpoint
        return due or step == now.current.end or interruption.requested()

    def _catch_up(self, now: StageRun) -> None:
        """Read what came of the steps that a GPU has made meanwhile, and do what follows from each."""
        if now.update is None:
            return
        steps = now.update.read()
        for step, loss, is_finite in steps:
            if not is_finite:
                now.set_rates(self._rate_factor(now.current, step))
                # It updates nothing, and says which rows it was.
                rows = self.batches[step].tolist()
                self._step(replace(now, graphs=None, update=None), step)
                raise NotFinite(f"the loss is {loss} or the gradient is not finite", sorted(rows))
            self._after_step(StepResult(loss, step == steps[-1][0] and interruption.requested()), step, now)

    def _step(self, now: StageRun, step: int) -> StepResult:
        """One step; the first one of a process with as many rows at once as fit into memory."""
        if now.current.stage.objective == "fit":
            loss = head_fit.fit_head(self.model, self.task, self.train, len(self.task.config_overrides()["id2label"]))
            return StepResult(loss, interruption.requested())
        rows, (inputs, objective) = self.batches[step], self.objective(now.current, now.inputs.splits["train"])
        while True:
            # Pairs are formed within what runs at once.
            size = len(rows) if isinstance(inputs, PairInputs) else self.batching.micro_batch
            optim = self.recipe.optim.model_copy(update={"per_device_train_batch_size": size})
            seed = self.recipe.seed
            arguments = (self.accelerator, now.model, now.optimizer, objective, inputs, rows, optim)
            fits = self._stepped or memory.all_fit(self.accelerator, now.model, self.task, inputs, rows, size, seed)
            held: dict[str, Any] = {"retention": self.retention, "graphs": now.graphs, "update": now.update}
            make = partial(training_step, *arguments, seed=seed, step=step, **held)
            result = memory.attempt(make) if fits else None
            if result is not None:
                self._stepped = True
                return result
            # Of several processes that failed in a step, none knows where the others are.
            whole = size == 1 or isinstance(inputs, PairInputs)
            if self._stepped or whole or (fits and self.accelerator.num_processes > 1):
                raise OutOfMemory
            now.optimizer.zero_grad()
            if now.update is not None:
                now.update.drop()
            self.batching = replace(self.batching, micro_batch=size // 2)
            now.log.event(step, f"out of memory: {size} -> {size // 2} rows at once, {len(rows)} per step as before")

    def objective(self, current: StageSteps, inputs: Inputs) -> tuple[Inputs, Objective]:
        """How the model is run on training rows in a stage, and the loss of what it gives."""
        if current.stage.objective != "pairs":
            return inputs, self.task
        return PairInputs(self.task, inputs.features, self.accelerator, self.model), PairLoss()

    def _param_groups(self, current: StageSteps) -> list[dict[str, Any]]:
        """The optimizer groups of what learns in the stage that the model has entered."""
        optim = self.recipe.optim
        assert optim.learning_rate is not None
        only_head = len(self.stages) == 1 and current.stage.boundary == self.anatomy.head_depth
        groups = self.strategy.param_groups(
            self.model,
            optim.learning_rate,
            head_learning_rate=None if current.stage.shared_rate or only_head else optim.head_learning_rate,
            weight_decay=optim.weight_decay or 0.0,
            layer_decay=optim.layer_decay or 1.0,
        )
        return self.retention.without_decay(groups)

    def build_optimizer(self, current: StageSteps) -> torch.optim.Optimizer:
        """AdamW over what learns in this stage."""
        fused = self.accelerator.device.type in ("cpu", "cuda")
        return torch.optim.AdamW(self._param_groups(current), fused=fused)

    def _rate_factor(self, current: StageSteps, step: int) -> float:
        """The learning rate at this step as a share of its peak; each stage warms up and falls anew."""
        optim = self.recipe.optim
        return rate_factor(optim.lr_scheduler_type, step - current.start, current.steps, optim.warmup_ratio or 0.0)

    def _log_due(self, step: int, now: StageRun) -> bool:
        """Whether the losses up to a step, counted from 1, are written down behind it."""
        # The means of two objectives have nothing to do with each other.
        return step % LOG_EVERY == 0 or (now.current.stage.objective == "pairs" and step == now.current.end)

    def _evaluation_due(self, step: int, now: StageRun) -> bool:
        """Whether the validation data are scored behind a step, counted from 1."""
        every = self.recipe.evaluation.every or self.batches.per_epoch
        # As long as pairs are learned from there is no head.
        return now.current.stage.objective != "pairs" and (step % every == 0 or step == self.total_steps)

    def _after_step(self, result: StepResult, begun: int, now: StageRun) -> None:
        """Log, evaluate and save when it is time."""
        step = self.progress.step = begun + 1
        self.kept.after_step(step)
        now.log.add_loss(result.loss)
        rate = max(now.peak_rates) * self._rate_factor(now.current, begun)
        epoch, due = step / self.batches.per_epoch, self._log_due(step, now)
        now.log.step(step, epoch, rate, now.current.stage.name, due=due)
        self.progress.evaluation_due = self._evaluation_due(step, now)
        if result.stop:
            raise Interrupted
        if self.progress.evaluation_due:
            self._evaluate(now)
        checkpoint_every = self.recipe.checkpoint_every
        if checkpoint_every is not None and step % checkpoint_every == 0 and step < self.total_steps:
            self.progress.cache_facts = self._facts_with(now.inputs)
            self.saving.save(now.current.stage.name, now.optimizer, now.log)

    def validation_scores(self, model: nn.Module, inputs: Inputs) -> dict[str, float]:
        """The scores of the validation data with the model as it is, which runs on them as the inputs say."""
        # Generation goes around the forward that Accelerate wraps, and frozen weights may be cast for autocast.
        with self.accelerator.autocast():
            predictions = predict(
                model,
                self.task,
                inputs,
                max_examples=self.recipe.optim.per_device_eval_batch_size,
                accelerator=self.accelerator,
            )
        self.task.calibrate(predictions, self.validation, thresholds=self.recipe.evaluation.tunes_thresholds)
        return self.task.score(predictions, self.validation)

    def _evaluate(self, now: StageRun) -> None:
        """Score the validation data, keep the best weights, count patience."""
        with self.kept.in_place():
            inner = self.accelerator.unwrap_model(now.model, keep_fp32_wrapper=True)
            scores = self.validation_scores(inner, now.inputs.splits["validation"])
        value = scores[self.metric]
        better = is_better(value, self.progress.best_score, self.metric)
        kept = is_kept(value, self.progress.best_score, self.metric)
        if kept:
            self.progress.best_score, self.progress.best_step = value, self.progress.step
            self.progress.best_scores = scores
        self.progress.evaluations_without_gain = 0 if better else self.progress.evaluations_without_gain + 1
        self.kept.after_evaluation(value, kept)
        now.log.evaluation(self.progress.step, self.progress.step / self.batches.per_epoch, scores, self.metric, kept)
        self.progress.evaluation_due = False
        patience = self.recipe.evaluation.early_stopping_patience
        # An earlier stage that gains no more has done what it is for; the last one decides about the end.
        waited = patience is not None and self.progress.evaluations_without_gain >= patience
        self.progress.stopped = waited and now.current is self.stages[-1]
