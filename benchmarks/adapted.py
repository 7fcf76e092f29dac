"""Does adapting a model to the texts of a task help the task? Masked language modelling on SciCite, then its classes.

    python -m benchmarks.adapted --checkpoint DIR --data DIR --seeds 1 2 3 4 5

Adapts the checkpoint to SciCite's training texts (masked_lm/scicite), prints its masked-token loss on the test texts
before and after, then trains text_classification/scicite from the untouched and from the adapted checkpoint with every
seed. The interval of the difference comes from resampling test rows, the same for all models, and seeds, in pairs: a
seed stands for the same data order under both. Finished runs are not run again.

Shape legend: S seeds, N test rows, C classes, R resamples.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray

from benchmarks import cells
from benchmarks.beside import scores_as
from hftransfer import Run, finetune, predict
from hftransfer.recipe import Recipe

RESAMPLES = 5000


@dataclass(frozen=True)
class Difference:
    """A mean difference of macro-F1 and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def macro_f1(
    gold_N: NDArray[np.int64], guessed_N: NDArray[np.int64], weights_N: NDArray[np.int64], classes: int
) -> float:
    """Macro-F1 of rows that count as often as their weights say; a class that is nowhere scores 0."""
    table_CC = np.bincount(gold_N * classes + guessed_N, weights_N, classes * classes).reshape(classes, classes)
    both_C = table_CC.sum(0) + table_CC.sum(1)
    return float(np.mean(2 * table_CC.diagonal() / np.maximum(both_C, 1)))


def paired_difference(
    gold_N: NDArray[np.int64],
    before_SN: NDArray[np.int64],
    after_SN: NDArray[np.int64],
    classes: int,
    resamples: int = RESAMPLES,
) -> Difference:
    """Mean macro-F1 after minus before, with a percentile interval over rows and seeds.

    Args:
        gold_N: Right classes.
        before_SN: Predicted classes of each seed.
        after_SN: Likewise, of the other model.
        classes: How many there are.
        resamples: How many times to draw.
    """
    rng = np.random.default_rng(0)
    seeds, rows = before_SN.shape

    def difference(weights_N: NDArray[np.int64], seed: int) -> float:
        after, before = (macro_f1(gold_N, guessed_SN[seed], weights_N, classes) for guessed_SN in (after_SN, before_SN))
        return after - before

    ones_N = np.ones(rows, np.int64)
    drawn = []
    for _ in range(resamples):
        weights_N = np.bincount(rng.integers(rows, size=rows), minlength=rows)
        by_seed = [difference(weights_N, seed) for seed in range(seeds)]
        drawn.append(np.mean([by_seed[seed] for seed in rng.integers(seeds, size=seeds)]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Difference(statistics.mean(difference(ones_N, seed) for seed in range(seeds)), float(low), float(high))


def finished(recipe: Recipe) -> Run:
    """The run of a recipe, trained if it is not there."""
    run = Run(str(recipe.output_dir))
    return run if (run.folder / "metrics.json").exists() else finetune(recipe)


def adapt(arguments: argparse.Namespace) -> Run:
    """The adapted model, and what it lost on the test texts."""
    cell = cells.Cell.parse(f"masked_lm/scicite@{arguments.checkpoint}")
    recipe = cells.recipe_of(cell, arguments.seeds[0], arguments, arguments.out)
    run = finished(recipe)
    resolved, texts = run.recipe, Dataset.from_parquet(str(recipe.data.test))
    before = scores_as(
        arguments.checkpoint,
        resolved.task,
        resolved.data,
        texts,
        {"hftransfer_max_length": resolved.data.max_length},
    )
    for when, scores in (("before", before), ("after", run.metrics["test"])):
        print(
            f"masked-token loss on test texts {when}: {scores['token_loss']:.4f} (hits {scores['masked_accuracy']:.1%})"
        )
    return run


def classify(checkpoint: str, arguments: argparse.Namespace, out: Path) -> tuple[list[float], list[list[str]]]:
    """Test macro-F1 and predicted classes of every seed."""
    scores, guessed = [], []
    for seed in arguments.seeds:
        cell = cells.Cell.parse(f"text_classification/scicite@{checkpoint}")
        run = finished(cells.recipe_of(cell, seed, arguments, out))
        test = Dataset.from_parquet(str(run.recipe.data.test)).select_columns([run.recipe.data.text])
        scores.append(run.metrics["test"]["f1_macro"])
        guessed.append([record["prediction"] for record in predict(run, data=test, text=run.recipe.data.text)])
    return scores, guessed


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    cells.add_budget(parser, seeds=(1, 2, 3, 4, 5))
    parser.add_argument("--out", default="runs/adapted")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    adapted, out = adapt(arguments), Path(arguments.out)
    golds = Dataset.from_parquet(str(Path(arguments.data, "scicite", "test.parquet")))["label"][:]
    names = {name: number for number, name in enumerate(sorted(set(golds)))}
    found = {}
    for what, checkpoint in (("untouched", arguments.checkpoint), ("adapted", str(adapted.model_folder))):
        scores, guessed = classify(checkpoint, arguments, out / what)
        found[what] = np.asarray([[names[name] for name in row] for row in guessed])
        spread = f" (standard deviation {100 * statistics.stdev(scores):.2f})" if len(scores) > 1 else ""
        print(f"{what}: macro-F1 {cells.summary('f1_macro', scores).replace('|', 'on average,')}{spread}")
    gold_N = np.asarray([names[name] for name in golds])
    gain = paired_difference(gold_N, found["untouched"], found["adapted"], len(names))
    print(
        f"adapted minus untouched: {100 * gain.mean:+.2f} points, "
        f"95 % interval {100 * gain.low:+.2f} to {100 * gain.high:+.2f}"
    )


if __name__ == "__main__":
    main()
