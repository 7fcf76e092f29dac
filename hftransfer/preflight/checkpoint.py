"""Checks of what a checkpoint says of itself: the labels of its head and their order, the precision of its weights."""

from __future__ import annotations

import re
from typing import Any

from transformers import AutoConfig

from hftransfer.models.load import LoadedModel
from hftransfer.preflight.findings import Finding
from hftransfer.strategies.freezing import transformers_model
from hftransfer.tasks.base import Task

_UNNAMED = re.compile(r"LABEL_\d+")
SHOWN = 6


def check_checkpoint(loaded: LoadedModel, task: Task, precision: str) -> list[Finding]:
    """Compare a checkpoint's config with the task.

    Args:
        loaded: The checkpoint with the task's head.
        task: The task.
        precision: As Accelerate says it: "no", "bf16", "fp16".
    """
    config: Any = AutoConfig.from_pretrained(loaded.checkpoint, revision=loaded.revision)
    return [*_labels(config, loaded, task), *_precision(config, loaded, precision)]


def _labels(config: Any, loaded: LoadedModel, task: Task) -> list[Finding]:
    """A head of the same kind whose labels are called otherwise, or stand in another order, is lost: say so."""
    wanted = [str(name) for name in task.config_overrides().get("id2label", {}).values()]
    theirs = [str(config.id2label[number]) for number in sorted(config.id2label or {})]
    same_class = type(transformers_model(loaded.model)).__name__ in (config.architectures or ())
    if not wanted or not same_class or all(map(_UNNAMED.fullmatch, theirs)):
        return []
    facts = {"checkpoint": theirs, "data": wanted}
    if wanted == theirs:
        return [
            Finding("head_kept", "note", "its head knows these labels in this order and is trained on", "checkpoint")
        ]
    shown = f"{_shown(theirs)} in the checkpoint, {_shown(wanted)} in the data"
    fix = "for its head declare the data's label column as a ClassLabel with the checkpoint's names in their order"
    folded = [[name.strip().casefold() for name in names] for names in (wanted, theirs)]
    if sorted(folded[0]) == sorted(folded[1]):
        what = "in another order" if folded[0] != folded[1] else "spelt otherwise"
        return [
            Finding(
                "label_order",
                "warning",
                f"the labels are {what}: {shown}; a new head is trained",
                "checkpoint",
                fix,
                facts,
            )
        ]
    if len(wanted) == len(theirs) and all(name.isdigit() for name in wanted):
        what = f"the labels are numbers, and its head has names: {shown}; a new head is trained"
        return [Finding("label_names", "warning", what, "checkpoint", fix, facts)]
    what = f"its head has other labels: {shown}; a new head is trained"
    return [Finding("other_labels", "note", what, "checkpoint", "", facts)]


def _precision(config: Any, loaded: LoadedModel, precision: str) -> list[Finding]:
    """What the weights were stored in, and whether fp16 holds their range."""
    stored = str(getattr(config, "dtype", None) or "").removeprefix("torch.")
    found = []
    if stored in ("float16", "bfloat16"):
        what = f"stored in {stored}; loaded in fp32, so that small steps are not lost"
        found.append(Finding("half_precision_checkpoint", "note", what, "checkpoint", "", {"dtype": stored}))
    if precision == "fp16" and (stored == "bfloat16" or config.model_type == "t5"):
        what = f"{config.model_type} weights in bf16 range may overflow to NaN in fp16"
        found.append(Finding("fp16_range", "warning", what, "precision", "launch with --mixed_precision bf16 or no"))
    return found


def _shown(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
