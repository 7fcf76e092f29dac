"""Checks of the model by a few real steps on one batch, after which it is as it was, bit for bit.

In every stage: exactly what is to learn gets gradients, all of it is in the optimizer, and the loss on the batch falls.
In a run what rests is computed once, as in the training; the step that shows who gets a gradient runs the whole model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from hftransfer.caching.boundary import CannotSplitError, Replay, capture, reduce_inputs
from hftransfer.caching.states import PlainInputs, Rows, model_inputs
from hftransfer.data.batching import pass_tokens, training_batches
from hftransfer.preflight.findings import Finding
from hftransfer.strategies.casting import autocast_dtype, frozen_weights_cast
from hftransfer.training.distributed import copy_weights, kind_of, restore
from hftransfer.training.fast_training import fast_training
from hftransfer.training.loop import Training
from hftransfer.training.schedule import StageSteps
from hftransfer.training.steps import step_seed

STEPS_IN_A_RUN, STEPS = 8, 20
SECONDS_IN_A_RUN, SECONDS = 3.0, 20.0
"""Steps that are to lower the loss, and the time after which no more are taken, in a run and in `hftransfer check`."""
TOKENS_IN_A_RUN = 0.25
"""In a run: of the tokens of a pass that a device is quickest with."""
FEWEST_STEPS, LATER_STEPS = 4, 2
"""Steps below which a loss that does not fall says nothing, and the steps of the stages after the first."""
LATER_PART = 4
"""In a run the stages after the first take their steps on a part of the rows, one in so many: enough for gradients."""
LEAST_FALL, FITTED = 1e-4, 1e-3
"""Share of the loss that it must fall by; a loss below `FITTED` need not."""
NAMED = 4
FP16_SCALE = 1024.0
"""As Accelerate's scaler, but fixed: without it small gradients would vanish in fp16."""

Pick: TypeAlias = Callable[[bool], dict[str, torch.Tensor]]


@dataclass
class Probe:
    """What a few steps of one stage showed.

    Attributes:
        stage: The stage.
        rows: Rows of the batch.
        tokens: Its padded tokens per row.
        losses: On the batch, without dropout: before the first step and after the last; 0 where they were not wanted.
        lowest: The lowest loss seen.
        steps: How many were taken.
        reached: Parameters that got a gradient.
        moved: Those of them whose gradient was not zero in all steps.
        broken: Those with a gradient that is no finite number.
        left_out: Parameters that learn and are in no group of the optimizer.
        astray: Parameters that rest and are in one.
        forward_seconds: Of a pass without gradients.
        training_seconds: Of a forward and backward pass.
        update_seconds: Of an optimizer's step.
    """

    stage: StageSteps
    rows: int
    tokens: float
    losses: tuple[float, float] = (0.0, 0.0)
    lowest: float = float("inf")
    steps: int = 0
    reached: set[str] = field(default_factory=set)
    moved: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    left_out: list[str] = field(default_factory=list)
    astray: list[str] = field(default_factory=list)
    forward_seconds: float = 0.0
    training_seconds: float = 0.0
    update_seconds: float = 0.0


def can_probe(training: Training) -> bool:
    """Whether every process holds the whole model."""
    return kind_of(training.accelerator) in ("NO", "MULTI_CPU", "MULTI_GPU")


def probe_stages(training: Training, *, thorough: bool) -> list[Probe]:
    """Take a few steps in every stage and put everything back.

    Args:
        training: Ready to start. Its model goes to the device that it will train on.
        thorough: Take more of them.

    Raises:
        torch.OutOfMemoryError: The batch does not fit; the model is as it was, too.
    """
    rows = typical_rows(training, 1.0 if thorough else TOKENS_IN_A_RUN)
    training.model.to(training.accelerator.device)
    probes = []
    for current in training.stages:
        first = current is training.stages[0]
        limit = (STEPS if thorough else STEPS_IN_A_RUN) if first else LATER_STEPS
        seconds = SECONDS if thorough else SECONDS_IN_A_RUN
        # A run is not kept waiting once for every stage: the later ones are asked for their gradients alone.
        whole = thorough or first
        chosen = rows if whole else _spread(rows, max(len(rows) // LATER_PART, min(len(rows), 2)))
        if current.stage.objective == "pairs":
            # Only batches that were made for it are sure to hold pairs.
            chosen = training.batches[0]
        with left_as_it_was(training, current):
            # A thorough check takes the times of whole passes; two steps are not worth another pass.
            cut = 0 if thorough or not first else current.stage.boundary
            probes.append(_probe(training, current, chosen, limit, seconds, cut, with_losses=whole))
    training.strategy.enter_stage(training.model, training.stages[0].stage)
    return probes


def typical_rows(training: Training, part: float) -> Rows:
    """Of the first epoch's batches the one of the most usual length, cut to a micro-batch and to what is quick.

    Args:
        training: The training.
        part: Of the tokens that its device is quickest with.
    """
    optim, lengths_N = training.recipe.optim, training.train.lengths_N
    batches = training_batches(
        lengths_N, global_batch_size=optim.per_device_train_batch_size, seed=training.recipe.seed, epoch=0
    )
    mean = lengths_N.mean()
    rows = min(batches, key=lambda batch: (abs(lengths_N[batch].mean() - mean), int(batch[0])))
    fitting = int(part * pass_tokens(training.accelerator.device.type)) // max(int(lengths_N[rows].max()), 1)
    return _spread(rows, max(min(len(rows), fitting), min(len(rows), 2)))


def _spread(rows: Rows, count: int) -> Rows:
    """So many of the rows, spread over the batch, which is sorted by length."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, count).astype(np.int64))]


@contextmanager
def left_as_it_was(training: Training, current: StageSteps) -> Iterator[None]:
    """Enter a stage, and at the end put back weights, buffers, gradients and the state of all random generators."""
    model = training.model
    training.strategy.enter_stage(model, current.stage)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    weights = copy_weights(model, names)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = [training.accelerator.device] if training.accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            model.zero_grad(set_to_none=True)
            restore(model, weights)
            now = dict(model.named_buffers())
            with torch.no_grad():
                for name, buffer in buffers.items():
                    now[name].copy_(buffer)


def _probe(
    training: Training,
    current: StageSteps,
    rows: Rows,
    limit: int,
    seconds: float,
    boundary: int,
    *,
    with_losses: bool,
) -> Probe:
    """Take steps on some rows; what lies below the boundary is computed once."""
    accelerator, model = training.accelerator, training.model
    inputs, objective = training.objective(current, PlainInputs(training.task, training.train))
    # A task that draws its inputs draws them once: the batch stays the same.
    drawn = step_seed(training.recipe.seed, 0, 0, 0)
    batch = {name: tensor.to(accelerator.device) for name, tensor in inputs.collate(rows, drawn).items()}
    weight = objective.weight(training.train, rows, drawn)
    probe = Probe(current, len(rows), float(batch["input_ids"].shape[-1]))
    optimizer = training.build_optimizer(current)
    _compare_with_optimizer(model, optimizer, probe)

    def loss_of() -> torch.Tensor:
        # The first step shows which parameters get a gradient, those that rest included.
        fed = pick(model.training and not probe.steps)
        with accelerator.autocast():
            return objective.loss(inputs.run(model, fed), fed) / weight

    def quiet_loss() -> float:
        model.eval()
        with torch.no_grad():
            loss, probe.forward_seconds = _timed(lambda: loss_of().item())
        value = float(loss)
        model.train()
        probe.lowest = min(probe.lowest, value)
        return value

    dtype = autocast_dtype(accelerator)
    started = time.perf_counter()
    with (
        fast_training(model, accelerator.device.type),
        computed_once(training, boundary, batch) as pick,
        frozen_weights_cast(model, dtype),
    ):
        before = after = quiet_loss() if with_losses else 0.0
        model.train()
        while probe.steps < limit and (not probe.steps or time.perf_counter() - started < seconds):
            torch.manual_seed(step_seed(training.recipe.seed, probe.steps, 0, 0))
            _take_step(training, optimizer, loss_of, probe, FP16_SCALE if dtype == torch.float16 else 1.0)
            if with_losses and probe.steps == limit // 2:
                quiet_loss()
            if probe.broken:
                break
        after = quiet_loss() if with_losses else after
    probe.losses = (before, after)
    return probe


@contextmanager
def computed_once(training: Training, boundary: int, batch: Mapping[str, torch.Tensor]) -> Iterator[Pick]:
    """Compute the states of a batch at a boundary, from which the model then runs inside of the context.

    Yields:
        Gives the batch for a whole pass (True) or one from the states (False), and sets the model up for it. Where
        the training will not run from states either, every pass is a whole one.
    """
    model, cache, whole = training.model, training.cache, dict(batch)
    with ExitStack() as stack:
        try:
            (tap,) = cache.taps(model, [boundary])
            replay = stack.enter_context(Replay(model, tap))
            cache.check(model, replay)
        except CannotSplitError:
            stack.close()
            yield lambda _: whole
            return
        model.eval()
        with training.accelerator.autocast():
            states_BTD = capture(model, [tap], model_inputs(whole))[boundary].float()
        model.train()
        reduced = {**whole, **reduce_inputs(model_inputs(whole), tap.head_input)}

        def pick(wholly: bool) -> dict[str, torch.Tensor]:
            replay.feed(None if wholly else states_BTD)
            return whole if wholly else reduced

        yield pick


def _take_step(
    training: Training,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[], torch.Tensor],
    probe: Probe,
    scale: float,
) -> None:
    """One optimizer step at the peak rate; what got gradients is noted."""
    model, max_norm = training.model, training.recipe.optim.max_grad_norm
    # The fastest step counts: the first one makes ready what the others find.
    _, seconds = _timed(lambda: (loss_of() * scale).backward())
    probe.training_seconds = min(seconds, probe.training_seconds or seconds)
    learned = []
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        probe.reached.add(name)
        parameter.grad /= scale
        learned.append(parameter)
        total = float(parameter.grad.abs().sum())
        if not np.isfinite(total):
            probe.broken.add(name)
        elif total > 0:
            probe.moved.add(name)
    if max_norm > 0:
        nn.utils.clip_grad_norm_(learned, max_norm)
    _, probe.update_seconds = _timed(optimizer.step)
    optimizer.zero_grad()
    probe.steps += 1


def _compare_with_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, probe: Probe) -> None:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in held:
            probe.left_out.append(name)
        elif not parameter.requires_grad and id(parameter) in held:
            probe.astray.append(name)


def _timed(action: Callable[[], Any]) -> tuple[Any, float]:
    """What an action returns, and the seconds it takes."""
    started = time.perf_counter()
    result = action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - started


def judge(training: Training, probes: list[Probe]) -> list[Finding]:
    """What the steps of all stages mean."""
    found: list[Finding] = []
    for probe, (_, names) in zip(probes, training.groups, strict=True):
        found += _judge_stage(training, probe, set(names))
    found += _judge_learning(probes[0])
    found += _judge_dtypes(training)
    return found


def _judge_stage(training: Training, probe: Probe, meant: set[str]) -> list[Finding]:
    where = f"stage {probe.stage.stage.name!r}"
    if not probe.stage.steps:
        what = f"it gets none of the {training.total_steps:,} optimizer steps"
        return [Finding("empty_stage", "warning", what, where, "train longer, or take fewer stages")]
    parameters = dict(training.model.named_parameters())
    unmoved = {name for name in meant & probe.reached - probe.moved - probe.broken if parameters[name].ndim > 1}
    found = []
    for code, names, what, fix in (
        (
            "no_gradient",
            meant - probe.reached,
            "meant to learn, but no gradient reaches them",
            "something cuts the graph (detach, no_grad, a branch that is not used); freeze them if that is meant",
        ),
        ("frozen_learns", probe.reached - meant, "meant to rest, but they get gradients", "freeze them"),
        ("not_in_optimizer", set(probe.left_out), "learn, but the optimizer does not have them", "see param_groups"),
        ("frozen_in_optimizer", set(probe.astray), "rest, but the optimizer has them", "see param_groups"),
        (
            "not_finite",
            probe.broken,
            "get a gradient that is no finite number",
            "train with --mixed_precision no or bf16, lower --optim.learning_rate, or look at the checkpoint's weights",
        ),
    ):
        if names:
            found.append(Finding(code, "error", f"{_listed(names)}: {what}", where, fix, {"parameters": sorted(names)}))
    if unmoved and probe.steps >= LATER_STEPS:
        what = f"{_listed(unmoved)}: the gradient is zero on a batch of {probe.rows} rows"
        fix = "look whether the batch reaches them at all"
        found.append(Finding("zero_gradient", "warning", what, where, fix, {"parameters": sorted(unmoved)}))
    return found


def _judge_learning(probe: Probe) -> list[Finding]:
    before, after = probe.losses
    if probe.broken:
        return []
    facts = {"before": before, "after": after, "steps": probe.steps, "rows": probe.rows}
    steps = f"on one batch of {probe.rows} rows in {probe.steps} steps at the peak rate"
    where = f"stage {probe.stage.stage.name!r}"
    if not np.isfinite([before, after]).all():
        what = f"the loss goes from {before:.4g} to {after:.4g} {steps}"
        return [Finding("not_finite", "error", what, where, "lower --optim.learning_rate, or train in fp32", facts)]
    if probe.lowest > before - LEAST_FALL * abs(before) and before > FITTED and probe.steps >= FEWEST_STEPS:
        what = f"the loss does not fall {steps}: {before:.4g}, then {after:.4g}"
        return [
            Finding("does_not_learn", "warning", what, where, "change --optim.learning_rate; look at the labels", facts)
        ]
    return [
        Finding("learns_a_batch", "note", f"the loss falls from {before:.4g} to {after:.4g} {steps}", where, "", facts)
    ]


def _judge_dtypes(training: Training) -> list[Finding]:
    """Weights that learn are in full precision: steps would be lost in the rounding of half precision."""
    learned = set(training.learned_names)
    half = {
        name: str(parameter.dtype).removeprefix("torch.")
        for name, parameter in training.model.named_parameters()
        if name in learned and parameter.dtype in (torch.float16, torch.bfloat16)
    }
    if not half:
        return []
    what = f"{_listed(half)}: they learn in {', '.join(sorted(set(half.values())))}, where small steps are lost"
    return [
        Finding(
            "half_precision_weights", "error", what, "model", "load them in fp32 (model.float())", {"parameters": half}
        )
    ]


def _listed(names: Any) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - NAMED} more" if len(ordered) > NAMED else ""
    return ", ".join(ordered[:NAMED]) + more
