"""Soften a run: draw task score against retention, choose a point, and write the model there (docs/forgetting.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hftransfer.diagnose.backbones import Subject, read_labelled, read_texts
from hftransfer.diagnose.softening import Examined, Point, choose, curve, refined
from hftransfer.diagnose.watch import Watch
from hftransfer.errors import DataError
from hftransfer.models.source import split_revision
from hftransfer.recipe import Recipe
from hftransfer.run_files import CARD_FILE, METRICS_FILE, write_json, write_whole
from hftransfer.tasks.metrics import greater_is_better
from hftransfer.training.facts import save_trained
from hftransfer.verdicts import Line, LineChart, Verdict, VerdictTable

KEY, TITLE = "soften", "Softened"


def soften(
    folder: Path,
    recipe: Recipe,
    output: Path,
    *,
    retain: float,
    general: str | None = None,
    reference_tasks: Sequence[str] = (),
    text: str = "text",
    label: str = "label",
) -> Verdict:
    """Write the model at the best-scoring point that retains enough, and say what the curve looks like.

    Args:
        folder: The run's folder.
        recipe: Its recipe.
        output: The new folder.
        retain: How much is to be retained, of everything that is looked at.
        general: File with general text, for a checkpoint with its language-modelling head.
        reference_tasks: Labelled files for linear probes.
        text: Column with the text in these files.
        label: Column with the label.

    Raises:
        DataError: If there is nothing to measure retention on, or a file or the run's data cannot be read.
        CheckpointError: If the run or its checkpoint cannot be read, or its update cannot be scaled.
    """
    if general is None and not reference_tasks:
        raise DataError(
            "nothing to measure retention on", where="soften", fix="name a file with --general or --reference_tasks"
        )
    texts = [("general text", read_texts(general, "--general", text))] if general is not None else []
    tasks = [(Path(path).name, *read_labelled(path, "--reference_tasks", text, label)) for path in reference_tasks]
    subject = Subject.load(folder, recipe)
    if texts and subject.language is None:
        raise DataError(
            "the checkpoint has no language-modelling head to read it with",
            where="--general",
            fix="name labelled files with --reference_tasks",
        )
    examined = Examined.load(folder, recipe, subject.old)
    watch = Watch(subject, texts, tasks)
    points = curve(examined, watch)
    points += curve(examined, watch, refined(points, retain))
    points.sort(key=lambda point: point.share)
    chosen = choose(points, retain, examined.metric)
    examined.softened.put(chosen.share)
    scores = {split: examined.scores(split) for split in examined.features}
    _save(examined, recipe, folder, output, chosen, scores)
    return _verdict(examined.metric, points, chosen, retain, scores, output)


def _save(
    examined: Examined, recipe: Recipe, folder: Path, output: Path, chosen: Point, scores: dict[str, dict[str, float]]
) -> None:
    """Write the model as it is now, its scores and a card."""
    name, revision = split_revision(recipe.checkpoint)
    loaded = replace(examined.softened.loaded, checkpoint=name, revision=revision)
    hashes = save_trained(loaded.model, examined.task, loaded, recipe, output)
    about = {"share": chosen.share, "retained": chosen.retained, "of": folder.name}
    write_json(output / METRICS_FILE, {**scores, "softened": about, "weights": hashes})
    lines = [f"- {split} {examined.metric}: {part[examined.metric]:.4f}" for split, part in scores.items()]
    about_it = (
        f"The model of the run {folder.name}, trained from {Path(name).name}, with its backbone at {chosen.share:.0%} "
        "of the way from the pretrained weights to the trained ones (WiSE-FT, arXiv:2109.01903). Its head is the "
        f"trained one. It retains {chosen.retained:.3f} of what was measured."
    )
    card = [f"# {output.name}", "", about_it, "", *lines, ""]
    write_whole(output / CARD_FILE, "\n".join(card))


def _verdict(
    metric: str,
    points: Sequence[Point],
    chosen: Point,
    retain: float,
    scores: dict[str, dict[str, float]],
    output: Path,
) -> Verdict:
    trained = next(point for point in points if point.share == 1.0)
    split = "test" if "test" in scores else "validation"
    words = [
        f"With its backbone at {chosen.share:.0%} of the way from the pretrained to the trained weights the model "
        f"retains {chosen.retained:.3f}; the trained one retains {trained.retained:.3f}.",
        f"On validation data its {metric} is {chosen.score:.4f}, that of the trained model {trained.score:.4f}.",
        f"The softened model scores {scores[split][metric]:.4f} on the {split} data; it is in {output.name}.",
    ]
    if chosen.share == 0.0:
        words.append(
            f"No point of the curve retains {retain:g} and scores better than the trained head on the pretrained "
            "backbone, which is what was written: ask for less, or train with a remedy."
        )
    return Verdict(
        key=KEY,
        title=TITLE,
        words=words,
        warns=chosen.share == 0.0,
        tables=[_table(metric, points, chosen)],
        charts=_charts(metric, points, chosen),
    )


def _table(metric: str, points: Sequence[Point], chosen: Point) -> VerdictTable:
    names = [measure.on for measure in points[0].measures]
    rows = [
        [
            f"{point.share:g}" + (" (chosen)" if point is chosen else ""),
            "undefined" if math.isnan(point.score) else f"{point.score:.4f}",
            *(f"{measure.retained:.3f}" for measure in point.measures),
        ]
        for point in points
    ]
    return VerdictTable(
        caption="From the pretrained backbone (0) to the trained one (1): validation score, and what is retained",
        head=["share", metric, *(f"retained, {name}" for name in names)],
        rows=rows,
    )


def _charts(metric: str, points: Sequence[Point], chosen: Point) -> list[LineChart]:
    by_share = [(point.share, None if math.isnan(point.score) else point.score) for point in points]
    retained: list[tuple[float, float | None]] = [(point.share, point.retained) for point in points]
    better = "higher" if greater_is_better(metric) else "lower"
    description = "By the share of the way from the pretrained to the trained backbone."
    ordered: list[Any] = sorted(points, key=lambda point: point.retained)
    finite = [(point.retained, point.score) for point in ordered if not np.isnan(point.score)]
    score = Line(name=metric, points=by_share, ringed=chosen.share)
    kept = Line(name="retained", points=retained, ringed=chosen.share)
    against = Line(name=metric, points=finite, ringed=chosen.retained)
    return [
        LineChart(
            title="Task score against retention",
            description=f"Each point is one share; the ring is the chosen one; {better} is better.",
            lines=[against],
            x_label="retained",
            y_label=f"validation {metric}",
        ),
        LineChart(
            title="Task score", description=description, lines=[score], x_label="share", y_label=f"validation {metric}"
        ),
        LineChart(title="Retained", description=description, lines=[kept], x_label="share", y_label="retained"),
    ]


def is_softened(folder: Path) -> bool:
    """Whether a folder is a model that `soften` wrote, and may write again."""
    try:
        return "softened" in json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
