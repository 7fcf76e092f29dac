"""All checks together: thorough for `hftransfer check`, in seconds before a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from hftransfer.preflight import estimate, model
from hftransfer.preflight.checkpoint import check_checkpoint
from hftransfer.preflight.data import check_data
from hftransfer.preflight.findings import Finding, Report
from hftransfer.preflight.lengths import check_lengths
from hftransfer.preflight.rows import rows_of_splits
from hftransfer.preflight.swapped import swapped_labels
from hftransfer.training.assembled import Assembled
from hftransfer.training.checkpoint_files import checkpoints
from hftransfer.training.distributed import kind_of


def preflight(ready: Assembled, *, thorough: bool) -> Report:
    """Check a training that is ready to start; afterwards it is as it was, bit for bit.

    The main process checks, and all processes get what it found.

    Args:
        ready: Recipe, data, model and loop.
        thorough: Look for near duplicates in large data, take more steps and estimate the time.
    """
    accelerator = ready.training.accelerator
    report = [_report(ready, thorough) if accelerator.is_main_process else None]
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(report)
    assert report[0] is not None
    return report[0]


def preflight_of_run(ready: Assembled, say: Callable[..., Any]) -> Report | None:
    """What a run checks before it starts, as its recipe says; None where it does not, or goes on from a checkpoint.

    Args:
        ready: Recipe, data, model and loop.
        say: Prints for the user.

    Raises:
        TrainingError: At errors, and if the recipe is strict at warnings.
    """
    recipe, folder = ready.recipe, ready.training.saving.state.folder
    if recipe.preflight == "off" or (recipe.resume != "never" and checkpoints(folder)):
        return None
    report = preflight(ready, thorough=False)
    serious = report.of("error", "warning")
    say(report.table("error", "warning") if serious else report.summary())
    report.refuse(strict=recipe.preflight == "strict")
    return report


def _report(ready: Assembled, thorough: bool) -> Report:
    started = time.perf_counter()
    recipe, training = ready.recipe, ready.training
    problem = getattr(recipe.task, "problem", None)
    rows = rows_of_splits(ready.splits, recipe, problem)
    found = check_data(rows, recipe, problem, thorough=thorough)
    if problem == "single_label":
        found += swapped_labels(rows)
    del rows
    found += check_checkpoint(ready.loaded, training.task, str(training.accelerator.mixed_precision))
    found += check_lengths(ready.features, recipe, ready.loaded.tokenizer)
    found += _model_findings(ready, thorough)
    return Report(tuple(found), time.perf_counter() - started)


def _model_findings(ready: Assembled, thorough: bool) -> list[Finding]:
    """What a few steps show, and what the training will need."""
    training = ready.training
    if not model.can_probe(training):
        what = f"gradients are not checked: {kind_of(training.accelerator)} shares the weights out"
        return [
            Finding("model_skipped", "note", what, "model", "check the recipe on one device, with a small checkpoint")
        ]
    try:
        probes = model.probe_stages(training, thorough=thorough)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        what = "the memory does not suffice for one batch"
        fix = "lower --optim.per_device_train_batch_size, or --optim.gradient_checkpointing"
        return [Finding("out_of_memory", "warning", what, "device", fix)]
    return [*model.judge(training, probes), *estimate.check_cost(ready, probes, timed=thorough)]
