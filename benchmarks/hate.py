"""A hate classifier and HateCheck: where it fails, and what remedies change and cost.

    python -m benchmarks.hate --data DATA --checkpoint CHECKPOINT --out hate
    python -m benchmarks.hate --data DATA --checkpoint CHECKPOINT --out hate --examples 4000 --epochs 2 --table

DATA holds davidson/train.parquet and hatecheck/test.parquet. A fifth of davidson is split off as test data. Rows get
a column `named`: which gender a text names by the built-in terms; it is the group of the remedies that need one.
A variant whose run is there already is not trained again, so an interrupted measurement goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.stats import wilson
from hftransfer import Recipe, Run, finetune
from hftransfer.cli.bias_inputs import read_subject
from hftransfer.data.batching import random_order
from hftransfer.data.terms import load_terms
from hftransfer.diagnose.bias import Findings, diagnose
from hftransfer.recipe import DataSection
from hftransfer.run_files import plain_numbers

TEST_SHARE = 0.2
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "classes": {"task": {"balance": "classes"}},
    "sample_classes": {"task": {"balance": "sample_classes"}},
    "groups": {"task": {"balance": "groups"}},
    "sample_groups": {"task": {"balance": "sample_groups"}},
    "counterfactuals": {"data": {"counterfactuals": "builtin"}},
}


def split(data: Path, folder: Path, seed: int) -> None:
    """Write train.parquet and test.parquet, the classes in equal shares."""
    frame = pd.read_parquet(data / "davidson" / "train.parquet")
    gender = next(axis for axis in load_terms("builtin", "terms") if axis.name == "gender")
    found = [gender.groups_in(text) for text in frame.text]
    frame["named"] = [" and ".join(gender.groups[one] for one in groups) or "nobody" for groups in found]
    order = random_order(len(frame), seed)
    test = np.concatenate(
        [
            members[: round(TEST_SHARE * len(members))]
            for members in (order[(frame.label == label).to_numpy()[order]] for label in sorted(frame.label.unique()))
        ]
    )
    is_test = np.isin(np.arange(len(frame)), test)
    frame[~is_test].to_parquet(folder / "train.parquet", index=False)
    frame[is_test].to_parquet(folder / "test.parquet", index=False)


def recipe_of(variant: str, arguments: argparse.Namespace) -> Recipe:
    """The training of one variant."""
    settings = VARIANTS[variant]
    return Recipe(
        checkpoint=str(arguments.checkpoint),
        data={
            "train": str(arguments.out / "train.parquet"),
            "test": str(arguments.out / "test.parquet"),
            "sensitive": "named",
            "max_train_examples": arguments.examples,
            "max_length": 64,
            **settings.get("data", {}),
        },
        task={"type": "text_classification", **settings.get("task", {})},
        strategy={"type": arguments.strategy},
        optim={"num_train_epochs": arguments.epochs},
        evaluation={"metric": "f1_macro"},
        preflight="off",
        seed=arguments.seed,
        output_dir=str(arguments.out / variant),
    )


def figures(run: Run, found: Findings) -> dict[str, Any]:
    """What the table shows of a variant."""
    suite, report = found.suite, next(one for one in found.groups if one.column == "named")
    assert suite is not None
    assert suite.positive is not None
    assert suite.negative is not None
    test = run.metrics["test"]
    return {
        "accuracy": test["accuracy"],
        "f1_macro": test["f1_macro"],
        "recall of hate": report_rate(found, "true positives"),
        "hatecheck hateful": [suite.positive.value, *wilson(suite.positive.right, suite.positive.count)],
        "hatecheck not hateful": [suite.negative.value, *wilson(suite.negative.right, suite.negative.count)],
        "failed": len(suite.failed),
        "functionalities": len(suite.functionalities),
        "gaps": {rate: [gap.interval.value, gap.chance, gap.p_value] for rate, gap in report.gaps.items()},
        "flips": {one.axis: [one.flips.value, one.flips.low, one.flips.high] for one in found.flips},
        "thresholds": [
            [one.gap_before, one.gap_after, one.cost.interval.value, one.cost.interval.low, one.cost.interval.high]
            for one in found.thresholds
        ],
        "seconds": run.metrics["training"]["seconds"],
    }


def report_rate(found: Findings, rate: str) -> float:
    """A rate over all groups."""
    report = found.groups[0]
    rates = [
        (report.rates[rate, group], report.rates["base rate", group], count) for group, count in report.counts.items()
    ]
    weights = np.asarray([count * base.value for _, base, count in rates])
    return float(np.nansum(weights * [one.value for one, _, _ in rates]) / weights.sum())


def measure(variant: str, arguments: argparse.Namespace) -> None:
    """Train a variant, diagnose it, and keep the verdict in its run and the figures beside it."""
    folder = arguments.out / variant
    if not (folder / "metrics.json").is_file():
        finetune(recipe_of(variant, arguments))
    run, kept = Run(folder), folder / "bias.json"
    if kept.is_file():
        return
    subject, _ = read_subject(
        folder,
        DataSection(),
        None,
        groups=None,
        positive="hate",
        terms="builtin",
        cases=str(arguments.data / "hatecheck" / "test.parquet"),
        positive_case="hateful",
        batch_size=256,
        seed=arguments.seed,
    )
    verdict, found = diagnose(subject)
    run.keep(verdict)
    kept.write_text(json.dumps(plain_numbers(figures(run, found))))


def table(arguments: argparse.Namespace) -> None:
    """Print a Markdown table of what was measured."""
    head = (
        "variant | accuracy | macro-F1 | recall of hate | HateCheck hateful | not hateful | failed | gap of found hate"
    )
    print(f"| {head} | flips, gender | flips, orientation | time |\n|{'---|' * 11}")
    for variant in VARIANTS:
        path = arguments.out / variant / "bias.json"
        if not path.is_file():
            continue
        one = json.loads(path.read_text())
        share = [
            "{:.1%} [{:.1%}, {:.1%}]".format(*one[name]) for name in ("hatecheck hateful", "hatecheck not hateful")
        ]
        gap = one["gaps"].get("true positives")
        flips = ["{:.1%} [{:.1%}, {:.1%}]".format(*one["flips"][axis]) for axis in ("gender", "orientation")]
        told = "-" if gap is None else f"{gap[0]:.3f} (p {gap[2]:.3f})"
        print(
            f"| `{variant}` | {one['accuracy']:.3f} | {one['f1_macro']:.3f} | {one['recall of hate']:.3f} | "
            f"{' | '.join(share)} | {one['failed']} of {one['functionalities']} | {told} | {' | '.join(flips)} | "
            f"{one['seconds']:.0f} s |"
        )
        for before, after, *cost in one["thresholds"]:
            low, high = cost[1:]
            told = f"gap {before:.3f} -> {after:.3f}, accuracy {cost[0]:+.4f} [{low:+.4f}, {high:+.4f}]"
            print(f"  thresholds per group on {variant}: {told}")


def main() -> None:
    """Train and diagnose the variants, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--examples", type=int, default=4_000, help="rows to train on")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--strategy", default="full_fine_tuning")
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    arguments = parser.parse_args()
    if not arguments.table:
        arguments.out.mkdir(parents=True, exist_ok=True)
        if not (arguments.out / "test.parquet").is_file():
            split(arguments.data, arguments.out, arguments.seed)
        for variant in arguments.variants:
            measure(variant, arguments)
    table(arguments)


if __name__ == "__main__":
    main()
