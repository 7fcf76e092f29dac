"""What a training saves, what it goes on from, and how it ends before its end.

The last good weights are kept whatever ends a training, and one line says what happened and what to do.
"""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from hftransfer.errors import TrainingError
from hftransfer.interruption import Interrupted
from hftransfer.training import distributed, endings, identity
from hftransfer.training.distributed import live_weights, restore, whole_weights
from hftransfer.training.memory import OutOfMemory
from hftransfer.training.space import check_room, tensor_bytes
from hftransfer.training.state import Batching, TrainingState
from hftransfer.training.steps import NotFinite

if TYPE_CHECKING:
    from hftransfer.training.loop import Training
    from hftransfer.training.trackers import RunLog


class Saving:
    """The checkpoints of one training.

    Args:
        training: Its recipe, data, model and `learned_names` are there already; the rest is read when it is needed.
    """

    def __init__(self, training: Training) -> None:
        # It owns this object: a cycle would keep its model in memory until the next full garbage collection.
        self.training: Training = weakref.proxy(training)
        self.started = time.perf_counter()
        data = identity.data_hash((training.train, training.validation))
        data += "" if training.chunks is None else training.chunks.stream.digest
        # Weights that are held near their pretrained values are pulled to what the checkpoint's folder has.
        held = {id(anchor.parameter) for anchor in training.retention.anchors.values()}
        named = dict(training.model.named_parameters())
        free = {name for name in training.learned_names if id(named[name]) not in held}
        frozen = identity.weights_hash(training.model, free)
        folder = training.folder / "checkpoints"
        self.state = TrainingState(folder, training.recipe, data, frozen, training.accelerator)

    def batching(self) -> Batching:
        """How batches are made up: a run that goes on keeps its global batch, on any number of processes.

        Raises:
            TrainingError: If there is a checkpoint that the run cannot go on from.
        """
        recipe, world_size = self.training.recipe, self.training.accelerator.num_processes
        size = recipe.optim.per_device_train_batch_size
        wanted = Batching(size * recipe.optim.gradient_accumulation_steps * world_size, size)
        found = None if recipe.resume == "never" else self.state.find(wanted)
        if found is None:
            return wanted
        if found.state["surroundings"]["processes"] != world_size:
            return Batching(found.batching.global_batch, size)
        # Forced, where the global batch differs; and what did not fit into memory will not fit now.
        return Batching(wanted.global_batch, min(size, found.batching.micro_batch))

    def check_room(self) -> None:
        """Look for room on the disk before anything is computed: for the checkpoints and for the model.

        Raises:
            TrainingError: If there is too little.
        """
        training, recipe = self.training, self.training.recipe
        if not training.accelerator.is_main_process:
            return
        # Weights, two moments, and what is kept of earlier ones.
        copies = 3 + training.kept.most_copies
        checkpoint = copies * tensor_bytes(live_weights(training.model, training.learned_names).values())
        # An old one is removed once the new one is there.
        count = 1 if self.state.found is not None else recipe.keep_checkpoints + 1
        wanted = checkpoint * count if recipe.checkpoint_every is not None else 0
        fix = "free some space, or keep fewer with --keep_checkpoints"
        check_room("this run", training.folder, wanted + tensor_bytes(training.model.parameters()), fix)

    def resume(self, log: RunLog) -> None:
        """Continue from the checkpoint that was found, if there is one.

        Raises:
            TrainingError: If its weights are others than those that learn.
        """
        training, found = self.training, self.state.found
        for line in self.state.damaged:
            log.say(f"passed over: {line}")
        log.rewind(-1 if found is None else found.progress.step)
        if found is None:
            log.say("no checkpoint to resume from: starting at step 0")
            return
        weights, own = found.weights(), dict(training.model.named_parameters())
        if weights.keys() != set(training.learned_names) or any(own[n].shape != w.shape for n, w in weights.items()):
            raise TrainingError(
                "holds other weights than those that learn now", where=str(found.folder), fix="give the same strategy"
            )
        training.progress = found.progress
        training.kept.load(found.weights("best"))
        restore(training.model, weights)
        self.state.restore_scaler()
        log.loss_sum, log.loss_count = training.progress.loss_sum, training.progress.loss_count
        if training.chunks is not None:
            training.chunks.counted = training.progress.chunks_counted
            training.chunks.truncated_rows = training.progress.truncated_rows
        self.started = time.perf_counter() - training.progress.seconds
        log.say(f"resumed at step {training.progress.step}")
        self._tell_changes(log)

    def _tell_changes(self, log: RunLog) -> None:
        """Say and record what is not as it was when the checkpoint was written."""
        found, batching = self.state.found, self.training.batching
        assert found is not None
        changes = found.changes + identity.differences(
            {"rows at once": found.batching.micro_batch}, {"rows at once": batching.micro_batch}
        )
        if changes:
            count = self.training.accelerator.num_processes
            where = f"each of {count} processes" if count > 1 else "one process"
            log.event(
                self.training.progress.step,
                f"resumed with changes: {identity.listed(changes)}; a step has {batching.global_batch} examples, "
                f"at most {batching.micro_batch} of them at once on {where}",
                changes=changes,
            )

    def save(self, stage: str, optimizer: Any, log: RunLog) -> None:
        """Save the state after the last step; all processes together."""
        training, progress = self.training, self.training.progress
        progress.seconds = time.perf_counter() - self.started
        progress.loss_sum, progress.loss_count = log.loss_sum, log.loss_count
        if training.chunks is not None:
            progress.chunks_counted = training.chunks.counted
            progress.truncated_rows = training.chunks.truncated_rows
        kept = training.kept.stored(keep=training.accelerator.is_main_process)
        self._write(live_weights(training.model, training.learned_names), kept, optimizer, stage)

    def _write(self, weights: distributed.Weights, best: distributed.Weights, optimizer: Any, stage: str) -> None:
        training = self.training
        epoch, offset = divmod(training.progress.step, training.batches.per_epoch)
        self.state.save(
            training.progress,
            weights,
            best,
            optimizer,
            training.batching,
            owned=distributed.is_sharded(training.model),
            epoch=epoch,
            offset=offset * training.batching.global_batch,
            stage=stage,
        )

    def ending(self, reason: BaseException, stage: str, optimizer: Any, log: RunLog) -> BaseException:
        """Save what there is and say what ended the training; all processes are here, unless one is out of memory."""
        training, step = self.training, self.training.progress.step
        together = training.accelerator.num_processes == 1 or not isinstance(reason, OutOfMemory)
        # Weights that an update made infinite must not replace a good checkpoint.
        if together and self._lacks(step) and self._all_finite():
            self.save(stage, optimizer, log)
        saved = self._settled(together)
        if isinstance(reason, Interrupted):
            return endings.interrupted(saved, training.folder)
        if isinstance(reason, NotFinite):
            examples = self._example_numbers(reason.rows)
            rate = max(float(group["lr"]) for group in optimizer.param_groups)
            what = endings.diverged(reason, examples, step + 1, rate, self.state.folder, saved)
            log.event(step + 1, what, examples=examples)
            return TrainingError(what, where=str(training.folder), fix=endings.AFTER_DIVERGING)
        divisible = all(current.stage.objective != "pairs" for current in training.stages)
        rows = training.batching.micro_batch
        return endings.out_of_memory(step + 1, rows, training.folder, saved, divisible=divisible)

    def ending_after_training(self) -> Interrupted:
        """Save the finished training, of which scores and model are still to be made; what to raise then."""
        training = self.training
        weights, keep = training.final, training.accelerator.is_main_process
        if self._lacks(training.progress.step):
            kept = training.kept.stored(keep=keep)
            if distributed.is_sharded(training.model):
                weights = whole_weights(training.model, weights, keep=keep)
            self._write(weights, kept, None, training.stages[-1].stage.name)
        try:
            return endings.interrupted(self._settled(together=True), training.folder)
        finally:
            self.state.close()

    def _lacks(self, step: int) -> bool:
        """Whether a state could be saved that is not on the disk yet; DeepSpeed keeps its own."""
        kind = distributed.kind_of(self.training.accelerator)
        return step > 0 and self.state.last_step != step and kind != "DEEPSPEED"

    def _all_finite(self) -> bool:
        """Whether every weight that learns is a finite number."""
        weights = live_weights(self.training.model, self.training.learned_names)
        return all(bool(weight.isfinite().all()) for weight in weights.values())

    def _settled(self, together: bool) -> int | None:
        """Wait until everything is written; the step of the newest checkpoint."""
        self.state.flush()
        if together:
            # A process that has ended makes the launcher end the others, which may still be writing.
            self.training.accelerator.wait_for_everyone()
        return self.state.last_step

    def _example_numbers(self, rows: list[int]) -> list[int]:
        """The numbers, from 0, of the training examples that rows of the current step come from."""
        training = self.training
        features = training.train if training.chunks is None else training.chunks.features
        first = training.batches.first_row(training.progress.step)
        return [int(example) + first for example in np.unique(features.example_N[rows])]
