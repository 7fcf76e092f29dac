"""Cells of a measurement: a config of recipes/configs, a strategy, a checkpoint and a budget."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hftransfer import Recipe
from hftransfer.cli.yaml_config import read_yaml

CONFIGS = Path(__file__).parents[1] / "recipes" / "configs"
USUAL_TASK = "text_classification"
PLAIN_NUMBERS = ("token_loss", "perplexity", "mse")
"""Metrics that are no fractions; the others are printed as percentages."""


class Cell(NamedTuple):
    """One cell: `[TASK/]DATA[:STRATEGY][@CHECKPOINT]`; what is not said is None."""

    task: str
    data_set: str
    strategy: str | None
    checkpoint: str | None

    @classmethod
    def parse(cls, text: str) -> Cell:
        """Read a cell as it is written on the command line."""
        cell, _, checkpoint = text.partition("@")
        config, _, strategy = cell.partition(":")
        task, _, data_set = config.rpartition("/")
        found = cls(task or USUAL_TASK, data_set, strategy or None, checkpoint or None)
        if not found.config.exists():
            known = ", ".join(sorted(f"{path.parent.name}/{path.stem}" for path in CONFIGS.glob("*/*.yaml")))
            raise argparse.ArgumentTypeError(f"no config {found.task}/{data_set}; there are {known}")
        return found

    @property
    def config(self) -> Path:
        """The config file."""
        return CONFIGS / self.task / f"{self.data_set}.yaml"


def add_arguments(parser: argparse.ArgumentParser, seeds: Sequence[int]) -> None:
    """The options of the commands that train cells."""
    parser.add_argument("cells", nargs="+", type=Cell.parse, metavar="[TASK/]DATA[:STRATEGY][@CHECKPOINT]")
    parser.add_argument("--checkpoint", help="of the cells that name none; else that of the config")
    add_budget(parser, seeds)


def add_budget(parser: argparse.ArgumentParser, seeds: Sequence[int]) -> None:
    """The options that say on what and how long to train."""
    parser.add_argument("--data", required=True, help="the folder with the configs' data")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--max_train_examples", type=int, help="train on a random part of this size")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--rate", type=float, help="peak learning rate, one for all layers")
    parser.add_argument("--layer_decay", type=float, help="factor on the rate per block")
    parser.add_argument("--threads", type=int, default=1)


def recipe_of(cell: Cell, seed: int, arguments: argparse.Namespace, out: str | Path) -> Recipe:
    """The recipe of one cell: its config, and the config's optimisation where the strategy is the config's own."""
    values: dict[str, Any] = read_yaml(cell.config)
    strategy = cell.strategy or values["strategy"]["type"]
    if strategy != values["strategy"]["type"]:
        values |= {"strategy": {"type": strategy}}
        values.pop("optim", None)
    for split in ("train", "validation", "test"):
        if split in values["data"]:
            values["data"][split] = str(Path(arguments.data, *Path(values["data"][split]).parts[1:]))
    name = [cell.task, cell.data_set, strategy]
    checkpoint = cell.checkpoint or arguments.checkpoint
    if checkpoint:
        values["checkpoint"] = checkpoint
        name.append(Path(checkpoint).name)
    optim = values.setdefault("optim", {})
    if arguments.epochs:
        optim["num_train_epochs"] = arguments.epochs
        name.append(f"epochs={arguments.epochs}")
    if arguments.rate:
        optim |= {"learning_rate": arguments.rate, "head_learning_rate": arguments.rate, "layer_decay": 1.0}
        name.append(f"rate={arguments.rate:g}")
    if arguments.layer_decay:
        optim["layer_decay"] = arguments.layer_decay
        name.append(f"decay={arguments.layer_decay:g}")
    if arguments.max_train_examples:
        values["data"]["max_train_examples"] = arguments.max_train_examples
        name.append(f"rows={arguments.max_train_examples}")
    return Recipe(**values, seed=seed, overwrite=True, output_dir=str(Path(out, "-".join([*name, str(seed)]))))


def written(metric: str, value: float) -> str:
    """A score as the tables print it."""
    return f"{value:.4f}" if metric in PLAIN_NUMBERS else f"{100 * value:.2f}"


def summary(metric: str, values: Sequence[float]) -> str:
    """Mean, and lowest to highest, of a metric over seeds."""
    low, high = (written(metric, value) for value in (min(values), max(values)))
    return f"{written(metric, statistics.mean(values))} | {low} to {high}"
