"""Train every strategy on the film-review sample and print the README's table.

    python scripts/measure_strategies.py --out runs/strategies

Needs sample/ (scripts/quickstart makes it). Finished strategies are not run again.
"""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path

from hftransfer import Recipe, Run, finetune
from hftransfer.cli.yaml_config import read_yaml

CONFIG = Path("recipes/configs/text_classification/film_reviews.yaml")
STRATEGIES = (
    "feature_extraction",
    "lp_ft",
    "top_layers",
    "gradual_unfreezing",
    "bitfit",
    "ia3",
    "lora",
    "full_fine_tuning",
)


def measure(strategy: str, out: Path, epochs: int) -> Run:
    """The run of one strategy, trained if it is not there yet."""
    folder = out / strategy
    if not (folder / "metrics.json").exists():
        values = read_yaml(CONFIG) | {"strategy": {"type": strategy}, "output_dir": str(folder), "overwrite": True}
        values["optim"] = {"num_train_epochs": epochs}
        finetune(Recipe(**values))
    return Run(folder)


def main() -> None:
    """Measure all strategies and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/strategies"))
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    runs = {strategy: measure(strategy, arguments.out, arguments.epochs) for strategy in STRATEGIES}
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, one seed, {arguments.epochs} epochs.\n")
    print("| strategy | test accuracy | training time | trained parameters |")
    print("|---|---|---|---|")
    for strategy, run in runs.items():
        training = run.metrics["training"]
        share = training["trained_parameters"] / training["parameters"]
        print(
            f"| `{strategy}` | {run.metrics['test']['accuracy']:.1%} | {training['seconds']:.0f} s "
            f"| {training['trained_parameters']:,} ({share:.1%}) |"
        )


if __name__ == "__main__":
    main()
