"""What `finetune` derives from data and checkpoint before it trains, each with a reason that the run prints."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hftransfer.data.augment import check_remedies, with_counterfactuals
from hftransfer.data.load import Splits, load_file, load_splits, splits_from_objects
from hftransfer.data.named import check_exists
from hftransfer.data.streaming import load_stream, stream_from_objects
from hftransfer.errors import CheckpointError, DataError, RecipeError, TrainingError
from hftransfer.models.families import FAMILIES
from hftransfer.models.load import LoadedModel, load_model, max_input_length, model_type, possible_poolings
from hftransfer.recipe import Recipe
from hftransfer.strategies import Strategy
from hftransfer.tasks.base import Features, Task
from hftransfer.tasks.metrics import did_you_mean
from hftransfer.training.defaults import Origins, derive, evaluated_every, schedule_of
from hftransfer.training.language_model import spread_rows
from hftransfer.training.streaming import Chunks

if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset

# A limit up to this is taken as it is. Above it, or without one, the training inputs decide: as many tokens as hold
# this share of a sample of them, in steps, at most so many.
DEFAULT_MAX_LENGTH = 512
COVERED_SHARE, SAMPLED_EXAMPLES = 0.99, 5000
LENGTH_STEP, LONGEST_DERIVED = 64, 4096


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
    check_remedies(recipe)
    return with_counterfactuals(_loaded(recipe, train, validation, test), recipe)


def _loaded(recipe: Recipe, train: Any, validation: Any, test: Any) -> Splits:
    task, stratify = recipe.task, recipe.task.has_classes
    if train is not None and not isinstance(train, Mapping):
        # What is not passed and has a file in the recipe is read from it.
        validation = _from_file(recipe, "validation") if validation is None else validation
        test = _from_file(recipe, "test") if test is None else test
    if recipe.data.streaming and train is not None:
        return stream_from_objects(train, validation, test, recipe.data, seed=recipe.seed, stratify=stratify, task=task)
    if train is not None:
        return splits_from_objects(train, validation, test, recipe.data, seed=recipe.seed, stratify=stratify, task=task)
    if validation is not None or test is not None:
        raise DataError("validation or test data without training data", where="finetune", fix="pass train as well")
    load = load_stream if recipe.data.streaming else load_splits
    return load(recipe.data, seed=recipe.seed, stratify=stratify, task=task)


def _from_file(recipe: Recipe, split: str) -> Dataset | None:
    path = getattr(recipe.data, split)
    if path is None:
        return None
    check_exists(path, f"data.{split}")
    return load_file(path, where=f"data.{split}", section=recipe.data, labelled=True, task=recipe.task)


def derive_task(recipe: Recipe, origins: Origins, task: Task) -> Recipe:
    """Note what the data decided of the task, and choose or check the metric that picks the best model.

    Raises:
        RecipeError: If the task has no such metric.
    """
    for name, (value, reason) in task.derived().items():
        recipe = derive(recipe, origins, "task", name, value, reason)
    if recipe.task.label_kinds and not recipe.task.label_columns(recipe.data):
        # Written into recipe.yaml, the usual name would count as given.
        recipe = derive(recipe, origins, "data", "label", "", "no column is named: the task learns from texts alone")
    metric, what = recipe.evaluation.metric, getattr(recipe.task, "problem", recipe.task.type)
    if metric is None:
        return derive(recipe, origins, "evaluation", "metric", task.default_metric, f"the usual one for {what}")
    if metric not in task.metrics:
        raise RecipeError(
            f"no metric {metric!r} for {what}", where="evaluation.metric", fix=did_you_mean(metric, task.metrics)
        )
    return recipe


def derive_pooling(recipe: Recipe, origins: Origins, strategy: Strategy, task: Task) -> Recipe:
    """Mean pooling where the head is trained on frozen features and the model can have it.

    One token sums up a text badly until the blocks have learned to make it do so (docs/decisions/0001-mean-pooling.md).
    """
    if getattr(recipe.task, "pooling", None) != "auto":
        return recipe
    if not strategy.probes_head:
        return derive(recipe, origins, "task", "pooling", "own", "the blocks learn")
    if "mean" in possible_poolings(recipe.checkpoint, task.auto_class, recipe.trust_remote_code):
        return derive(recipe, origins, "task", "pooling", "mean", "the head learns on frozen features")
    return derive(recipe, origins, "task", "pooling", "own", "this model has no mean pooling")


def load_pretrained(recipe: Recipe, task: Task, precision: str) -> LoadedModel:
    """The checkpoint with the task's new head on it.

    Raises:
        TrainingError: If the model overflows in this precision.
        CheckpointError: If it cannot be read, or cannot do the task.
    """
    kind = model_type(recipe.checkpoint, recipe.trust_remote_code)
    if kind in FAMILIES and (reason := task.unsuited(kind)) is not None:
        raise CheckpointError(reason, where=recipe.checkpoint, fix="see docs/matrix.md")
    loaded = load_model(
        recipe.checkpoint,
        task.class_for(kind),
        config_overrides=task.config_overrides(),
        pooling=getattr(recipe.task, "pooling", "own"),
        seed=recipe.seed,
        gradient_checkpointing=recipe.optim.gradient_checkpointing,
        trust_remote_code=recipe.trust_remote_code,
    )
    if task.needs_pretrained_head and loaded.fresh_parameters:
        raise CheckpointError(
            f"has no pretrained head for {task.type}: {', '.join(loaded.fresh_parameters[:3])} would start at random",
            where=recipe.checkpoint,
            fix=f"give a checkpoint that was pretrained with one ({task.auto_class})",
        )
    task.attach(loaded.model, loaded.tokenizer)
    if precision == "fp16" and loaded.model.config.model_type == "t5":
        raise TrainingError(
            "T5 overflows to NaN in fp16", where=recipe.checkpoint, fix="launch with --mixed_precision bf16"
        )
    return loaded


def derive_max_length(recipe: Recipe, origins: Origins, loaded: LoadedModel, task: Task, train: Dataset) -> Recipe:
    """The model's limit; where that is high or absent, what holds nearly all of the training inputs.

    Batches are padded to their longest row, so a limit that no input reaches costs nothing.

    Raises:
        RecipeError: If the recipe asks for more than the model has positions.
    """
    limit, wanted = max_input_length(loaded.model, loaded.tokenizer), recipe.data.max_length
    if wanted is not None:
        if limit is not None and wanted > limit:
            raise RecipeError(
                f"{wanted} tokens asked for, but the model takes {limit}",
                where="data.max_length",
                fix=f"set at most {limit}",
            )
        return recipe
    if limit is not None and limit <= DEFAULT_MAX_LENGTH:
        return derive(recipe, origins, "data", "max_length", limit, "the model's limit")
    most = min(limit or LONGEST_DERIVED, LONGEST_DERIVED)
    # Spread over all: files are often in an order that goes with length.
    rows = spread_rows(len(train), SAMPLED_EXAMPLES)
    lengths = task.encode(train.select(rows), loaded.tokenizer, most).sequence_lengths
    covering = int(np.quantile(lengths, COVERED_SHARE, method="higher"))
    chosen = min(max(-(-covering // LENGTH_STEP) * LENGTH_STEP, DEFAULT_MAX_LENGTH), most)
    takes = "sets no limit" if limit is None else f"takes {limit:,}"
    of = f" in a sample of {len(rows):,} examples" if len(rows) < len(train) or recipe.data.streaming else ""
    reason = f"holds {(lengths <= chosen).mean():.1%} of the training inputs{of}; the model {takes}"
    return derive(recipe, origins, "data", "max_length", chosen, reason)


def explain_max_length(recipe: Recipe, origins: Origins, train: Features) -> None:
    """Add to the reason of a derived max_length what it means for the training inputs."""
    reason = origins.get("data.max_length", "")
    if not reason.startswith("derived"):
        return
    if train.truncated_rows:
        found = f"{train.truncated_rows / train.num_examples:.1%} of the training examples are longer"
    elif hasattr(recipe.task, "long_inputs") and len(train) > train.num_examples:
        found = "longer training examples are read in windows"
    else:
        found = f"the longest training input has {train.sequence_lengths.max():,} tokens"
    read = f" (of the {train.num_examples:,} that were read first)" if recipe.data.streaming else ""
    origins["data.max_length"] = f"{reason}; {found}{read}"


def derive_schedule(recipe: Recipe, origins: Origins, train_examples: int, num_processes: int) -> Recipe:
    """Smaller batches, then more epochs, where few examples would make few steps; evaluated as often as usual.

    Args:
        recipe: Resolved.
        origins: Where its values come from.
        train_examples: Rows to train on.
        num_processes: Of the training.
    """
    per_step = num_processes * recipe.optim.gradient_accumulation_steps
    asked = (recipe.strategy.type, recipe, origins, train_examples, per_step)
    found, every = schedule_of(*asked), evaluated_every(*asked)
    usual = recipe.optim
    for name, value in found.items():
        if value != getattr(usual, name):
            reason = f"{train_examples:,} examples would make few steps (docs/strategies.md)"
            recipe = derive(recipe, origins, "optim", name, value, reason)
    if every is not None and every != recipe.evaluation.every:
        return derive(recipe, origins, "evaluation", "every", every, "as often as with the usual number of epochs")
    return recipe


def encode_splits(task: Task, splits: Splits, loaded: LoadedModel, recipe: Recipe) -> dict[str, Features]:
    """Tokenize every split there is."""
    assert recipe.data.max_length is not None
    found = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {
        name: task.encode(dataset, loaded.tokenizer, recipe.data.max_length, training=name == "train")
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
        splits.stream,
        lambda part: task.encode(part, loaded.tokenizer, max_length, training=True),
        recipe.data.chunk_examples,
    )


def describe_data(features: dict[str, Features], recipe: Recipe) -> list[str]:
    """How much data there is, how long it is, and what max_length cuts off."""
    sizes = ", ".join(f"{name} {_size(rows)}" for name, rows in features.items())
    train = features["train"]
    mean, longest = train.lengths_N.mean(), train.lengths_N.max()
    lines = [f"Examples: {sizes}; training inputs have {mean:.0f} tokens on average, at most {longest}"]
    assert recipe.data.max_length is not None
    return lines + describe_truncation(features, recipe.data.max_length)


def describe_truncation(features: Mapping[str, Features], max_length: int) -> list[str]:
    """What max_length cuts off, a line for every split that loses something."""
    lines = []
    for name, rows in features.items():
        if rows.truncated_rows or rows.lost_labels:
            share = rows.truncated_tokens / max(rows.truncated_tokens + rows.lengths_N.sum(), 1)
            gold = f", {rows.lost_labels:,} of {rows.gold_labels:,} labels out of sight" if rows.gold_labels else ""
            lines.append(
                f"Truncated in {name}: {rows.truncated_rows:,} of {rows.num_examples:,} examples "
                f"({rows.truncated_rows / rows.num_examples:.1%}) at {max_length} tokens, "
                f"{share:.1%} of all tokens lost{gold}"
            )
    return lines


def truncation_facts(features: Mapping[str, Features]) -> dict[str, dict[str, int]]:
    """What max_length cuts off in every split, for metrics.json."""
    return {
        name: {
            "examples": rows.num_examples,
            "truncated_examples": rows.truncated_rows,
            "tokens": int(rows.lengths_N.sum()) + rows.truncated_tokens,
            "truncated_tokens": rows.truncated_tokens,
            "gold_labels": rows.gold_labels,
            "truncated_gold_labels": rows.lost_labels,
        }
        for name, rows in features.items()
    }


def _size(rows: Features) -> str:
    parts = f" in {len(rows):,} rows" if len(rows) != rows.num_examples else ""
    return f"{rows.num_examples:,}{parts}"
