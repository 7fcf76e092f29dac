"""finetune(recipe) -> Run: the whole story, top to bottom."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hftransfer import advising, interruption, one_seed, seeds
from hftransfer.advising import auto
from hftransfer.errors import RecipeError
from hftransfer.locking import FolderLock
from hftransfer.one_seed import Prepared
from hftransfer.preflight.checks import preflight, preflight_of_run
from hftransfer.preflight.findings import Report
from hftransfer.recipe import Recipe
from hftransfer.results import Data
from hftransfer.run import Run, check_output_folder, check_push, push_when_asked
from hftransfer.run_files import RECIPE_FILE
from hftransfer.strategies import build_strategy
from hftransfer.tasks.registry import build_task
from hftransfer.training import calibration, contrastive, prepare
from hftransfer.training.assembled import Assembled
from hftransfer.training.defaults import flatten, resolve
from hftransfer.training.distributed import from_main_process
from hftransfer.training.precision import build_accelerator
from hftransfer.training.state import began_on
from hftransfer.verdicts import Verdict


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
        validation: Likewise; what is not passed and has a file in the recipe is read from it.
        test: Likewise.
        origins: Where given values come from, by dotted name; the command line passes it.

    Returns:
        The finished run.

    Raises:
        UserError: If recipe, data and checkpoint do not fit together, or preflight finds what must not go on; nothing
            has been written then.
        Interrupted: If a signal asked the run to end: what there is has been saved.
    """
    try:
        with interruption.watched(), FolderLock() as lock:
            given = {"train": train, "validation": validation, "test": test}
            return _train(prepare_all(recipe, **given, origins=origins, lock=lock))
    finally:
        # Models hold themselves in cycles. The next run of this process must not find the last one's in its memory.
        gc.collect()


def _train(prepared: Prepared) -> Run:
    """What follows when recipe, data and model fit together."""
    several = len(prepared.recipe.training_seeds) > 1
    first = seeds.first_of(prepared) if several else prepared
    training = one_seed.build(first)
    report = preflight_of_run(first.assembled(training), prepared.say)
    # Training, and what it leaves behind: the model, and the scores of exactly these weights.
    run = seeds.train(prepared, training, report) if several else one_seed.train(prepared, training, report)
    push_when_asked(run, prepared.recipe, prepared.say, prepared.accelerator.is_main_process)
    return run


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
    return preflight(assemble(recipe, train=train, validation=validation, test=test, origins=origins), thorough=True)


def assemble(
    recipe: Recipe,
    *,
    train: Any = None,
    validation: Any = None,
    test: Any = None,
    origins: Mapping[str, str] | None = None,
) -> Assembled:
    """The training of a recipe's first seed, ready to start. Arguments and errors are those of `finetune`."""
    first = seeds.first_of(prepare_all(recipe, train=train, validation=validation, test=test, origins=origins))
    return first.assembled(one_seed.build(first))


def prepare_all(
    recipe: Recipe,
    *,
    train: Any = None,
    validation: Any = None,
    test: Any = None,
    origins: Mapping[str, str] | None = None,
    lock: FolderLock | None = None,
) -> Prepared:
    """Everything before the training; see `finetune`. Nothing is written yet.

    Args:
        recipe: The whole description of the training.
        train: Training data in memory.
        validation: Likewise.
        test: Likewise.
        origins: Where given values come from.
        lock: Keeps other runs out of the output folder.

    Raises:
        UserError: If recipe, data and checkpoint do not fit together.
    """
    if recipe.resume != "never" and recipe.output_dir is None:
        raise RecipeError("no run is named", where="resume", fix="name its folder with --output_dir")
    # The recipe: fill in what it leaves open.
    verdicts: tuple[Verdict, ...] = ()
    if recipe.strategy.type == "auto":
        given = given_settings(recipe, origins)
        recipe, origins, verdicts = choose_strategy(recipe, given, train, validation, test)
    recipe, known = resolve(recipe, origins)
    accelerator, device_line = build_accelerator(recipe)
    recipe = prepare.derive_output_dir(recipe, known, accelerator)
    # One process looks for all: a slow one would find the folder that a quick one has begun to write.
    from_main_process(accelerator, lambda: claim(recipe, lock))
    # The data, and the task that its labels define.
    splits = prepare.load_data(recipe, train, validation, test)
    task = build_task(recipe.task, recipe.data, splits.train)
    contrastive.check_support(recipe, task, accelerator)
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
    rows = len(features["train"]) if chunks is None else chunks.num_rows
    # A run that goes on has the steps that it began with, on however many processes.
    recipe = prepare.derive_schedule(recipe, known, rows, began_on(recipe) or accelerator.num_processes)
    data = Data(splits, features, beside=recipe.beside)
    found = Prepared(recipe, known, accelerator, device_line, strategy, task, data, chunks, loaded, lock)
    return replace(found, verdicts=verdicts)


def claim(recipe: Recipe, lock: FolderLock | None) -> None:
    """Find out whether the run may write into its folder, and push in the end.

    Raises:
        UserError: If not.
    """
    if lock is not None:
        lock.acquire_if_locked(recipe.output_dir or "")
    check_output_folder(recipe)
    check_push(recipe)


def choose_strategy(
    recipe: Recipe, given: Mapping[str, str], train: Any, validation: Any, test: Any
) -> tuple[Recipe, dict[str, str], tuple[Verdict, ...]]:
    """Put the strategy that the advisor recommends in the place of `auto`.

    A run that goes on keeps the strategy that it began with. The main process advises, and all do what it says.

    Returns:
        The recipe, where its settings come from, and the advice.
    """
    if recipe.task.type != advising.MEASURED_TASK:
        what = f"the advisor measures {advising.MEASURED_TASK} alone"
        raise RecipeError(what, where="strategy.type auto", fix="name a strategy, such as lora")
    if recipe.resume != "never" and (Path(recipe.output_dir or "") / RECIPE_FILE).is_file():
        decision = auto.earlier_decision(Run(recipe.output_dir or "").recipe)
    else:
        prepared = prepare_all(advising.probing_recipe(recipe), train=train, validation=validation, test=test)
        decision = from_main_process(prepared.accelerator, lambda: auto.decide(advising.advise(prepared)))
    return (*auto.decided(recipe, given, decision), decision.verdicts)


def given_settings(recipe: Recipe, origins: Mapping[str, str] | None) -> dict[str, str]:
    """Dotted name -> origin of what the user has set; from Python, what was passed counts as given."""
    return dict.fromkeys(flatten(recipe, only_set=True), "given") if origins is None else dict(origins)
