"""Scores of the strategies on real data, as a table.

    python -m benchmarks.quality run trec6:lora sst2:lora --checkpoint DIR --data DIR --seeds 1 2 3
    python -m benchmarks.quality table

A cell is a config of recipes/configs/text_classification and a strategy, which trains with its defaults; the config's
own strategy also takes the config's optimisation. `--data` holds the configs' data folders. A cell whose run is there
already is not run again, so an interrupted measurement goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from pathlib import Path
from typing import Any

from hftransfer import Recipe, Run, finetune
from hftransfer.cli.yaml_config import read_yaml

CONFIGS = Path(__file__).parents[1] / "recipes" / "configs" / "text_classification"


def recipe_of(data_set: str, strategy: str, seed: int, arguments: argparse.Namespace) -> Recipe:
    """The recipe of one cell."""
    values: dict[str, Any] = read_yaml(CONFIGS / f"{data_set}.yaml")
    if strategy != values["strategy"]["type"]:
        values |= {"strategy": {"type": strategy}}
        values.pop("optim", None)
    for split in ("train", "validation", "test"):
        if split in values["data"]:
            values["data"][split] = str(Path(arguments.data, *Path(values["data"][split]).parts[1:]))
    values |= {"checkpoint": arguments.checkpoint, "seed": seed, "overwrite": True}
    return Recipe(**values, output_dir=str(Path(arguments.out) / f"{data_set}-{strategy}-{seed}"))


def run(arguments: argparse.Namespace) -> None:
    """Train the cells that have no metrics yet."""
    import torch

    torch.set_num_threads(arguments.threads)
    for cell in arguments.cells:
        data_set, _, strategy = cell.partition(":")
        for seed in arguments.seeds:
            recipe = recipe_of(data_set, strategy, seed, arguments)
            if not (Path(str(recipe.output_dir)) / "metrics.json").exists():
                finetune(recipe)


def table(arguments: argparse.Namespace) -> None:
    """Print a Markdown table of all finished cells: mean and spread over seeds."""
    cells: dict[tuple[str, str], list[Run]] = {}
    for metrics in sorted(Path(arguments.out).glob("*/metrics.json")):
        found = Run(metrics.parent)
        cells.setdefault((metrics.parent.name.split("-")[0], found.recipe.strategy.type), []).append(found)
    print(f"Machine: {platform.machine()}, {os.cpu_count()} cores, {arguments.threads} thread per run.\n")
    print("| data | strategy | test metric | mean | lowest to highest | seeds | epochs | rate |")
    print("|---|---|---|---|---|---|---|---|")
    for (data_set, strategy), runs in cells.items():
        recipe = runs[0].recipe
        metric, optim = str(recipe.evaluation.metric), recipe.optim
        scores = [100 * run.metrics["test"][metric] for run in runs]
        print(
            f"| {data_set} | `{strategy}` | {metric} | {statistics.mean(scores):.2f} "
            f"| {min(scores):.2f} to {max(scores):.2f} "
            f"| {len(scores)} | {optim.num_train_epochs} | {optim.learning_rate:g} |"
        )


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    runner = verbs.add_parser("run", help="train cells")
    runner.add_argument("cells", nargs="+", metavar="DATA:STRATEGY")
    runner.add_argument("--checkpoint", required=True)
    runner.add_argument("--data", required=True)
    runner.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    runner.set_defaults(action=run)
    printer = verbs.add_parser("table", help="print the table")
    for verb in (runner, printer):
        verb.add_argument("--out", default="runs/quality")
        verb.add_argument("--threads", type=int, default=1)
    printer.set_defaults(action=table)
    arguments = parser.parse_args()
    arguments.action(arguments)


if __name__ == "__main__":
    main()
