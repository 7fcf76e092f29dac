"""What is said when a training ends before its end: what happened, what was kept, what to do."""

from __future__ import annotations

import shlex
from pathlib import Path

from hftransfer.errors import TrainingError
from hftransfer.interruption import Interrupted, name
from hftransfer.training.steps import NotFinite

CONTINUE = "continue with --resume auto"
AFTER_DIVERGING = (
    "look at these examples, lower --optim.learning_rate or train in fp32 with --mixed_precision no, and go on with "
    "--resume force"
)
# Examples named in a message; log.jsonl has them all.
MAX_EXAMPLES = 16


def interrupted(saved: int | None, folder: Path) -> Interrupted:
    """What to raise once a run that was asked to end has saved what there is.

    Args:
        saved: The step of the checkpoint, None if there was nothing to save.
        folder: The run's, which the recipe may have left open.
    """
    what = "before the first step: nothing is lost" if saved is None else f"saved at step {saved}"
    return Interrupted(f"interrupted by {name()}, {what}; {CONTINUE} --output_dir {shlex.quote(str(folder))}")


def diverged(error: NotFinite, examples: list[int], step: int, rate: float, folder: Path, saved: int | None) -> str:
    """What happened in a step whose loss or gradient was no number, without a place and what to do.

    Args:
        error: What was not finite.
        examples: Numbers of the examples, from 0.
        step: The step that was not made.
        rate: The highest learning rate in it.
        folder: Of the checkpoints.
        saved: The step of the checkpoint with the last good weights, None if there is none.
    """
    more = f" and {len(examples) - MAX_EXAMPLES} more in log.jsonl" if len(examples) > MAX_EXAMPLES else ""
    kept = "nothing had been learned before" if saved is None else f"the weights before it are in {folder}"
    return (
        f"{error.what} at step {step} (rate {rate:.2e}, training examples "
        f"{', '.join(map(str, examples[:MAX_EXAMPLES]))}{more}, counted from 0); {kept}"
    )


def out_of_memory(
    step: int, micro_batch: int, folder: Path, saved: int | None, *, divisible: bool = True
) -> TrainingError:
    """What to raise after a step did not fit into memory, which the first ones did, or no batch fits.

    Args:
        step: The step that was not made.
        micro_batch: Rows that a process ran at once.
        folder: Of the checkpoints.
        saved: The step of the newest checkpoint, None if there is none.
        divisible: Whether the rows of a step may be run one part after the other.
    """
    smaller = f"set --optim.per_device_train_batch_size to {max(1, micro_batch // 2)}"
    smaller += ", raise the accumulation in turn" if divisible else ""
    fix = f"{smaller} and {CONTINUE}" if saved is not None else smaller
    if micro_batch == 1:
        fix = "shorten --data.max_length or set --optim.gradient_checkpointing true"
    return TrainingError(f"out of memory at step {step} with {micro_batch} rows at once", where=str(folder), fix=fix)
