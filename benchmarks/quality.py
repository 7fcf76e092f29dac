"""Scores of the strategies on real data, as a table.

    python -m benchmarks.quality run trec6:lora sst2:lora --checkpoint DIR --data DIR --seeds 1 2 3
    python -m benchmarks.quality run token_classification/snips seq2seq/multi30k_en_de:lora@DIR_OF_T5 --data DIR
    python -m benchmarks.quality table

A cell is a config of recipes/configs and a strategy, which trains with its defaults; the config's own strategy also
takes the config's optimisation. `--data` holds the configs' data folders. A cell whose run is there already is not run
again, so an interrupted measurement goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections import defaultdict
from pathlib import Path

from benchmarks import cells
from hftransfer import Run, finetune


def run(arguments: argparse.Namespace) -> None:
    """Train the cells that have no metrics yet."""
    import torch

    torch.set_num_threads(arguments.threads)
    for cell in arguments.cells:
        for seed in arguments.seeds:
            recipe = cells.recipe_of(cell, seed, arguments, arguments.out)
            if not (Path(str(recipe.output_dir)) / "metrics.json").exists():
                finetune(recipe)


def table(arguments: argparse.Namespace) -> None:
    """Print a Markdown table of all finished cells: mean and spread over seeds."""
    found: dict[str, list[Run]] = defaultdict(list)
    for metrics in sorted(Path(arguments.out).glob("*/metrics.json")):
        found[metrics.parent.name.rpartition("-")[0]].append(Run(metrics.parent))
    print(f"Machine: {platform.machine()}, {os.cpu_count()} cores, {arguments.threads} thread per run.\n")
    names = ("task", "data", "strategy", "checkpoint", "test metric", "mean", "lowest to highest", "seeds", "rows")
    names += ("epochs", "rate")
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for runs in found.values():
        recipe = runs[0].recipe
        metric, optim = str(recipe.evaluation.metric), recipe.optim
        data_set = Path(str(recipe.data.train)).parent.name
        print(
            f"| {recipe.task.type} | {data_set} | `{recipe.strategy.type}` | {Path(recipe.checkpoint).name} | {metric} "
            f"| {cells.summary(metric, [one.metrics['test'][metric] for one in runs])} | {len(runs)} "
            f"| {runs[0].metrics['training']['train_examples']:,} | {optim.num_train_epochs} "
            f"| {optim.learning_rate:g} |"
        )


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    runner = verbs.add_parser("run", help="train cells")
    cells.add_arguments(runner, seeds=(1, 2, 3))
    runner.set_defaults(action=run)
    printer = verbs.add_parser("table", help="print the table")
    printer.add_argument("--threads", type=int, default=1)
    printer.set_defaults(action=table)
    for verb in (runner, printer):
        verb.add_argument("--out", default="runs/quality")
    arguments = parser.parse_args()
    arguments.action(arguments)


if __name__ == "__main__":
    main()
