"""What a run's training did to the task of an earlier run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from hftransfer.caching.states import PlainInputs
from hftransfer.data.load import load_file
from hftransfer.diagnose import retained
from hftransfer.diagnose.backbones import MOST_TEXTS, Subject, plain_model
from hftransfer.diagnose.retained import Measure
from hftransfer.diagnose.watch import Watch
from hftransfer.errors import DataError
from hftransfer.models.backbone import backbone_parameters, check_same_backbone, copied, interpolate, untie_head
from hftransfer.models.load import load_trained
from hftransfer.recipe import Recipe
from hftransfer.run_files import MODEL_FOLDER
from hftransfer.tasks.registry import task_of_model
from hftransfer.training.evaluate import predict
from hftransfer.training.language_model import spread_rows, texts_of

if TYPE_CHECKING:
    from datasets import Dataset


def measure(subject: Subject, folder: Path, recipe: Recipe) -> Measure:
    """The score on an earlier run's test data before and after this run's training.

    Where this run began at the earlier one's weights, the earlier head reads both; else, and that is another question,
    a linear probe is fitted on the backbone of this run's checkpoint and on the trained one.

    Args:
        subject: This run.
        folder: The earlier run's.
        recipe: The earlier run's.

    Raises:
        CheckpointError: If it cannot be read, or is of another architecture.
        DataError: If its data are not there any more, or are not classes for a probe.
    """
    dataset, split = _scored_data(folder, recipe)
    loaded = plain_model(load_trained(folder / MODEL_FOLDER))
    # A head that shares the input embeddings' weights would change with them.
    untie_head(loaded.model)
    parameters = backbone_parameters(loaded.model, loaded.anatomy)
    check_same_backbone(parameters, subject.old, str(folder), "that of this run")
    own = copied(parameters)
    if not all(torch.equal(value, subject.old[name]) for name, value in own.items()):
        return _probed(subject, folder, recipe, dataset, split)
    task = task_of_model(recipe.task, recipe.data, loaded.model.config)
    task.attach(loaded.model, loaded.tokenizer)
    assert recipe.data.max_length is not None
    features = task.encode(dataset, loaded.tokenizer, recipe.data.max_length)
    hits = []
    scores = []
    for share in (0.0, 1.0):
        interpolate(parameters, subject.old, subject.new, share)
        found = predict(loaded.model, task, PlainInputs(task, features))
        scores.append(task.score(found, features)[str(recipe.evaluation.metric)])
        decisions = task.decisions(found, features)
        hits.append(None if decisions is None or decisions[1].ndim != 1 else decisions[0].argmax(1) == decisions[1])
    on = f"{split} data of {folder.name}"
    if hits[0] is not None and hits[1] is not None:
        return retained.of_hits(on, "accuracy of its own head", hits[0], hits[1])
    ratio = retained.share_of_score(str(recipe.evaluation.metric), scores[0], scores[1], str(folder))
    what = f"{recipe.evaluation.metric} of its own head (no interval)"
    return Measure(on, what, scores[0], scores[1], ratio, ratio, ratio, len(dataset))


def _probed(subject: Subject, folder: Path, recipe: Recipe, dataset: Dataset, split: str) -> Measure:
    if recipe.task.type != "text_classification" or getattr(recipe.task, "problem", "") != "single_label":
        raise DataError(
            "this run did not begin at its weights, and its task has no classes for a linear probe",
            where=str(folder),
            fix="leave it out",
        )
    rows = spread_rows(len(dataset), 2 * MOST_TEXTS)
    part = dataset.with_format(None).select(rows)
    _, labels_N = np.unique([str(value) for value in part[recipe.data.label]], return_inverse=True)
    texts = texts_of(part, recipe, len(part))
    if len(texts) != len(labels_N):
        raise DataError("has empty texts", where=str(folder), fix="leave it out")
    on = f"{split} data of {folder.name}, at whose weights this run did not begin"
    (found,) = Watch(subject, (), [(on, texts, labels_N.astype(np.int64))]).at(1.0)
    return found


def _scored_data(folder: Path, recipe: Recipe) -> tuple[Dataset, str]:
    """The test data that a recipe names, else the validation data."""
    for split, path in (("test", recipe.data.test), ("validation", recipe.data.validation)):
        if path is not None:
            where = f"data.{split} of {folder}"
            return load_file(path, where=where, section=recipe.data, labelled=True, task=recipe.task), split
    raise DataError("its recipe names no test data", where=str(folder), fix="train it with --data.test FILE")
