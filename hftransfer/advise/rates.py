"""What this device does in a second: the model's own passes, run for a moment at the length and batch size of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hftransfer.advise.cost import (
    FP32,
    Cost,
    Plan,
    Rates,
    Setting,
    Shape,
    Texts,
    caches,
    estimate,
    forward_operations,
    padded_texts,
    plan_stages,
    shape_of,
    training_operations,
)
from hftransfer.caching.boundary import CannotSplitError, Replay, Tap, capture, find_tap, reduce_inputs
from hftransfer.data.batching import pass_tokens
from hftransfer.strategies.casting import frozen_weights_cast
from hftransfer.strategies.freezing import anatomy_of, transformers_model
from hftransfer.training_settings import evaluations, optimizer_steps

if TYPE_CHECKING:
    from hftransfer.recipe import Recipe
    from hftransfer.strategies import Strategy

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def measure_rates(
    model: nn.Module, shape: Shape, plan: Plan, texts: Texts, setting: Setting, *, precision: str, seconds: float = 1.0
) -> Rates:
    """Run the model's own passes on random tokens and count.

    Args:
        model: The model in the stage of this plan, on its device; its weights stay as they are.
        shape: Its shape.
        plan: The stage.
        texts: Their mean length is the length of the random texts.
        setting: Its batch size, and whether frozen blocks are cached.
        precision: "no", "bf16" or "fp16", as Accelerate says it.
        seconds: How long each of the three rates is measured.
    """
    device = next(model.parameters()).device
    tokens = max(1, round(texts.tokens))
    length = Texts(1, float(tokens), float(tokens) ** 2)
    autocast = torch.autocast(device.type, dtype=PRECISIONS.get(precision), enabled=precision in PRECISIONS)
    cached = setting.cached and plan.boundary > 1
    tap = find_tap(model, plan.boundary) if cached else None
    # The batches in which frozen blocks are encoded.
    many = max(1, pass_tokens(device.type) // tokens)
    with torch.random.fork_rng(), autocast, frozen_weights_cast(model, PRECISIONS.get(precision)):
        was_training = model.training
        model.eval()
        batch = _random_batch(model, many, tokens)
        with torch.no_grad():
            forward = _mean_seconds(
                lambda: model(**batch) if tap is None else capture(model, [tap], batch), device, seconds
            )
        model.train(was_training)
        training, updating = _time_step(model, tap, _random_batch(model, setting.batch_size, tokens), seconds)
    operations = training_operations(shape, length, plan, cached=cached, recompute=setting.recompute)
    return Rates(
        forward=many
        * forward_operations(shape, length, plan.frozen_blocks(shape) if cached else shape.blocks)
        / forward,
        training=setting.batch_size * operations / training,
        updates=plan.learned / updating,
    )


def _time_step(
    model: nn.Module, tap: Tap | None, batch: dict[str, torch.Tensor], seconds: float
) -> tuple[float, float]:
    """Seconds of a forward and backward pass, from cached states where the stage has them, and of an update."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = learned[0].device
    with ExitStack() as stack:
        if tap is not None:
            states = capture(model, [tap], batch)[tap.boundary].float()
            replay = stack.enter_context(Replay(model, tap))
            with torch.no_grad():
                # Replay learns the form of what resting blocks put out.
                model(**batch)
            replay.feed(states)
            batch = reduce_inputs(batch, tap.head_input)

        def step() -> None:
            output: Any = model(**batch)
            output[0].float().square().mean().backward()
            torch.nn.utils.clip_grad_norm_(learned, 1e9)
            model.zero_grad()

        training = _mean_seconds(step, device, seconds)
    for parameter in learned:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(learned, lr=0.0, weight_decay=0.0, fused=device.type in ("cpu", "cuda"))
    updating = _mean_seconds(optimizer.step, device, seconds / 2)
    optimizer.zero_grad()
    return training, updating


def _random_batch(model: nn.Module, rows: int, tokens: int) -> dict[str, torch.Tensor]:
    """Texts of random tokens, all of the same length but one that is a token shorter."""
    config: Any = transformers_model(model).config
    device = next(model.parameters()).device
    ids_BT = torch.randint(max(1, config.vocab_size // 2), config.vocab_size, (rows, tokens), device=device)
    mask_BT = torch.ones_like(ids_BT)
    # Without any padding transformers leaves the mask out, and other kernels run.
    mask_BT[0, 1:][-1:] = 0
    end = getattr(config, "eos_token_id", None)
    if getattr(config, "is_encoder_decoder", False) and isinstance(end, int):
        # A classifier on a decoder reads the last end-of-text token, of which every text must have as many.
        ids_BT[ids_BT == end] = end - 1 if end else end + 1
        ids_BT[torch.arange(rows), mask_BT.sum(1) - 1] = end
    return {"input_ids": ids_BT, "attention_mask": mask_BT}


def _mean_seconds(action: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """The mean time of an action that is repeated for a while, after one that does not count.

    The mean, not the median: a run meets the same disturbances.
    """
    action()
    count, started = 0, time.perf_counter()
    while not count or time.perf_counter() - started < seconds:
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        count += 1
    return (time.perf_counter() - started) / count


def state_bytes(dtype: str | None, computed: int) -> int:
    """Bytes of a number in the feature cache: as the recipe says, else those of the precision that computes it."""
    return computed if dtype is None else FP32 if dtype == "fp32" else 2


def predict_cost(
    recipe: Recipe,
    strategy: Strategy,
    model: nn.Module,
    train_lengths: NDArray[np.integer],
    validation_lengths: NDArray[np.integer],
    *,
    devices: int = 1,
    precision: str = "no",
    train_examples: int | None = None,
    seconds: float = 1.0,
) -> Cost:
    """What a run of this recipe costs on devices like this one.

    Args:
        recipe: Resolved: batch size and epochs are set.
        strategy: Its strategy.
        model: What `strategy.apply` returned; it is left in the first stage.
        train_lengths: Tokens of each training text, or of a sample.
        validation_lengths: Tokens of each validation text.
        devices: How many.
        precision: As Accelerate says it.
        train_examples: How many training texts there are, where the lengths are of a sample.
        seconds: How long each rate is measured.
    """
    optim, inner, anatomy = recipe.optim, transformers_model(model), anatomy_of(model)
    config: Any = inner.config
    shape = shape_of(config.to_dict(), config.num_labels)
    batch_size = optim.per_device_train_batch_size * optim.gradient_accumulation_steps
    train = padded_texts(train_lengths, optim.per_device_train_batch_size, train_examples)
    validation = padded_texts(validation_lengths, optim.per_device_eval_batch_size)
    epochs, scorings = _amount(recipe, strategy, train.count, batch_size * devices)
    number_bytes = 2 if precision in PRECISIONS else 4
    setting = Setting(
        epochs=epochs,
        batch_size=batch_size,
        devices=devices,
        activation_bytes=number_bytes,
        recompute=optim.gradient_checkpointing,
        cached=not recipe.cache.is_off and not optim.torch_compile,
        cache_bytes=state_bytes(recipe.cache.dtype, number_bytes),
        cache_per_token=not anatomy.model_class.endswith("ForSequenceClassification"),
        evaluations=scorings,
    )
    stages = strategy.stages(anatomy)
    plans = exact_plans(plan_stages(stages, shape), strategy, model, stages)
    setting = replace(setting, cached=caches(plans, setting) and can_be_cut(model, plans))
    rates = []
    for stage, plan in zip(stages, plans, strict=True):
        strategy.enter_stage(model, stage)
        rates.append(measure_rates(model, shape, plan, train, setting, precision=precision, seconds=seconds))
    strategy.enter_stage(model, stages[0])
    return estimate(shape, plans, train, validation, setting, rates)


def _amount(recipe: Recipe, strategy: Strategy, examples: int, global_batch: int) -> tuple[float, int]:
    """Passes over the training data, and how often the validation data are scored."""
    optim = recipe.optim
    epochs, an_epoch = optim.num_train_epochs or 1, optimizer_steps(examples, 1, global_batch)
    scorings = evaluations(optim.max_steps or epochs * an_epoch, recipe.evaluation.every or an_epoch)
    if strategy.type == "contrastive":
        # There is a head to be scored only at the end.
        scorings = 1
    passes = float(epochs * passes_an_epoch(strategy))
    return (passes if optim.max_steps is None else optim.max_steps * global_batch / examples), scorings


def passes_an_epoch(strategy: Strategy) -> int:
    """How often an epoch runs every text: of pairs it has many, with two texts each."""
    return 2 * strategy.settings.pairs if strategy.type == "contrastive" else 1


def can_be_cut(model: nn.Module, plans: Sequence[Plan]) -> bool:
    """Whether the model runs from states at the first boundary that is worth it."""
    try:
        find_tap(model, next(plan.boundary for plan in plans if plan.boundary > 1))
    except CannotSplitError:
        return False
    return True


def exact_plans(plans: Sequence[Plan], strategy: Strategy, model: nn.Module, stages: Sequence[Any]) -> list[Plan]:
    """The plans with the model's own count of what learns: here the model is at hand."""
    anatomy, counted = anatomy_of(model), []
    for plan, stage in zip(plans, stages, strict=True):
        strategy.enter_stage(model, stage)
        learned = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        blocks = tuple(f"{path}." for path in anatomy.blocks)
        full = any(
            parameter.requires_grad and parameter.ndim >= 2 and "lora_" not in name and "ia3_" not in name
            for name, parameter in transformers_model(model).named_parameters()
            if name.startswith(blocks)
        )
        counted.append(Plan(plan.boundary, plan.share, learned, full))
    return counted
