"""What more optimizer steps, or other rates of layers and head, do where there are few examples.

    python -m benchmarks.schedules run trec6:50 sst2:200 --checkpoint DIR --data DIR --variants full_fine_tuning \\
        full_fine_tuning,steps=100,layer_decay=1.0
    python -m benchmarks.schedules table

A variant is a strategy with its defaults and what else is said. `steps` asks for at least so many, by smaller batches
first and more epochs then, as the defaults do; 0 leaves batches of 32 and the usual epochs. Cells are those of
`benchmarks.regret`. What is measured already is not measured again.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import records
from benchmarks.regret import Cell, key_of, read_rows, recipe_values, train_one
from benchmarks.regret_table import interval_over_data_sets

RESULTS = Path(__file__).parent / "results" / "schedules.jsonl"
RATES = ("layer_decay", "head_learning_rate")


class Variant(NamedTuple):
    """`STRATEGY[,steps=N][,layer_decay=X][,head_learning_rate=X]`."""

    strategy: str
    steps: int
    rates: tuple[tuple[str, float], ...]

    @classmethod
    def parse(cls, text: str) -> Variant:
        """Read a variant as it is written on the command line."""
        strategy, *settings = text.split(",")
        values = dict(setting.split("=", 1) for setting in settings if "=" in setting)
        if len(values) < len(settings) or values.keys() - {"steps", *RATES}:
            raise argparse.ArgumentTypeError(f"{text}: write {cls.__doc__}")
        rates = tuple((name, float(values[name])) for name in RATES if name in values)
        return cls(strategy, int(values.get("steps", 0)), rates)

    def __str__(self) -> str:
        return ",".join([self.strategy, f"steps={self.steps}", *(f"{name}={value:g}" for name, value in self.rates)])

    def settings(self, train_examples: int) -> dict[str, Any]:
        """The settings of strategy, optimisation and evaluation; as many evaluations as with the usual epochs."""
        from hftransfer.training.defaults import STRATEGY_DEFAULTS
        from hftransfer.training_settings import USUAL_BATCH, enough_steps, optimizer_steps

        usual = STRATEGY_DEFAULTS[self.strategy].num_train_epochs
        optim: dict[str, Any] = {"num_train_epochs": usual, "per_device_train_batch_size": USUAL_BATCH}
        optim |= enough_steps(train_examples, usual, enough=self.steps)
        steps = optimizer_steps(train_examples, optim["num_train_epochs"], optim["per_device_train_batch_size"])
        optim |= dict(self.rates)
        evaluation = {"every": math.ceil(steps / usual)}
        return {"strategy": {"type": self.strategy}, "optim": optim, "evaluation": evaluation}


def run(arguments: argparse.Namespace) -> None:
    """Train what has no result yet; every variant of a cell and a seed before the next."""
    import torch

    torch.set_num_threads(1)
    done = {(*map(str, _cell(line)), line["variant"]) for line in records.read(arguments.results)}
    for seed in arguments.seeds:
        for cell in arguments.cells:
            key = key_of(cell, arguments.checkpoint, seed)
            train, test = read_rows(arguments.data, cell, seed)
            for variant in arguments.variants:
                if (*map(str, key.values()), str(variant)) in done:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    values = recipe_values(cell, arguments.checkpoint, seed, folder)
                    values |= variant.settings(round(0.9 * len(train)))
                    found = train_one(values, train, test)
                records.add(arguments.results, {**key, "variant": str(variant), **found})
                print(*key.values(), variant, f"{found['score']:.4f}", f"{found['seconds']:.1f} s", flush=True)


def _cell(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line[name] for name in ("data_set", "examples", "checkpoint", "seed"))


def table(arguments: argparse.Namespace) -> None:
    """Print a Markdown table: every variant against the one of its strategy that comes first."""
    scores: dict[tuple[str, int], dict[str, dict[tuple[str, int], float]]] = defaultdict(lambda: defaultdict(dict))
    for line in records.read(arguments.results):
        place = line["data_set"], line["seed"]
        scores[line["checkpoint"], line["examples"]][line["variant"]][place] = 100 * line["score"]
    print("| checkpoint | examples | variant | data sets, seeds | mean accuracy | gain on the first (95 %) |")
    print(f"|{'---|' * 6}")
    for (checkpoint, examples), variants in sorted(scores.items()):
        first: dict[str, str] = {}
        for variant, found in variants.items():
            base = variants[first.setdefault(variant.partition(",")[0], variant)]
            gains = {place: found[place] - base[place] for place in sorted(found.keys() & base.keys())}
            low, high = interval_over_data_sets(gains)
            shown = f"{statistics.mean(gains.values()):+.1f} ({low:+.1f} to {high:+.1f})" if found is not base else ""
            counts = f"{len({data_set for data_set, _ in gains})}, {len({seed for _, seed in gains})}"
            mean = statistics.mean(found.values())
            print(f"| {checkpoint} | {examples:,} | {variant} | {counts} | {mean:.1f} | {shown} |")


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    runner = verbs.add_parser("run", help="train every variant")
    runner.add_argument("cells", nargs="+", type=Cell.parse, metavar="DATA:EXAMPLES[@CHECKPOINT]")
    runner.add_argument("--checkpoint", help="of the cells that name none", default="")
    runner.add_argument("--data", type=Path, required=True, help="the folder with the data sets")
    runner.add_argument("--variants", nargs="+", type=Variant.parse, required=True)
    runner.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    runner.set_defaults(action=run)
    printer = verbs.add_parser("table", help="print the table")
    printer.set_defaults(action=table)
    for verb in (runner, printer):
        verb.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.action(arguments)


if __name__ == "__main__":
    main()
