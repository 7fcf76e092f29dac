"""Task score against retention for every remedy against forgetting, as a table.

    python -m benchmarks.retention run --checkpoint DIR --data DIR --general xquad_en/test.parquet:context
    python -m benchmarks.retention table --write docs/forgetting.md

A cell is a data set, a remedy and a seed; `--remedies l2_sp:100 mixout:0.9` tries other strengths. Each is one line of
`--out`, so an interrupted measurement goes on where it stopped. Retention is the ratio of accuracies of linear probes
on the backbone's frozen states, after and before the training, the mean over reference tasks; the ratio of perplexities
on general text, under the checkpoint's own head, stands beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import records
from hftransfer import Recipe, Run, finetune
from hftransfer.training.defaults import STRATEGY_DEFAULTS

DATA_SETS = {"scicite": "f1_macro", "trec6": "accuracy"}
"""Data set -> the metric that chooses and is shown."""
VALIDATION_ROWS, TEST_ROWS, GENERAL_TEXTS = 500, 1000, 60
ROWS_SEED = 20
REFERENCE_TASKS, REFERENCE_ROWS = {"sst2": "label", "snips": "intent"}, 700
"""Data sets with labels whose linear probes say what is retained, and the column with the labels."""
SHARES = (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0)
RETAIN = 0.95
REPLAYED = next(iter(REFERENCE_TASKS))
"""The reference task of which replay has labelled rows."""
NOTES = (
    f"Replay trains on labelled rows of {REPLAYED} (of its training data, not those that are probed), and {REPLAYED} "
    "is one of the probes: what its row retains is in part a task that it was trained on, and "
    "cannot be compared with other rows.",
    f"The rows `--retain {RETAIN}` choose among {len(SHARES)} shares by the mean of the probes, and look at general "
    "text not at all; the command `hftransfer soften` takes the least of everything that it is given, at 11 shares "
    "and 3 more, so it may go further back than these rows do.",
)
"""What stands below the tables."""
REMEDIES: dict[str, dict[str, Any]] = {
    "full": {},
    "low_rate": {"optim": {"learning_rate": 4e-5}},
    "layer_decay": {"optim": {"layer_decay": 0.4}},
    "gradual": {"strategy": "gradual_unfreezing"},
    "lp_ft": {"strategy": "lp_ft"},
    "lora": {"strategy": "lora"},
    "l2_sp": {"optim": {"retain": "l2_sp"}},
    "ewc": {"optim": {"retain": "ewc"}},
    "mixout": {"optim": {"retain": "mixout"}},
    "replay": {"data": {"replay_share": 0.3}},
    "ema": {"evaluation": {"keep": "ema"}},
    "soup": {"evaluation": {"keep": "soup"}},
    "last": {"evaluation": {"keep": "last"}},
    "features": {"strategy": "feature_extraction"},
}
NAMES = {
    "full": "full fine-tuning (best evaluation)",
    "last": "full, last weights (`evaluation.keep: last`)",
    "low_rate": "lower rate (4e-5 in place of 1.5e-4)",
    "layer_decay": "steeper layer decay (0.4 in place of 0.8)",
    "gradual": "`gradual_unfreezing`",
    "lp_ft": "`lp_ft`",
    "lora": "`lora`",
    "l2_sp": "L2-SP (`optim.retain: l2_sp`)",
    "ewc": "EWC (`optim.retain: ewc`)",
    "mixout": "mixout (`optim.retain: mixout`)",
    "replay": "replay of another task (`data.replay`, share 0.3)",
    "ema": "moving average (`evaluation.keep: ema`)",
    "soup": "greedy soup of one run (`evaluation.keep: soup`)",
    "features": "`feature_extraction`",
}


@dataclass(frozen=True)
class Cell:
    """What one line measures."""

    data: str
    remedy: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.data}/{self.remedy}/{self.seed}"


def write_data(source: Path, folder: Path, examples: int) -> dict[str, str]:
    """Write rows of a data set as parquet files, the same whatever the seed of a training; paths by split."""
    folder.mkdir(parents=True, exist_ok=True)
    train = pd.read_parquet(source / "train.parquet").sample(frac=1, random_state=ROWS_SEED)
    train = train[~train["text"].duplicated()]
    validation = source / "validation.parquet"
    held = pd.read_parquet(validation) if validation.exists() else train[examples:]
    test = pd.read_parquet(source / "test.parquet").sample(frac=1, random_state=ROWS_SEED)
    frames = {"train": train[:examples], "validation": held[:VALIDATION_ROWS], "test": test[:TEST_ROWS]}
    for split, frame in frames.items():
        frame[["text", "label"]].reset_index(drop=True).to_parquet(folder / f"{split}.parquet")
    return {split: str(folder / f"{split}.parquet") for split in frames}


def general_texts(spec: str, data: Path) -> list[str]:
    """The texts that `--general FILE:COLUMN` names."""
    file, _, column = spec.rpartition(":")
    return pd.read_parquet(data / file)[column].drop_duplicates().tolist()[:GENERAL_TEXTS]


def reference_tasks(data: Path) -> list[tuple[str, list[str], Any]]:
    """Names, texts and classes of tasks that no cell trains."""
    found = []
    for name, column in REFERENCE_TASKS.items():
        frame = pd.read_parquet(data / name / "test.parquet").sample(frac=1, random_state=ROWS_SEED)[:REFERENCE_ROWS]
        found.append((name, frame["text"].tolist(), np.unique(frame[column], return_inverse=True)[1]))
    return found


def write_replay(data: Path, file: Path) -> str:
    """Labelled rows of the first reference task, not those that are probed: their labels are learnt beside the task's.

    The checkpoint's pretraining had no labels, so a classifier's replay stands for keeping an earlier task alive.
    """
    name, column = REPLAYED, REFERENCE_TASKS[REPLAYED]
    frame = pd.read_parquet(data / name / "train.parquet").sample(frac=1, random_state=ROWS_SEED)[:REFERENCE_ROWS]
    labels = [f"{name} {label}" for label in frame[column]]
    pd.DataFrame({"text": frame["text"].tolist(), "label": labels}).to_parquet(file)
    return str(file)


def recipe_of(cell: Cell, arguments: argparse.Namespace, folder: Path) -> Recipe:
    """The recipe of a cell: the strategy's own rate and epochs in batches of 32, with what the remedy changes."""
    paths = write_data(Path(arguments.data) / cell.data, folder / "data", arguments.examples)
    remedy, _, strength = cell.remedy.partition(":")
    changes = {name: dict(part) if isinstance(part, dict) else part for name, part in REMEDIES[remedy].items()}
    if strength:
        changes["optim"]["retain_strength"] = float(strength)
    if remedy == "replay":
        paths["replay"] = write_replay(Path(arguments.data), folder / "data" / "replay.parquet")
    changes["evaluation"] = {"metric": DATA_SETS[cell.data], **changes.get("evaluation", {})}
    strategy = str(changes.setdefault("strategy", "full_fine_tuning"))
    epochs = STRATEGY_DEFAULTS[strategy].num_train_epochs
    changes["optim"] = {"num_train_epochs": epochs, **changes.get("optim", {})}
    return Recipe(
        checkpoint=arguments.checkpoint,
        data={**paths, "max_length": 128, **changes.pop("data", {})},
        output_dir=str(folder / "run"),
        overwrite=True,
        preflight="off",
        seeds=[cell.seed],
        **changes,
    )


def own_score(scores: dict[str, float], metric: str) -> float:
    """A score over the task's own classes: replayed ones, which no test row has, do not count."""
    replayed = tuple(f"f1/{name} " for name in REFERENCE_TASKS)
    if metric != "f1_macro" or not any(name.startswith(replayed) for name in scores):
        return scores[metric]
    own = [value for name, value in scores.items() if name.startswith("f1/") and not name.startswith(replayed)]
    return float(np.mean(own))


def measure(cell: Cell, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train a cell, and measure its score and what it retains, along the way back to the old weights too."""
    from hftransfer.diagnose.backbones import Subject
    from hftransfer.diagnose.softening import Examined
    from hftransfer.diagnose.watch import Watch
    from hftransfer.errors import DataError

    recipe = recipe_of(cell, arguments, folder)
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run: Run = finetune(recipe)
    metric = DATA_SETS[cell.data]
    found = {
        "cell": cell.name,
        "examples": arguments.examples,
        "checkpoint": Path(arguments.checkpoint).name,
        "metric": metric,
        "score": own_score(run.metrics["test"], metric),
        "validation": own_score(run.metrics["validation"], metric),
        "training_seconds": run.metrics["training"]["seconds"],
    }
    try:
        subject = Subject.load(run.folder, run.recipe)
    except DataError:
        # Nothing but the head has learned.
        return {**found, "retained": 1.0, "general": 1.0, "seconds": round(time.perf_counter() - started, 1)}
    data = Path(arguments.data)
    watch = Watch(subject, [("general", general_texts(arguments.general, data))], reference_tasks(data))

    def retained(share: float) -> dict[str, float]:
        general, *probes = watch.at(share)
        return {"retained": float(np.mean([one.retained for one in probes])), "general": general.retained}

    found |= {"perplexity_before": float(np.exp(watch.losses[0].mean)), **retained(1.0)}
    if cell.remedy in ("full", "lora"):
        examined, curve = Examined.load(run.folder, run.recipe, subject.old), []
        for share in SHARES:
            examined.softened.put(share)
            scores = {split: examined.scores(split)[metric] for split in ("validation", "test")}
            curve.append({"share": share, **retained(share), **scores})
        found["curve"] = curve
    return {**found, "seconds": round(time.perf_counter() - started, 1)}


def run(arguments: argparse.Namespace) -> None:
    """Measure the cells that have no line yet."""
    import torch

    torch.set_num_threads(arguments.threads)
    out = Path(arguments.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    done = {(line["cell"], line["examples"], line["checkpoint"]) for line in records.read(out)}
    cells = [
        Cell(data, remedy, seed)
        for seed in arguments.seeds
        for remedy in arguments.remedies
        for data in arguments.data_sets
    ]
    for cell in cells:
        if (cell.name, arguments.examples, Path(arguments.checkpoint).name) in done:
            continue
        folder = Path("runs", "retention")
        # What an interrupted cell has left.
        shutil.rmtree(folder, ignore_errors=True)
        line = measure(cell, arguments, folder)
        records.add(out, line)
        shown = f"{line['metric']} {line['score']:.4f}, retained {line['retained']:.3f}, {line['seconds']:.0f} s"
        print(f"{cell.name}: {shown}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)


Values = tuple[float, float, float]
"""Test score, retention by probes, retention of general text."""


def softened(line: dict[str, Any], retain: float | None, share: float | None) -> Values:
    """A softened run: at a share, or chosen on validation among what retains enough."""
    points = line["curve"]
    if share is not None:
        point = min(points, key=lambda one: abs(one["share"] - share))
    else:
        allowed = [one for one in points if one["retained"] >= (retain or 0.0)]
        point = max(allowed, key=lambda one: (one["validation"], -one["share"]))
    return point["test"], point["retained"], point["general"]


def rows_of(lines: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str, dict[str, Values]]]:
    """(data, name, values by seed) of everything that was measured."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for line in lines:
        data, remedy, seed = line["cell"].split("/")
        found[data, remedy][seed] = line
    for (data, remedy), part in found.items():
        base, _, strength = remedy.partition(":")
        name = NAMES.get(base, base) + (f", strength {strength}" if strength else "")
        yield data, name, {seed: (line["score"], line["retained"], line["general"]) for seed, line in part.items()}
        if base in ("full", "lora") and all("curve" in line for line in part.values()):
            of = "full" if base == "full" else "`lora`"
            yield data, f"soften {of}, half way", {seed: softened(line, None, 0.5) for seed, line in part.items()}
            name = f"soften {of}, `--retain {RETAIN}`"
            yield data, name, {seed: softened(line, RETAIN, None) for seed, line in part.items()}


def spread(values: Sequence[float]) -> str:
    """Mean, and the lowest and highest."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _above(values: dict[str, Values], others: dict[str, Values], which: int) -> str:
    """In how many of the seeds that both have one is above the other."""
    pairs = [(values[seed][which], others[seed][which]) for seed in values if seed in others]
    return f"{sum(one > other for one, other in pairs)} of {len(pairs)}"


def table_lines(lines: Sequence[dict[str, Any]], examples: int) -> list[str]:
    """The tables as Markdown, one for each data set: a row for each remedy, the best score first."""
    lines = [line for line in lines if line["examples"] == examples]
    by_data: dict[str, list[tuple[str, dict[str, Values]]]] = defaultdict(list)
    for data, name, values in rows_of(lines):
        by_data[data].append((name, values))
    text: list[str] = []
    for data, found in by_data.items():
        head = [f"remedy, {data}", f"test {DATA_SETS[data]}", "retained (probes)", "general text", "seeds"]
        head += ["score above full's", "general text above full's"]
        full = dict(found).get(NAMES["full"], {})
        text += ["", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        for name, values in sorted(found, key=lambda one: -float(np.mean([value[0] for value in one[1].values()]))):
            columns = [spread(column) for column in zip(*values.values(), strict=True)]
            counts = [_above(values, full, which) for which in (0, 2)]
            text.append(f"| {name} | {' | '.join([*columns, str(len(values)), *counts])} |")
    return text[1:]


def table(arguments: argparse.Namespace) -> None:
    """Print the table, or write it between the marks of a page."""
    lines = records.read(Path(arguments.out))
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {arguments.threads} thread"
    notes = "\n\n".join([*NOTES, f"Machine: {machine}."])
    text = "\n".join([*table_lines(lines, arguments.examples), "", notes])
    if arguments.write is None:
        print(text)
        return
    records.write_between(Path(arguments.write), "retention", text)


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    runner = verbs.add_parser("run", help="measure cells")
    runner.add_argument("--checkpoint", required=True)
    runner.add_argument("--data", required=True, help="folder with a folder for each data set")
    runner.add_argument("--general", required=True, help="FILE:COLUMN below --data with general text")
    runner.add_argument("--data_sets", nargs="+", default=list(DATA_SETS))
    runner.add_argument("--remedies", nargs="+", default=list(REMEDIES))
    runner.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    runner.set_defaults(action=run)
    printer = verbs.add_parser("table", help="print the table")
    printer.add_argument("--write", help="page to write it into")
    printer.set_defaults(action=table)
    for verb in (runner, printer):
        verb.add_argument("--out", default="benchmarks/results/retention.jsonl")
        verb.add_argument("--examples", type=int, default=1000)
        verb.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    arguments.action(arguments)


if __name__ == "__main__":
    main()
