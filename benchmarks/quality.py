"""Scores of the strategies' defaults on real data, as a table.

    python -m benchmarks.quality run --checkpoint DIR --data DIR --out runs/quality --seeds 1 2 3 trec6:lora sst2:lora
    python -m benchmarks.quality table --out runs/quality

`--data` holds one folder per data set with train, test and perhaps validation parquet files. A cell whose run is there
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

# Columns where they are not text and label, and settings beyond the strategy's defaults.
DATA_SETS: dict[str, dict[str, Any]] = {
    "trec6": {},
    "sst2": {},
    "scicite": {"evaluation": {"metric": "f1_macro"}},
    "stsb": {
        "data": {"text": "sentence1", "text_pair": "sentence2", "label": "score"},
        "optim": {"learning_rate": 1e-4, "num_train_epochs": 7},
    },
    "goemotions": {"data": {"label": "labels"}, "optim": {"head_learning_rate": 1e-3}},
}
METRICS = {"scicite": "f1_macro", "stsb": "spearman", "goemotions": "f1_macro"}


def recipe_of(data_set: str, strategy: str, seed: int, arguments: argparse.Namespace) -> Recipe:
    """The recipe of one cell."""
    extra = {name: dict(section) for name, section in DATA_SETS[data_set].items()}
    folder = Path(arguments.data) / data_set
    files = {
        split: str(folder / f"{split}.parquet")
        for split in ("train", "validation", "test")
        if (folder / f"{split}.parquet").exists()
    }
    extra["data"] = files | extra.get("data", {})
    return Recipe(
        checkpoint=arguments.checkpoint,
        strategy={"type": strategy},
        seed=seed,
        output_dir=str(Path(arguments.out) / f"{data_set}-{strategy}-{seed}"),
        overwrite=True,
        **extra,
    )


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
    for folder in sorted(Path(arguments.out).glob("*/metrics.json")):
        data_set, strategy, _ = folder.parent.name.split("-")[:3]
        cells.setdefault((data_set, strategy), []).append(Run(folder.parent))
    print(f"Machine: {platform.machine()}, {os.cpu_count()} cores; one thread per run.\n")
    print("| data | strategy | test metric | mean | lowest to highest | seeds | epochs | rate | seconds (median) |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (data_set, strategy), runs in cells.items():
        metric = METRICS.get(data_set, "accuracy")
        scores = [100 * run.metrics["test"][metric] for run in runs]
        seconds = statistics.median(run.metrics["training"]["seconds"] for run in runs)
        optim = runs[0].recipe.optim
        print(
            f"| {data_set} | {strategy} | {metric} | {statistics.mean(scores):.2f} "
            f"| {min(scores):.2f} to {max(scores):.2f} "
            f"| {len(scores)} | {optim.num_train_epochs} | {optim.learning_rate:g} | {seconds:.0f} |"
        )


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    runner = verbs.add_parser("run", help="train cells")
    runner.add_argument("cells", nargs="+", metavar="DATA:STRATEGY")
    runner.add_argument("--checkpoint", required=True)
    runner.add_argument("--data", required=True)
    runner.add_argument("--out", default="runs/quality")
    runner.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    runner.add_argument("--threads", type=int, default=1)
    runner.set_defaults(action=run)
    printer = verbs.add_parser("table", help="print the table")
    printer.add_argument("--out", default="runs/quality")
    printer.set_defaults(action=table)
    arguments = parser.parse_args()
    arguments.action(arguments)


if __name__ == "__main__":
    main()
