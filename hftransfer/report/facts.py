"""What the report shows beside scores and logs: gathered at the end of a run and kept as report.json, without texts.

Shape legend: N rows, C classes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hftransfer.recipe import Recipe
from hftransfer.tasks.base import Features, Predictions
from hftransfer.tasks.entities import find_entities

if TYPE_CHECKING:
    from datasets import Dataset

FILE = "report.json"
BARS, MOST_CLASSES, WORST, LONGEST_TEXT = 24, 30, 20, 600


def lengths(features: Mapping[str, Features], limit: int | None) -> dict[str, Any]:
    """Histograms of the inputs' lengths in tokens, all splits in the same bars."""
    longest = max(int(part.sequence_lengths.max(initial=1)) for part in features.values())
    width = max(1, -(-longest // BARS))
    edges = np.arange(1, longest + width + 1, width)
    return {
        "limit": limit,
        "width": width,
        "edges": edges[:-1].tolist(),
        "splits": {
            name: {
                "counts": np.histogram(part.sequence_lengths, edges)[0].tolist(),
                "mean": float(part.sequence_lengths.mean()),
                "longest": int(part.sequence_lengths.max(initial=0)),
            }
            for name, part in features.items()
        },
    }


def class_counts(task: Any, features: Mapping[str, Features]) -> dict[str, dict[str, int]]:
    """Split -> how many examples (or entities, or words) each class has; empty for tasks without classes."""
    found: dict[str, dict[str, int]] = {}
    for name, part in features.items():
        labels = part.labels
        if task.type == "token_classification" and part.extra["golds"] is not None:
            golds = part.extra["golds"]
            if task.marks_entities:
                tags = [kind for one in golds for kind, _, _ in find_entities(one)]
            else:
                tags = [tag for one in golds for tag in one]
            found[name] = {kind: tags.count(kind) for kind in task.kinds}
        elif task.type == "text_classification" and task.labels.names and isinstance(labels, np.ndarray):
            first = np.unique(part.example_N, return_index=True)[1]
            one = labels[first]
            counts = one.sum(0) if one.ndim == 2 else np.bincount(one, minlength=len(task.labels.names))
            found[name] = dict(zip(task.labels.names, map(int, counts), strict=True))
    return found


def learning_rates(
    stages: Sequence[Any], groups: Sequence[tuple[list[dict[str, Any]], list[str]]]
) -> list[dict[str, Any]]:
    """For every stage its steps, its boundary, and the peak rate and the number of parameters of each depth.

    A depth that is fitted in one step has the rate None.

    Args:
        stages: As in `Training.stages`.
        groups: As in `Training.groups`.
    """
    table = []
    for current, (of_stage, _) in zip(stages, groups, strict=True):
        depths: dict[int, dict[str, Any]] = {}
        for group in of_stage:
            rate = None if current.stage.objective == "fit" else group["lr"]
            entry = depths.setdefault(group["depth"], {"depth": group["depth"], "rate": rate, "parameters": 0})
            entry["parameters"] += sum(parameter.numel() for parameter in group["params"])
        table.append(
            {
                "stage": current.stage.name,
                "start": current.start,
                "end": current.end,
                "boundary": current.stage.boundary,
                "depths": sorted(depths.values(), key=lambda one: one["depth"]),
            }
        )
    return table


def confusion(task: Any, predictions: Predictions, features: Features) -> list[list[int]] | None:
    """How often each class is taken for each other, rows for the right one; None beyond `MOST_CLASSES` or without."""
    if task.type not in ("text_classification", "token_classification"):
        return None
    found = task.decisions(predictions, features)
    if found is None or found[1].ndim != 1 or found[0].shape[1] > MOST_CLASSES:
        return None
    (logits_NC, labels_N), classes = found, found[0].shape[1]
    flat = np.bincount(labels_N * classes + logits_NC.argmax(-1), minlength=classes * classes)
    return [list(map(int, row)) for row in flat.reshape(classes, classes)]


def class_names(task: Any) -> list[str]:
    """The names of a confusion's rows."""
    return list(task.names if task.type == "token_classification" else task.labels.names)


def worst_examples(
    task: Any,
    recipe: Recipe,
    dataset: Dataset,
    predictions: Predictions,
    features: Features,
    badness_N: NDArray[Any] | None,
) -> list[dict[str, str]]:
    """The examples that went most wrong, with their texts.

    Args:
        task: Decodes predictions.
        recipe: Which columns hold what.
        dataset: The examples.
        predictions: Of these examples.
        features: Of these examples.
        badness_N: How wrong each prediction is; only examples above 0 are shown.
    """
    if badness_N is None:
        return []
    order = [int(place) for place in np.argsort(-badness_N, kind="stable")[:WORST] if badness_N[place] > 0]
    records = task.decode(predictions, features)
    columns = recipe.task.input_columns(recipe.data)
    label = next(iter(recipe.task.label_columns(recipe.data)), None)
    from hftransfer.tasks.labels import column_names

    named = None if label is None or label not in dataset.column_names else column_names(dataset, label)
    return [
        {
            "text": _short(" | ".join(_plain(dataset[row][name]) for name in columns)),
            "right": _short(_plain(named[row])) if named is not None else "",
            "predicted": _short(_predicted(records[row])),
            "badness": f"{float(badness_N[row]):.3g}",
        }
        for row in order
    ]


def _predicted(record: Mapping[str, Any]) -> str:
    """A prediction as a person reads it, with its probability where it has one."""
    value, probabilities = record["prediction"], record.get("probabilities")
    if isinstance(probabilities, dict) and isinstance(value, str):
        return f"{value} ({probabilities[value]:.0%})"
    return _plain(record.get("choice", value))


def _plain(value: Any) -> str:
    """A column's value as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return " ".join(value) if len(value) != 1 else value[0]
    return json.dumps(value, ensure_ascii=False, default=str)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} …"


def machine() -> dict[str, Any]:
    """Peak memory of this process."""
    import torch

    peak = None
    if sys.platform != "win32":
        import resource

        # Linux counts kilobytes, macOS bytes.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return {
        "peak_memory_bytes": peak,
        "peak_gpu_memory_bytes": gpu,
    }
