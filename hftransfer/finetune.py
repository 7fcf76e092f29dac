"""finetune(recipe) -> Run: the whole story, top to bottom."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hftransfer.data.load import Splits, load_splits, splits_from_objects
from hftransfer.errors import DataError, RecipeError
from hftransfer.models.load import LoadedModel, load_model, max_input_length, possible_poolings
from hftransfer.models.save import save_model
from hftransfer.recipe import Recipe
from hftransfer.run import METRICS_FILE, Run, check_output_folder, create_run, write_whole
from hftransfer.strategies import Strategy, build_strategy
from hftransfer.tasks.base import Features
from hftransfer.tasks.metrics import METRICS, did_you_mean
from hftransfer.tasks.text_classification import TextClassificationTask
from hftransfer.training import summary
from hftransfer.training.defaults import Origins, derive, resolve
from hftransfer.training.evaluate import predict
from hftransfer.training.loop import Training
from hftransfer.training.precision import build_accelerator

if TYPE_CHECKING:
    from accelerate import Accelerator

# A model without a length limit of its own is given inputs of at most this many tokens unless the recipe says more.
DEFAULT_MAX_LENGTH = 512


def finetune(
    recipe: Recipe, *, train: Any = None, validation: Any = None, test: Any = None, origins: Mapping[str, str] | None = None
) -> Run:
    """Fine-tune a checkpoint as a recipe says and leave a run folder behind.

    Args:
        recipe: The whole description of the training.
        train: Training data in memory (Dataset, DatasetDict, DataFrame or list of dicts), in place of the recipe's files.
        validation: Likewise.
        test: Likewise.
        origins: Where given values come from, by dotted name; the command line passes it.

    Returns:
        The finished run.

    Raises:
        UserError: If recipe, data and checkpoint do not fit together; nothing is written then.
    """
    # The recipe: fill in what it leaves open.
    recipe, known_origins = resolve(recipe, origins)
    accelerator, device_line = build_accelerator(recipe)
    recipe = _derive_output(recipe, known_origins, accelerator)
    check_output_folder(recipe)
    say = summary.console(accelerator.is_main_process).print

    # The data and the task that it defines.
    splits = _load_data(recipe, train, validation, test)
    task = TextClassificationTask.from_data(recipe.task, recipe.data, splits.train)
    recipe = derive(recipe, known_origins, "task", "problem", task.labels.problem, "the label column")
    recipe = _derive_metric(recipe, known_origins, task)

    # The model: backbone, new head, tokenizer, and its anatomy.
    strategy = build_strategy(recipe.strategy)
    recipe = _derive_pooling(recipe, known_origins, strategy, task)
    loaded = load_model(
        recipe.checkpoint,
        task.auto_class,
        config_overrides=task.config_overrides(),
        pooling=recipe.task.pooling,
        seed=recipe.seed,
        gradient_checkpointing=recipe.optim.gradient_checkpointing,
    )
    recipe = _derive_max_length(recipe, known_origins, loaded)
    features = _encode(task, splits, loaded, recipe)
    task.initialise_head(loaded.model, loaded.fresh_parameters, features["train"])

    # The strategy decides what learns; the training does it.
    model = strategy.apply(loaded.model, loaded.anatomy)
    if accelerator.is_main_process:
        create_run(recipe)
    accelerator.wait_for_everyone()
    run = Run(recipe.output_dir or "")
    training = Training(
        recipe, accelerator, strategy, loaded.anatomy, model, task, features["train"], features["validation"], run.folder
    )
    say(f"Running on {device_line}")
    for line in (*splits.notes, *_describe(features, recipe)):
        say(line)
    say(summary.recipe_table(recipe, known_origins))
    say(training.describe())
    progress = training.run()

    # What is left behind: the model, and the scores of exactly these weights in full precision.
    model = strategy.finish(training.model)
    scores, prediction_seconds = _score(task, model, features, accelerator, recipe)
    if accelerator.is_main_process:
        save_model(
            model,
            loaded.tokenizer,
            run.model_folder,
            checkpoint=loaded.checkpoint,
            revision=loaded.revision,
            config=task.saved_config(),
        )
        _write_metrics(run, training, progress, scores, prediction_seconds)
    accelerator.wait_for_everyone()
    say(summary.score_table(scores))
    say(f"Model: {run.model_folder}   metrics: {run.folder / METRICS_FILE}   training took {progress.seconds:.0f} s")
    return run
