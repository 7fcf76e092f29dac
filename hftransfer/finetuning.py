"""finetune(recipe) -> Run: the whole story, top to bottom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hftransfer import one_seed, seeds
from hftransfer.one_seed import Prepared
from hftransfer.recipe import Recipe
from hftransfer.results import Data
from hftransfer.run import Run, check_output_folder
from hftransfer.strategies import build_strategy
from hftransfer.tasks.registry import build_task
from hftransfer.training import calibration, prepare
from hftransfer.training.defaults import resolve
from hftransfer.training.precision import build_accelerator


def finetune(
    recipe: Recipe,
    *,
    train: Any = None,
    validation: Any = None,
    test: Any = None,
    origins: Mapping[str, str] | None = None,
) -> Run:
    """Fine-tune a checkpoint as a recipe says and leave a run folder behind.

    Args:
        recipe: The whole description of the training.
        train: Training data in memory (Dataset, DatasetDict, DataFrame or list of dicts), in place of the recipe's
            files.
        validation: Likewise.
        test: Likewise.
        origins: Where given values come from, by dotted name; the command line passes it.

    Returns:
        The finished run.

    Raises:
        UserError: If recipe, data and checkpoint do not fit together; nothing has been written then.
    """
    prepared = prepare_all(recipe, train=train, validation=validation, test=test, origins=origins)
    # Training, and what it leaves behind: the model, and the scores of exactly these weights.
    if len(prepared.recipe.training_seeds) > 1:
        return seeds.train(prepared)
    return one_seed.train(prepared)


def prepare_all(
    recipe: Recipe,
    *,
    train: Any = None,
    validation: Any = None,
    test: Any = None,
    origins: Mapping[str, str] | None = None,
) -> Prepared:
    """Everything before the training; see `finetune`. Nothing is written yet.

    Raises:
        UserError: If recipe, data and checkpoint do not fit together.
    """
    # The recipe: fill in what it leaves open.
    recipe, known = resolve(recipe, origins)
    accelerator, device_line = build_accelerator(recipe)
    recipe = prepare.derive_output_dir(recipe, known, accelerator)
    check_output_folder(recipe)
    # The data, and the task that its labels define.
    splits = prepare.load_data(recipe, train, validation, test)
    task = build_task(recipe.task, recipe.data, splits.train)
    recipe = prepare.derive_task(recipe, known, task)
    # The model: backbone, new head, tokenizer, and its anatomy.
    strategy = build_strategy(recipe.strategy)
    recipe = prepare.derive_pooling(recipe, known, strategy, task)
    first = one_seed.of_seed(recipe, recipe.training_seeds[0])
    loaded = prepare.load_pretrained(first, task, accelerator.mixed_precision)
    recipe = prepare.derive_max_length(recipe, known, loaded, task, splits.train)
    features = prepare.encode_splits(task, splits, loaded, recipe)
    prepare.explain_max_length(recipe, known, features["train"])
    calibration.check_support(recipe, task, loaded.model)
    chunks = prepare.chunks_of(task, splits, loaded, recipe)
    return Prepared(recipe, known, accelerator, device_line, strategy, task, Data(splits, features), chunks, loaded)
