"""finetune(recipe) -> Run: the whole story, top to bottom."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import torch

from hftransfer import interruption
from hftransfer.caching.states import PlainInputs
from hftransfer.locking import FolderLock
from hftransfer.models.load import LoadedModel
from hftransfer.preflight.checks import preflight, preflight_of_run
from hftransfer.preflight.findings import Report
from hftransfer.recipe import Recipe
from hftransfer.run import (
    METRICS_FILE,
    PREFLIGHT_FILE,
    Run,
    check_output_folder,
    check_push,
    create_run,
    plain_numbers,
    push_when_asked,
    write_whole,
)
from hftransfer.strategies import Strategy, build_strategy
from hftransfer.tasks.base import Features, Task
from hftransfer.tasks.registry import build_task
from hftransfer.training import facts, prepare, summary
from hftransfer.training.assembled import Assembled
from hftransfer.training.defaults import resolve
from hftransfer.training.distributed import gather_model, is_sharded
from hftransfer.training.evaluate import predict
from hftransfer.training.loop import Training
from hftransfer.training.precision import build_accelerator
from hftransfer.training.space import disk_errors
from hftransfer.training.state import NO_ROOM


def assemble(
    recipe: Recipe,
    *,
    train: Any = None,
    validation: Any = None,
    test: Any = None,
    origins: Mapping[str, str] | None = None,
    lock: FolderLock | None = None,
) -> Assembled:
    """Put together everything that a training needs; nothing is written.

    Arguments and errors are those of `finetune`.
    """
    # The recipe: fill in what it leaves open.
    recipe, known = resolve(recipe, origins)
    accelerator, device_line = build_accelerator(recipe)
    recipe = prepare.derive_output_dir(recipe, known, accelerator)
    if lock is not None and accelerator.is_main_process:
        lock.acquire_if_locked(recipe.output_dir or "")
    check_output_folder(recipe)
    check_push(recipe, accelerator.is_main_process)
    # The data, and the task that its labels define.
    splits = prepare.load_data(recipe, train, validation, test)
    task = build_task(recipe.task, recipe.data, splits.train)
    recipe = prepare.derive_task(recipe, known, task)
    # The model: backbone, new head, tokenizer, and its anatomy.
    strategy = build_strategy(recipe.strategy)
    recipe = prepare.derive_pooling(recipe, known, strategy, task)
    loaded = prepare.load_pretrained(recipe, task, accelerator.mixed_precision)
    recipe = prepare.derive_max_length(recipe, known, loaded, task, splits.train)
    features = prepare.encode_splits(task, splits, loaded, recipe)
    prepare.explain_max_length(recipe, known, features["train"])
    task.initialise_head(loaded.model, loaded.fresh_parameters, features["train"])
    # The strategy decides what learns; the loop trains it, stage by stage.
    torch.manual_seed(recipe.seed)  # adapters are drawn from the global generator
    model = strategy.apply(loaded.model, loaded.anatomy)
    chunks = prepare.chunks_of(task, splits, loaded, recipe)
    training = Training(
        recipe, accelerator, strategy, loaded.anatomy, model, task, features["train"], features["validation"], chunks
    )
    return Assembled(recipe, known, device_line, splits, loaded, features, training)


def check(
    recipe: Recipe,
    *,
    train: Any = None,
    validation: Any = None,
    test: Any = None,
    origins: Mapping[str, str] | None = None,
) -> Report:
    """Check a training before it runs (docs/check.md): data, labels, lengths, gradients, memory and time.

    Nothing is written or trained. Arguments and errors are those of `finetune`.

    Returns:
        What was found; `report.findings` is data, `report.refuse(strict=True)` raises at warnings.
    """
    ready = assemble(recipe, train=train, validation=validation, test=test, origins=origins)
    return preflight(ready, thorough=True)


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
        UserError: If recipe, data and checkpoint do not fit together, or preflight finds what must not go on; nothing
            has been written then.
        Interrupted: If a signal asked the run to end: what there is has been saved.
    """
    with interruption.watched(), FolderLock() as lock:
        ready = assemble(recipe, train=train, validation=validation, test=test, origins=origins, lock=lock)
        return _train(ready, lock)


def _train(ready: Assembled, lock: FolderLock) -> Run:
    """Check, train and leave behind what was put together."""
    recipe, training = ready.recipe, ready.training
    accelerator, strategy, task = training.accelerator, training.strategy, training.task
    say = summary.console(accelerator.is_main_process).print
    report = preflight_of_run(ready, say)
    run = create_run(recipe, accelerator.is_main_process, lock)
    accelerator.wait_for_everyone()
    if report is not None and accelerator.is_main_process:
        write_whole(run.folder / PREFLIGHT_FILE, json.dumps(plain_numbers(report.as_data()), indent=1) + "\n")
    described = prepare.describe_data(dict(ready.features), recipe)
    say(f"Running on {ready.device_line}", *ready.splits.notes, *ready.loaded.notes, *described, sep="\n")
    say(summary.recipe_table(recipe, ready.origins), training.describe(), sep="\n")
    with interruption.held(), disk_errors("the run", run.folder, NO_ROOM):
        training.run()
        # What is left behind: the model, and the scores of exactly these weights.
        scores = _leave_behind(run, training, strategy, task, ready.loaded, ready.features)
    say(summary.score_table(scores))
    say(f"Model: {run.model_folder}  (training took {training.progress.seconds:.0f} s)")
    push_when_asked(run, recipe, say, accelerator.is_main_process)
    return run


def _leave_behind(
    run: Run, training: Training, strategy: Strategy, task: Task, loaded: LoadedModel, features: Mapping[str, Features]
) -> dict[str, dict[str, float]]:
    """Score the final model in full precision on validation and test data, and save it."""
    started = time.perf_counter()
    # A sharded model may fit on no single device: it is scored in its shards and put together to be saved.
    model, sharded = training.model, is_sharded(training.model)
    model = model if sharded else strategy.finish(model)
    try:
        scores = _scores(model, training, task, features)
    except interruption.Interrupted:
        raise training.saving.ending_after_training() from None
    gather_model(model, keep=training.accelerator.is_main_process, known=training.engine_weights)
    if training.accelerator.is_main_process:
        model = strategy.finish(model) if sharded else model
        with disk_errors("the model", run.model_folder, NO_ROOM):
            weights = facts.save_trained(model, task, loaded, training.recipe, run.model_folder)
        written: dict[str, Any] = {
            **scores,
            "training": {**training.facts(), "scoring_seconds": round(time.perf_counter() - started, 3)},
            "truncation": prepare.truncation_facts(features),
            "data": facts.data_facts(task, features),
            "environment": facts.environment_facts(training.accelerator),
            "weights": weights,
            "base_revision": facts.commit_of(loaded.checkpoint, loaded.revision),
        }
        write_whole(run.folder / METRICS_FILE, json.dumps(plain_numbers(written), indent=1) + "\n")
        run.write_card()
    training.accelerator.wait_for_everyone()
    return scores


def _scores(
    model: torch.nn.Module, training: Training, task: Task, features: Mapping[str, Features]
) -> dict[str, dict[str, float]]:
    """The scores of each split that is held back."""
    scores: dict[str, dict[str, float]] = {}
    for split in [name for name in ("validation", "test") if name in features]:
        predictions = predict(
            model,
            task,
            PlainInputs(task, features[split]),
            max_examples=training.recipe.optim.per_device_eval_batch_size,
            accelerator=training.accelerator,
        )
        if split == "validation":
            task.calibrate(predictions, features[split])
        scores[split] = task.score(predictions, features[split])
    return scores
