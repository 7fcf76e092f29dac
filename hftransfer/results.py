"""What a training leaves behind: its scores with intervals, calibration, predictions, the model, and the report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from hftransfer.data.load import Splits
from hftransfer.models.load import LoadedModel
from hftransfer.models.source import split_revision
from hftransfer.recipe import Recipe
from hftransfer.report import baselines, facts, outcomes
from hftransfer.report.html import write_report
from hftransfer.report.statistics import LEVEL, RESAMPLES, Interval
from hftransfer.run import Run
from hftransfer.run_files import METRICS_FILE, write_json
from hftransfer.tasks.base import Features, Predictions, Task
from hftransfer.training import calibration, prepare
from hftransfer.training import facts as run_facts
from hftransfer.training.calibration import Calibration
from hftransfer.training.drift import Drift
from hftransfer.training.drift_verdict import of_drift
from hftransfer.verdicts import write_verdict

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn

    from hftransfer.training.loop import Training

EVALUATED = ("validation", "test")


@dataclass
class Results:
    """How a trained model does on validation and test data.

    Attributes:
        scores: Split -> metrics.
        outcomes: Split -> what every example came to; none where the task has no such thing.
        predictions: Split -> predictions.
        calibration: What was folded into the head.
        carbon: What the training emitted, where that was measured.
        weights: The SHA-256 of the saved weights and vocabularies, by file name.
        drift: How far the backbone moved; None where it did not learn.
        seconds: What predicting and scoring took.
    """

    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    outcomes: dict[str, outcomes.Outcomes] = field(default_factory=dict)
    predictions: dict[str, Predictions] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=Calibration)
    carbon: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    drift: Drift | None = None
    seconds: float = 0.0

    def intervals(self, metric: str) -> dict[str, Any]:
        """For metrics.json: split -> score -> [low, high], and how they were made."""
        found: dict[str, Any] = {
            split: {name: bounds(interval) for name, interval in part.intervals(metric).items()}
            for split, part in self.outcomes.items()
        }
        return {**found, "level": LEVEL, "resamples": RESAMPLES, "over": "examples"}


def bounds(interval: Interval) -> list[float]:
    """Low and high of an interval."""
    return [interval.low, interval.high]


@dataclass(frozen=True)
class Data:
    """The data of a run, as rows and as features, and the hashes of the evaluated rows."""

    splits: Splits
    features: Mapping[str, Features]
    rows: dict[str, Any] = field(default_factory=dict)
    rivals: dict[str, dict[str, float]] = field(default_factory=dict)
    beside: Sequence[str] = ()
    """Columns that the model neither reads nor learns from: runs with and without them have the same test rows."""

    def baselines(self, recipe: Recipe, task: Task) -> dict[str, dict[str, float]]:
        """Scores of simple predictors on the split that counts, computed once."""
        if not self.rivals:
            last = self.evaluated[-1]
            train, test = (self.splits.train, self.features["train"]), (getattr(self.splits, last), self.features[last])
            self.rivals.update(baselines.baselines(task, recipe.data, train, test, recipe.seed))
        return self.rivals

    def row_hashes(self, split: str) -> Any:
        """The hashes of a split's rows, computed once."""
        if split not in self.rows:
            self.rows[split] = outcomes.row_hashes(self._compared(split))
        return self.rows[split]

    def _compared(self, split: str) -> Dataset:
        """A split without what lies beside."""
        dataset: Dataset = getattr(self.splits, split)
        return dataset.remove_columns([name for name in self.beside if name in dataset.column_names])

    @property
    def evaluated(self) -> list[str]:
        """The splits that are scored, validation first."""
        return [split for split in EVALUATED if split in self.features]


def score(
    recipe: Recipe,
    task: Task,
    data: Data,
    model: nn.Module,
    predict: Callable[[str], Predictions],
    *,
    sharded: bool = False,
) -> Results:
    """Calibrate on validation data, then score every split with exactly these weights; the test data are read once.

    Args:
        recipe: What to calibrate.
        task: Scores predictions.
        data: The data.
        model: The trained model; calibration is folded into its head.
        predict: Predicts a split with the model as it is then.
        sharded: Whether the model's weights are spread over processes.
    """
    started, found = time.perf_counter(), Results()
    for split in data.evaluated:
        predictions, features = predict(split), data.features[split]
        if split == "validation":
            task.calibrate(predictions, features, thresholds=recipe.evaluation.tunes_thresholds)
            found.calibration, predictions = calibration.calibrate(
                recipe, model, task, predictions, features, sharded=sharded
            )
        found.predictions[split] = predictions
        found.scores[split] = task.score(predictions, features)
    found.seconds = time.perf_counter() - started
    return found


def describe(task: Task, data: Data, found: Results) -> None:
    """Add what every example came to, and the reliability of every split."""
    for split in data.evaluated:
        outcome = task.outcomes(found.predictions[split], data.features[split])
        if outcome is not None:
            kind, names, arrays = outcome
            found.outcomes[split] = outcomes.Outcomes(kind, names, data.row_hashes(split), arrays)
    found.calibration = calibration.compare(found.calibration, task, found.predictions, data.features)


def save(run: Run, recipe: Recipe, task: Task, loaded: LoadedModel, model: nn.Module) -> dict[str, str]:
    """Save the model as a plain Hugging Face folder; the SHA-256 of its weights and vocabularies by file name."""
    return run_facts.save_trained(model, task, loaded, recipe, run.model_folder)


def write(run: Run, training: Training, recipe: Recipe, data: Data, found: Results) -> None:
    """Write predictions, metrics and the report of one training; called on the main process alone."""
    started, task = time.perf_counter(), training.task
    describe(task, data, found)
    assert recipe.evaluation.metric is not None
    outcomes.save(found.outcomes, run.folder)
    written: dict[str, Any] = {
        **found.scores,
        "intervals": found.intervals(recipe.evaluation.metric),
        "calibration": asdict(found.calibration),
        "baselines": data.baselines(recipe, task),
        "training": {**training.facts(), "scoring_seconds": round(found.seconds, 3)},
        "truncation": prepare.truncation_facts(data.features),
        "data": run_facts.data_facts(task, data.features),
        "environment": run_facts.environment_facts(training.accelerator),
        "weights": found.weights,
        "base_revision": run_facts.commit_of(*split_revision(recipe.checkpoint)),
        # Relative to this working folder: elsewhere the same names could be a stranger's on the Hub.
        "base_is_folder": os.path.isdir(split_revision(recipe.checkpoint)[0]),
        "data_is_folder": os.path.isdir(recipe.data.name or ""),
    }
    if found.carbon:
        written["carbon"] = found.carbon
    written["training"]["report_seconds"] = round(time.perf_counter() - started, 3)
    write_json(run.folder / METRICS_FILE, written)
    write_json(run.folder / facts.FILE, report_facts(training, recipe, data, found))
    if found.drift is not None:
        write_verdict(run.folder, of_drift(found.drift))
    write_report(run.folder)


def report_facts(training: Training, recipe: Recipe, data: Data, found: Results) -> dict[str, Any]:
    """What the report shows beside scores and logs."""
    task, last = training.task, data.evaluated[-1]
    shown: dict[str, Any] = {
        "split": last,
        "kind": found.outcomes[last].kind if last in found.outcomes else task.type,
        "metric": recipe.evaluation.metric,
        "lengths": facts.lengths(data.features, recipe.data.max_length),
        "classes": facts.class_counts(task, data.features),
        "rates": facts.learning_rates(training.stages, training.groups),
        "machine": facts.machine(),
    }
    matrix = facts.confusion(task, found.predictions[last], data.features[last])
    if matrix is not None:
        shown["confusion"] = {"names": facts.class_names(task), "counts": matrix}
    if recipe.report_examples and last in found.outcomes:
        dataset, badness_N = getattr(data.splits, last), found.outcomes[last].badness()
        shown["examples"] = facts.worst_examples(
            task, recipe, dataset, found.predictions[last], data.features[last], badness_N
        )
    return shown
