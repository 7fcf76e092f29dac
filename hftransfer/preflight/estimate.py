"""Memory and time of a training, by the cost model (docs/scaling.md) at the rates that the probing steps showed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hftransfer.advise.cost import (
    FP32,
    Plan,
    Rates,
    Setting,
    Shape,
    Texts,
    caches,
    estimate,
    forward_operations,
    memory,
    padded_texts,
    plan_stages,
    shape_of,
    training_operations,
)
from hftransfer.advise.rates import PRECISIONS, can_be_cut, exact_plans, state_bytes
from hftransfer.errors import AnatomyError
from hftransfer.preflight.findings import Finding
from hftransfer.preflight.model import Probe
from hftransfer.report.page import duration, size
from hftransfer.strategies.freezing import transformers_model
from hftransfer.tasks.base import Ragged
from hftransfer.training.assembled import Assembled
from hftransfer.training.loop import Training
from hftransfer.training_settings import evaluations

MEMORY_WARN = 0.9
"""Share of the free memory beyond which the estimate is a warning."""


def check_cost(ready: Assembled, probes: Sequence[Probe], *, timed: bool) -> list[Finding]:
    """What the training will need.

    Args:
        ready: The training.
        probes: The steps that were taken in its stages, in order.
        timed: Whether the steps were enough to tell the time by them.
    """
    training = ready.training
    inner: Any = transformers_model(training.model)
    try:
        shape = shape_of(inner.config.to_dict(), int(getattr(inner.config, "num_labels", 2) or 2))
    except AnatomyError as error:
        return [Finding("no_estimate", "note", error.what, "model")]
    stages = [current.stage for current in training.stages]
    plans = exact_plans(plan_stages(stages, shape), training.strategy, training.model, stages)
    setting = _setting(training)
    found = [_memory(training, shape, plans, setting, probes)]
    if timed:
        setting = replace(setting, cached=caches(plans, setting) and can_be_cut(training.model, plans))
        found.append(_time(ready, shape, plans, setting, probes))
    training.strategy.enter_stage(training.model, stages[0])
    return found


def _setting(training: Training) -> Setting:
    optim, accelerator = training.recipe.optim, training.accelerator
    number_bytes = 2 if accelerator.mixed_precision in PRECISIONS else FP32
    pairs = any(current.stage.objective == "pairs" for current in training.stages)
    every = training.recipe.evaluation.every or training.batches.per_epoch
    return Setting(
        epochs=training.total_steps / training.batches.per_epoch,
        batch_size=optim.per_device_train_batch_size,
        devices=accelerator.num_processes,
        activation_bytes=number_bytes,
        recompute=optim.gradient_checkpointing,
        cached=not training.recipe.cache.is_off and not training.task.random_inputs and not optim.torch_compile,
        cache_bytes=state_bytes(training.recipe.cache.dtype, number_bytes),
        cache_per_token=not training.anatomy.model_class.endswith("ForSequenceClassification"),
        # As long as pairs are learned from there is no head to be scored.
        evaluations=1 if pairs else evaluations(training.total_steps, every),
    )


def _memory(
    training: Training, shape: Shape, plans: Sequence[Plan], setting: Setting, probes: Sequence[Probe]
) -> Finding:
    """The largest batch in the most demanding stage, and scores over the vocabulary where there are any."""
    longest = float(training.train.lengths_N.max())
    texts = Texts(len(training.train), longest, longest**2)
    parts = max((memory(shape, texts, plan, setting) for plan in plans), key=lambda found: sum(found.values()))
    inner: Any = transformers_model(training.model)
    if inner.get_output_embeddings() is not None:
        labels = training.train.labels
        places = float(labels.lengths_N.max()) if isinstance(labels, Ragged) else longest
        scores = setting.batch_size * places * inner.config.vocab_size
        # The scores, a copy in fp32 and its gradient.
        parts = {**parts, "scores": round(scores * (setting.activation_bytes + 2 * FP32))}
    need, free = sum(parts.values()), _free_memory(training)
    shown = ", ".join(f"{name} {size(count)}" for name, count in parts.items())
    what = f"about {size(need)} of memory on each device ({shown}); the longest batch has {longest:.0f} tokens a row"
    if free is not None:
        what += f"; {size(free)} are free"
    tight = free is not None and need > MEMORY_WARN * free
    fix = "lower --optim.per_device_train_batch_size and raise --optim.gradient_accumulation_steps by as much, lower "
    fix += "--data.max_length, or --optim.gradient_checkpointing"
    facts = {"bytes": need, "free": free, **parts}
    return Finding("memory", "warning" if tight else "note", what, "device", fix if tight else "", facts)


def _free_memory(training: Training) -> int | None:
    """Bytes that the training may have, those that the model takes already included; None where nothing says it."""
    device = training.accelerator.device
    held = sum(parameter.numel() * parameter.element_size() for parameter in training.model.parameters())
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    return free + held


def _time(ready: Assembled, shape: Shape, plans: Sequence[Plan], setting: Setting, probes: Sequence[Probe]) -> Finding:
    training = ready.training
    rates = []
    for plan, probe in zip(plans, probes, strict=True):
        length = Texts(probe.rows, probe.tokens, probe.tokens**2)
        learning = probe.rows * training_operations(shape, length, plan, cached=False, recompute=setting.recompute)
        rates.append(
            Rates(
                forward=probe.rows * forward_operations(shape, length, shape.blocks) / probe.forward_seconds,
                training=learning / probe.training_seconds,
                updates=plan.learned / probe.update_seconds,
            )
        )
    optim = training.recipe.optim
    count = training.batches.rows_per_epoch
    train = padded_texts(training.train.lengths_N, optim.per_device_train_batch_size, count)
    validation = padded_texts(training.validation.lengths_N, optim.per_device_eval_batch_size)
    # An update comes once for all micro-steps of a step.
    steps = [replace(rate, updates=rate.updates * optim.gradient_accumulation_steps) for rate in rates]
    cost = estimate(shape, plans, train, validation, setting, steps)
    parts = {
        "encoding": cost.encoding_seconds,
        "training": cost.training_seconds,
        "evaluating": cost.evaluating_seconds,
    }
    shown = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items() if seconds)
    what = f"about {duration(cost.seconds)} for {training.total_steps:,} steps ({shown})"
    if cost.cache_bytes:
        what += f"; the feature cache takes {size(cost.cache_bytes)} of disk"
    facts = {"seconds": cost.seconds, "steps": training.total_steps, "cache_bytes": cost.cache_bytes, **parts}
    return Finding("time", "note", what, "device", "", facts)
