"""What every candidate would cost, from one short measurement of the device on this model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hftransfer.advise.candidates import Candidate
from hftransfer.advise.cost import FP32, Cost, Setting, Shape, caches, estimate, padded_texts, plan_stages, shape_of
from hftransfer.advise.rates import PRECISIONS, can_be_cut, measure_rates, passes_an_epoch, state_bytes
from hftransfer.errors import AnatomyError, StrategyError
from hftransfer.one_seed import Prepared
from hftransfer.strategies import Strategy, make_strategy
from hftransfer.strategies.freezing import transformers_model
from hftransfer.training.defaults import evaluations_of, schedule_of

MEASURED_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
"""Models that run on a text alone; others need outputs or choices as well, which are not made up here."""
SECONDS = 0.15
"""How long each rate is measured: enough to tell a minute from an hour."""


def costs_of(prepared: Prepared, candidates: Sequence[Candidate]) -> dict[str, Cost]:
    """Name -> cost of every candidate that fits the model; empty where the model's cost cannot be told.

    Args:
        prepared: Model and data; the model is left with nothing frozen.
        candidates: What would be done.
    """
    loaded, optim = prepared.loaded, prepared.recipe.optim
    if not loaded.anatomy.model_class.endswith(MEASURED_HEADS):
        return {}
    everything = make_strategy("full_fine_tuning")
    model = everything.apply(loaded.model.to(prepared.accelerator.device), loaded.anatomy)
    config: Any = transformers_model(model).config
    try:
        shape = shape_of(config.to_dict(), int(getattr(config, "num_labels", 2) or 2))
    except AnatomyError:
        return {}
    lengths = prepared.data.features["train"].lengths_N
    validation_lengths = prepared.data.features["validation"].lengths_N
    (plan,) = plan_stages(everything.stages(loaded.anatomy), shape)
    precision = str(prepared.accelerator.mixed_precision)
    usual = padded_texts(lengths, optim.per_device_train_batch_size)
    setting = _setting(prepared, 1.0, optim.per_device_train_batch_size, precision)
    rates = measure_rates(model, shape, plan, usual, setting, precision=precision, seconds=SECONDS)
    # Of a stream the first chunk is open: a sample of the lengths.
    rows = train_rows(prepared)
    batches_per_step = prepared.accelerator.num_processes * optim.gradient_accumulation_steps
    found = {}
    for candidate in candidates:
        strategy = make_strategy(**candidate.strategy)
        try:
            stages = strategy.stages(loaded.anatomy)
        except StrategyError:
            continue
        plans = plan_stages(stages, shape, adapters=_adapters(strategy, shape))
        asked = (candidate.type, prepared.recipe, prepared.known, rows, batches_per_step)
        schedule = schedule_of(*asked)
        batch = schedule["per_device_train_batch_size"]
        epochs = float(passes_an_epoch(strategy) * schedule["num_train_epochs"])
        if optim.max_steps is not None:
            epochs = optim.max_steps * batch * batches_per_step / rows
        setting = replace(_setting(prepared, epochs, batch, precision), evaluations=evaluations_of(*asked))
        setting = replace(setting, cached=caches(plans, setting) and can_be_cut(model, plans))
        train = padded_texts(lengths, batch, rows)
        validation = padded_texts(validation_lengths, optim.per_device_eval_batch_size)
        found[candidate.name] = estimate(shape, plans, train, validation, setting, [rates] * len(plans))
    return found


def train_rows(prepared: Prepared) -> int:
    """Rows to train on, all chunks of a stream together."""
    return len(prepared.data.features["train"]) if prepared.chunks is None else prepared.chunks.num_rows


def _setting(prepared: Prepared, epochs: float, batch: int, precision: str) -> Setting:
    recipe, number_bytes = prepared.recipe, 2 if precision in PRECISIONS else FP32
    return Setting(
        epochs=epochs,
        batch_size=batch,
        devices=prepared.accelerator.num_processes,
        activation_bytes=number_bytes,
        recompute=recipe.optim.gradient_checkpointing,
        cached=not recipe.cache.is_off and not prepared.task.random_inputs and not recipe.optim.torch_compile,
        cache_bytes=state_bytes(recipe.cache.dtype, number_bytes),
        cache_per_token=not prepared.loaded.anatomy.model_class.endswith("ForSequenceClassification"),
    )


def _adapters(strategy: Strategy, shape: Shape) -> int | None:
    """Parameters that LoRA inserts beside all linear layers: r (inputs + outputs) of each; None without adapters."""
    if strategy.type != "lora":
        return None
    per_rank = 4 * 2 * shape.width + 2 * (shape.width + shape.inner)
    return int(strategy.settings.r) * shape.blocks * per_rank
