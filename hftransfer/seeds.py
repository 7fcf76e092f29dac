"""Several seeds of one recipe in one process: shared data, features and states; one run folder.

RUN/seeds/13/ ...   a run folder for each seed, without a model
RUN/model/          the model that validation chose; RUN/metrics.json has its scores, and the spread over seeds
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hftransfer import batched_seeds, one_seed
from hftransfer.models.probe import file_hashes
from hftransfer.one_seed import Prepared
from hftransfer.preflight.findings import Report
from hftransfer.report import facts, outcomes
from hftransfer.report.html import write_report
from hftransfer.report.outcomes import Outcomes
from hftransfer.report.statistics import best_of, over_examples_and_seeds, over_seeds
from hftransfer.results import EVALUATED, bounds
from hftransfer.run import Run, create_run
from hftransfer.run_files import LOG_FILE, METRICS_FILE, MODEL_FOLDER, SEEDS_FOLDER, VERDICTS_FOLDER, write_json
from hftransfer.tasks.metrics import greater_is_better
from hftransfer.training import summary
from hftransfer.training.averaging import is_better
from hftransfer.training.loop import Training


def first_of(prepared: Prepared) -> Prepared:
    """The training of the first seed, with the model that was loaded for it."""
    seed = prepared.recipe.training_seeds[0]
    return prepared.of_seed(seed, str(Path(prepared.recipe.output_dir or "") / SEEDS_FOLDER / str(seed)), reload=False)


def train(prepared: Prepared, training: Training, report: Report | None = None) -> Run:
    """Train once per seed, keep the model that validation chooses, and write what all seeds came to.

    Args:
        prepared: Recipe, data, and the model with the first seed's head.
        training: What `one_seed.build` made of the first seed.
        report: What preflight found, to be kept.
    """
    writes = prepared.accelerator.is_main_process
    found = None if report is None else report.as_data()
    run = create_run(prepared.recipe, writes, prepared.lock, found, prepared.verdicts)
    prepared.accelerator.wait_for_everyone()
    chosen = batched_seeds.train(prepared, training, run)
    if chosen is None:
        chosen = _one_by_one(prepared, training, run)
    if writes:
        _write(run, prepared, chosen)
    prepared.accelerator.wait_for_everyone()
    prepared.say(summary.seed_table(run.metrics["seeds"], prepared.recipe.evaluation.metric or ""))
    prepared.say(f"Model: {run.model_folder}  (seed {chosen}, chosen on validation)", f"Report: {run.report_file}")
    return run


def _one_by_one(prepared: Prepared, training: Training, run: Run) -> int:
    """One training after another; the best model so far lies in the run's folder. Returns its seed."""
    metric = prepared.recipe.evaluation.metric
    assert metric is not None
    best, chosen = None, prepared.recipe.training_seeds[0]
    for number, seed in enumerate(prepared.recipe.training_seeds):
        folder = run.folder / SEEDS_FOLDER / str(seed)
        own = prepared.of_seed(seed, str(folder)) if number else first_of(prepared)
        prepared.say(f"Seed {seed} ({number + 1} of {len(prepared.recipe.training_seeds)})")
        part = one_seed.train(own, None if number else training)
        value = part.metrics["validation"][metric]
        value = float("nan") if value is None else value
        better = is_better(value, best, metric)
        best, chosen = (value, seed) if better else (best, chosen)
        if prepared.accelerator.is_main_process:
            if better:
                shutil.rmtree(run.model_folder, ignore_errors=True)
                (folder / MODEL_FOLDER).rename(run.model_folder)
            else:
                shutil.rmtree(folder / MODEL_FOLDER)
        prepared.accelerator.wait_for_everyone()
    return chosen


def _write(run: Run, prepared: Prepared, chosen: int) -> None:
    """The chosen seed's files in the run's folder, with the spread over seeds among the metrics."""
    recipe = prepared.recipe
    assert recipe.evaluation.metric is not None
    parts = {seed: run.folder / SEEDS_FOLDER / str(seed) for seed in recipe.training_seeds}
    metrics = {seed: json.loads((folder / METRICS_FILE).read_text(encoding="utf-8")) for seed, folder in parts.items()}
    for name in (facts.FILE, outcomes.FILE):
        shutil.copyfile(parts[chosen] / name, run.folder / name)
    if (parts[chosen] / VERDICTS_FOLDER).is_dir():
        shutil.copytree(parts[chosen] / VERDICTS_FOLDER, run.folder / VERDICTS_FOLDER, dirs_exist_ok=True)
    kept = {seed: outcomes.load(folder) for seed, folder in parts.items()}
    spread = describe(recipe.evaluation.metric, metrics, kept, chosen)
    seconds = [found["training"]["seconds"] for found in metrics.values()]
    written = {**metrics[chosen], "seeds": spread, "weights": file_hashes(run.model_folder)}
    written["training"] = {**written["training"], "seconds_of_all_seeds": round(sum(seconds), 3)}
    write_json(run.folder / METRICS_FILE, written)
    # The log of the chosen seed is what the card shows.
    shutil.copyfile(parts[chosen] / LOG_FILE, run.folder / LOG_FILE)
    write_report(run.folder)
    run.write_card()


def describe(
    metric: str, metrics: Mapping[int, Mapping[str, Any]], kept: Mapping[int, Mapping[str, Outcomes]], chosen: int
) -> dict[str, Any]:
    """The mean, the spread and the intervals of every score over seeds.

    Args:
        metric: The score that chose.
        metrics: Seed -> its metrics.json.
        kept: Seed -> split -> outcomes.
        chosen: The seed whose model is kept.

    Returns:
        `values`: seed -> split -> score; split -> score -> `mean`, `sd`, `over_seeds` (the interval of the mean) and,
        for the score that chose, `interval` over examples and seeds; `best_of`, the luck in the best seed's lead.
    """
    splits = [split for split in EVALUATED if split in metrics[chosen]]
    seeds = list(metrics)
    found: dict[str, Any] = {
        "chosen": chosen,
        "splits": splits,
        "values": {str(seed): {split: metrics[seed][split] for split in splits} for seed in seeds},
    }
    for split in splits:
        names = metrics[chosen][split]
        found[split] = {name: _over([metrics[seed][split][name] for seed in seeds]) for name in names}
        parts = [kept[seed].get(split) for seed in seeds]
        if all(part is not None and metric in part.scores() for part in parts):
            statistics = [part.statistic(metric) for part in parts if part is not None]
            found[split][metric]["interval"] = bounds(over_examples_and_seeds(statistics))
    if "test" in splits:
        chosen_on, tested_on = ([metrics[seed][split][metric] for seed in seeds] for split in ("validation", "test"))
        if None not in (*chosen_on, *tested_on):
            found["best_of"] = best_of(chosen_on, tested_on, greater_is_better(metric))
    return found


def _over(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean, standard deviation and interval of the mean; NaN where a score is undefined for some seed."""
    numbers = [float("nan") if value is None else value for value in values]
    interval = over_seeds(numbers)
    deviation = float(np.std(numbers, ddof=1))
    return {"mean": interval.value, "sd": deviation, "over_seeds": bounds(interval), "interval": [None, None]}
