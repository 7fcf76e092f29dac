"""What `finetune` derives from data and checkpoint before it trains, each with a reason that the run prints."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from hftransfer.data.load import Splits, load_splits, splits_from_objects
from hftransfer.data.streaming import load_stream, stream_from_objects
from hftransfer.errors import DataError, RecipeError, TrainingError
from hftransfer.models.load import LoadedModel, load_model, max_input_length, possible_poolings
from hftransfer.recipe import Recipe
from hftransfer.strategies import Strategy
from hftransfer.tasks.base import Features, Task
from hftransfer.tasks.labels import Labels
from hftransfer.tasks.metrics import METRICS, did_you_mean
from hftransfer.training.defaults import Origins, derive
from hftransfer.training.streaming import Chunks

if TYPE_CHECKING:
    from accelerate import Accelerator

# A model without a length limit of its own is given at most this many tokens unless the recipe says more.
DEFAULT_MAX_LENGTH = 512


def derive_output_dir(recipe: Recipe, origins: Origins, accelerator: Accelerator) -> Recipe:
    """Name the run's folder after task, strategy and time, the same on every process."""
    if recipe.output_dir is not None:
        return recipe
    from accelerate.utils import broadcast_object_list

    name = [f"runs/{recipe.task.type}-{recipe.strategy.type}-{time.strftime('%Y%m%d-%H%M%S')}"]
    if accelerator.num_processes > 1:
        broadcast_object_list(name)
    origins["output_dir"] = "derived: task, strategy and time"
    return recipe.model_copy(update={"output_dir": name[0]})


def load_data(recipe: Recipe, train: Any, validation: Any, test: Any) -> Splits:
    """The splits from memory if any were passed, else from the recipe's files."""
    stratify = recipe.task.problem != "regression"
    if recipe.data.streaming and train is not None:
        return stream_from_objects(train, validation, test, recipe.data, seed=recipe.seed, stratify=stratify)
    if train is not None:
        return splits_from_objects(train, validation, test, recipe.data, seed=recipe.seed, stratify=stratify)
    if validation is not None or test is not None:
        raise DataError("validation or test data without training data", where="finetune", fix="pass train as well")
    load = load_stream if recipe.data.streaming else load_splits
    return load(recipe.data, seed=recipe.seed, stratify=stratify)


def derive_metric(recipe: Recipe, origins: Origins, labels: Labels, default: str) -> Recipe:
    """Choose the metric that picks the best model, or check the one that was asked for.

    Raises:
        RecipeError: If the problem has no such metric.
    """
    metric, problem = recipe.evaluation.metric, labels.problem
    if metric is None:
        return derive(recipe, origins, "evaluation", "metric", default, f"the usual one for {problem}")
    known = [*METRICS[problem], *(f"f1/{name}" for name in labels.names)]
    if metric not in known:
        raise RecipeError(
            f"no metric {metric!r} for {problem}", where="evaluation.metric", fix=did_you_mean(metric, known)
        )
    return recipe


def derive_pooling(recipe: Recipe, origins: Origins, strategy: Strategy, task: Task) -> Recipe:
    """Mean pooling where the head is trained on frozen features and the model can have it.

    One token sums up a text badly until the blocks have learned to make it do so (docs/decisions/0001-mean-pooling.md).
    """
    if recipe.task.pooling != "auto":
        return recipe
    if not strategy.probes_head:
        return derive(recipe, origins, "task", "pooling", "own", "the blocks learn")
    if "mean" in possible_poolings(recipe.checkpoint, task.auto_class):
        return derive(recipe, origins, "task", "pooling", "mean", "the head learns on frozen features")
    return derive(recipe, origins, "task", "pooling", "own", "this model has no mean pooling")


def load_pretrained(recipe: Recipe, task: Task, precision: str) -> LoadedModel:
    """The checkpoint with the task's new head on it.

    Raises:
        TrainingError: If the model overflows in this precision.
    """
    loaded = load_model(
        recipe.checkpoint,
        task.auto_class,
        config_overrides=task.config_overrides(),
        pooling=recipe.task.pooling,
        seed=recipe.seed,
        gradient_checkpointing=recipe.optim.gradient_checkpointing,
    )
    if precision == "fp16" and loaded.model.config.model_type == "t5":
        raise TrainingError(
            "T5 overflows to NaN in fp16", where=recipe.checkpoint, fix="launch with --mixed_precision bf16"
        )
    return loaded


def derive_max_length(recipe: Recipe, origins: Origins, loaded: LoadedModel) -> Recipe:
    """The model's limit, unless the recipe says less.

    Raises:
        RecipeError: If the recipe asks for more than the model has positions.
    """
    limit, wanted = max_input_length(loaded.model, loaded.tokenizer), recipe.data.max_length
    if wanted is None:
        reason = "no limit of the model, so the usual one" if limit is None else "the model's limit"
        return derive(recipe, origins, "data", "max_length", limit or DEFAULT_MAX_LENGTH, reason)
    if limit is not None and wanted > limit:
        raise RecipeError(
            f"{wanted} tokens asked for, but the model takes {limit}",
            where="data.max_length",
            fix=f"set at most {limit}",
        )
    return recipe


def encode_splits(task: Task, splits: Splits, loaded: LoadedModel, recipe: Recipe) -> dict[str, Features]:
    """Tokenize every split there is."""
    assert recipe.data.max_length is not None
    found = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {
        name: task.encode(dataset, loaded.tokenizer, recipe.data.max_length)
        for name, dataset in found.items()
        if dataset is not None
    }


def chunks_of(task: Task, splits: Splits, loaded: LoadedModel, recipe: Recipe) -> Chunks | None:
    """The training rows chunk by chunk, if they are streamed."""
    max_length = recipe.data.max_length
    assert max_length is not None
    if splits.stream is None:
        return None
    return Chunks(
        splits.stream, lambda part: task.encode(part, loaded.tokenizer, max_length), recipe.data.chunk_examples
    )


def describe_data(features: dict[str, Features], recipe: Recipe) -> list[str]:
    """How much data there is, how long it is, and what max_length cuts off."""
    sizes = ", ".join(f"{name} {len(rows):,}" for name, rows in features.items())
    train = features["train"]
    mean, longest = train.lengths_N.mean(), train.lengths_N.max()
    lines = [f"Examples: {sizes}; training inputs have {mean:.0f} tokens on average, at most {longest}"]
    for name, rows in features.items():
        if rows.truncated_rows:
            share = rows.truncated_tokens / (rows.truncated_tokens + rows.lengths_N.sum())
            lines.append(
                f"Truncated in {name}: {rows.truncated_rows:,} of {len(rows):,} rows "
                f"at {recipe.data.max_length} tokens, {share:.1%} of all tokens lost"
            )
    return lines
