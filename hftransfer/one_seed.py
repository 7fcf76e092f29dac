"""One training of a prepared recipe: apply the strategy, run the loop, score, and leave a run folder behind."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from hftransfer import interruption, results
from hftransfer.caching.states import PlainInputs
from hftransfer.locking import FolderLock
from hftransfer.models.load import LoadedModel
from hftransfer.preflight.findings import Report
from hftransfer.recipe import Recipe
from hftransfer.results import Data, Results
from hftransfer.run import Run, create_run
from hftransfer.strategies import Strategy
from hftransfer.tasks.base import Predictions, Task
from hftransfer.terminal import console
from hftransfer.training import drift, prepare, summary
from hftransfer.training.assembled import Assembled
from hftransfer.training.carbon import NAME, measured_carbon
from hftransfer.training.distributed import gather_model, is_sharded, kind_of
from hftransfer.training.evaluate import predict
from hftransfer.training.fisher import importance
from hftransfer.training.loop import Training
from hftransfer.training.space import disk_errors
from hftransfer.training.state import NO_ROOM
from hftransfer.training.streaming import Chunks
from hftransfer.verdicts import Verdict

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Prepared:
    """All that trainings with different seeds share.

    Attributes:
        recipe: With everything derived; its `seed` decided the splits.
        known: Where its values come from.
        accelerator: Device and processes.
        device_line: What they are, in words.
        strategy: What learns.
        task: What is predicted.
        data: Rows and features.
        chunks: Training rows that are streamed.
        loaded: The pretrained model with the head of the first seed; used up by the first training.
        lock: Keeps other runs out of the output folder.
        shown: Whether the recipe was printed already.
        verdicts: What was judged before the training: the advice that chose the strategy.
    """

    recipe: Recipe
    known: Mapping[str, str]
    accelerator: Accelerator
    device_line: str
    strategy: Strategy
    task: Task
    data: Data
    chunks: Chunks | None
    loaded: LoadedModel
    lock: FolderLock | None = None
    shown: bool = field(default=False)
    verdicts: tuple[Verdict, ...] = ()

    def of_seed(self, seed: int, folder: str, *, reload: bool = True) -> Prepared:
        """The same for a training of its own with another seed, on the same splits.

        Args:
            seed: The seed.
            folder: Where its run goes.
            reload: Whether the model has been used up and is read anew.
        """
        recipe = self.recipe.model_copy(update={"seeds": [seed], "output_dir": folder})
        if not reload:
            return replace(self, recipe=recipe, lock=None)
        loaded = prepare.load_pretrained(of_seed(recipe, seed), self.task, self.accelerator.mixed_precision)
        return replace(self, recipe=recipe, loaded=loaded, lock=None, shown=True)

    def assembled(self, training: Training) -> Assembled:
        """What preflight checks: all this with a training that was built from it."""
        data = self.data
        return Assembled(
            self.recipe, dict(self.known), self.device_line, data.splits, self.loaded, data.features, training
        )

    def say(self, *lines: Any) -> None:
        """Print on the main process."""
        console(writes=self.accelerator.is_main_process).print(*lines, sep="\n")


def of_seed(recipe: Recipe, seed: int) -> Recipe:
    """The recipe as head, order of examples and dropout read it: with this seed."""
    return recipe.model_copy(update={"seed": seed})


def build(prepared: Prepared) -> Training:
    """Start the head, insert what the strategy inserts, and build the training."""
    recipe, task, loaded = prepared.recipe, prepared.task, prepared.loaded
    features = prepared.data.features
    (seed,) = recipe.training_seeds
    task.initialise_head(loaded.model, loaded.fresh_parameters, features["train"])
    held, before = weigh(prepared), states_before(prepared)
    torch.manual_seed(seed)  # adapters are drawn from the global generator
    model = prepared.strategy.apply(loaded.model, loaded.anatomy)
    return Training(
        of_seed(recipe, seed),
        prepared.accelerator,
        prepared.strategy,
        loaded.anatomy,
        model,
        task,
        features["train"],
        features["validation"],
        prepared.chunks,
        loaded.fresh_parameters,
        held,
        before,
    )


def states_before(prepared: Prepared) -> drift.States:
    """The pretrained states of some validation texts, on the main process.

    Nothing where the backbone does not learn, or where the model is to be spread over processes: it may not fit on one.
    """
    accelerator = prepared.accelerator
    spread = kind_of(accelerator) in ("FSDP", "DEEPSPEED")
    if spread or prepared.recipe.strategy.type == "feature_extraction" or not accelerator.is_main_process:
        return {}
    model: torch.nn.Module = prepared.loaded.model
    return drift.capture_states(model.to(accelerator.device), prepared.task, prepared.data.features["validation"])


def weigh(prepared: Prepared) -> dict[str, torch.Tensor]:
    """How much each weight of the backbone matters, where EWC asks; nothing elsewhere."""
    if prepared.recipe.optim.retain != "ewc":
        return {}
    data, device = prepared.data, prepared.accelerator.device
    return importance(
        prepared.recipe, prepared.task, prepared.loaded, data.splits.train, data.features["train"], device
    )


def train(prepared: Prepared, training: Training | None = None, report: Report | None = None) -> Run:
    """Train once, and leave the run's folder behind.

    Args:
        prepared: Recipe, data, model.
        training: What `build` made of it; built here when absent.
        report: What preflight found, to be kept.
    """
    training = training or build(prepared)
    writes = prepared.accelerator.is_main_process
    checked = None if report is None else report.as_data()
    run = create_run(prepared.recipe, writes, prepared.lock, checked, prepared.verdicts)
    prepared.accelerator.wait_for_everyone()
    announce(prepared, training)
    with interruption.held(), disk_errors("the run", run.folder, NO_ROOM):
        with measured_carbon(NAME in prepared.recipe.trackers and writes) as carbon:
            training.run()
        found = finish(prepared, training, run)
        found.carbon = carbon
        if writes:
            results.write(run, training, prepared.recipe, prepared.data, found)
            run.write_card()
    prepared.accelerator.wait_for_everyone()
    prepared.say(summary.score_table(found.scores))
    prepared.say(f"Model: {run.model_folder}  (training took {training.progress.seconds:.0f} s)")
    prepared.say(f"Report: {run.report_file}")
    return run


def announce(prepared: Prepared, training: Training) -> None:
    """Say what is about to happen."""
    if prepared.shown:
        return
    lines = (
        *prepared.data.splits.notes,
        *prepared.loaded.notes,
        *(sentence for verdict in prepared.verdicts for sentence in verdict.words),
        *prepare.describe_data(dict(prepared.data.features), prepared.recipe),
    )
    prepared.say(f"Running on {prepared.device_line}", *lines)
    prepared.say(summary.recipe_table(prepared.recipe, dict(prepared.known)), training.describe())


def finish(prepared: Prepared, training: Training, run: Run) -> Results:
    """Score the final model in full precision on validation and test data, and save it into a run's folder."""
    task, data, strategy, accelerator = prepared.task, prepared.data, prepared.strategy, prepared.accelerator
    started = time.perf_counter()
    # A sharded model may fit on no single device: it is scored in its shards and put together to be saved.
    model, sharded = training.model, is_sharded(training.model)
    model = model if sharded else strategy.finish(model)

    def predictions(split: str) -> Predictions:
        return predict(
            model,
            task,
            PlainInputs(task, data.features[split]),
            max_examples=prepared.recipe.optim.per_device_eval_batch_size,
            accelerator=accelerator,
        )

    try:
        found = results.score(prepared.recipe, task, data, model, predictions, sharded=sharded)
    except interruption.Interrupted:
        raise training.saving.ending_after_training() from None
    gather_model(model, keep=accelerator.is_main_process, known=training.engine_weights)
    if accelerator.is_main_process:
        trained = strategy.finish(model) if sharded else model
        with disk_errors("the model", run.model_folder, NO_ROOM):
            if training.before:
                after = drift.capture_states(trained, task, data.features["validation"])
                found.drift = drift.compare_states(training.before, after)
            found.weights = results.save(run, prepared.recipe, task, prepared.loaded, trained)
    found.seconds = time.perf_counter() - started
    return found
