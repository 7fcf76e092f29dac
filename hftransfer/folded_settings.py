"""Settings of earlier versions that are part of another one now. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FOLDED = {
    "data.revision": "write it into data.name: ORG/NAME@REVISION",
    "data.train_split": "name all splits in data.splits, such as train,validation,test",
    "data.validation_split": "name all splits in data.splits, such as train,validation,test",
    "data.test_split": "name all splits in data.splits, such as train,validation,test",
    "data.chunk_examples": "give the number to data.streaming",
    "strategy.dora": "set strategy.variant to dora",
    "strategy.rslora": "set strategy.variant to rslora",
    "cache.enabled": "leave it out, or set cache.max_bytes to 0 to switch the cache off",
    "task.class_weights": "set task.balance to classes where it was balanced",
    "task.tune_thresholds": "leave it out, or set evaluation.calibration to temperature to keep thresholds at 0.5",
}
"""Settings of earlier versions -> what says the same now."""

NOW_PART = "is part of another setting now"


def folded_setting(values: Any) -> str | None:
    """The dotted name of the first setting that became part of another one; None if there is none."""
    sections = values if isinstance(values, Mapping) else {}
    return next((name for name in FOLDED if _is_set(sections.get(name.partition(".")[0]), name)), None)


def _is_set(section: Any, name: str) -> bool:
    # Left empty, it was not set.
    return isinstance(section, Mapping) and section.get(name.partition(".")[2]) is not None
