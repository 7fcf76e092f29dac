"""`contrastive` beside the setfit package, on a handful of examples per class.

    python -m benchmarks.few_shot run --checkpoint DIR --data DIR --setfit_python PYTHON --shots 8 16 --draws 10
    python -m benchmarks.few_shot table

Both learn from the same drawn examples and are tested on the same rows, one after the other in turn (forwards,
backwards), each in a process of its own with as many threads. A line of --out is one training; what is there already is
not run again. `--setfit_python` has setfit and torch installed; `--setfit` and `--ours` change settings (JSON).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from benchmarks import records
from benchmarks.stats import Spread, interleaved
from hftransfer.report.statistics import over_seeds

NAMES = ("ours", "setfit")
NONE = "-"
Runs: TypeAlias = dict[int, Mapping[str, Any]]
"""The records of one contestant by draw."""

SETFIT = {"num_iterations": 20, "batch_size": 16, "num_epochs": 1}
"""The paper's number of pairs. Without it the package makes all there are: 8 times as many of 64 examples each of 6
classes."""


def draw(source: Path, shots: int, seed: int, folder: Path) -> dict[str, str]:
    """Write as many examples of every class, drawn from the training data, and the test data; their paths by split.

    Args:
        source: Folder with train.parquet and test.parquet, of `text` and `label`.
        shots: Examples per class.
        seed: Decides which.
        folder: Where to write.
    """
    train, test = (pd.read_parquet(source / f"{split}.parquet")[["text", "label"]] for split in ("train", "test"))
    folded = train["text"].str.lower().str.strip()
    train = train[~folded.duplicated() & ~folded.isin(test["text"].str.lower().str.strip())]
    drawn = train.groupby("label").sample(shots, random_state=seed).sample(frac=1, random_state=seed)
    codes = {label: code for code, label in enumerate(sorted(train["label"].unique()))}
    paths = {}
    for split, frame in (("train", drawn), ("test", test)):
        paths[split] = str(folder / f"{split}.parquet")
        frame.assign(label=frame["label"].map(codes)).reset_index(drop=True).to_parquet(paths[split])
    return paths


class Worker:
    """A contestant's process.

    Args:
        name: The contestant.
        python: What runs it.
    """

    def __init__(self, name: str, python: str) -> None:
        command = [python, "-m", "benchmarks.contestants.few_shot_worker", name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.versions = self._answer()["versions"]

    def train(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Let it train once."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def run(arguments: argparse.Namespace) -> None:
    """Train what is missing, draw by draw."""
    out = Path(arguments.out)
    done = {key_of(record) for record in records.read(out)}
    settings = {"ours": arguments.ours, "setfit": arguments.setfit}
    names = [name for name in NAMES if name not in arguments.without]
    workers: dict[str, Worker] = {}
    rounds = interleaved(names, arguments.draws)
    try:
        for number, data_set, shots in itertools.product(range(arguments.draws), arguments.sets, arguments.shots):
            for name in rounds[number]:
                record = {
                    "contestant": name,
                    "data_set": data_set,
                    "shots": shots,
                    "draw": number,
                    "checkpoint": Path(arguments.checkpoint).name,
                    "settings": settings[name],
                    "threads": arguments.threads,
                }
                if key_of(record) in done:
                    continue
                if name not in workers:
                    python = arguments.setfit_python if name == "setfit" else sys.executable
                    workers[name] = Worker(name, python)
                with tempfile.TemporaryDirectory() as folder:
                    task = {
                        "checkpoint": arguments.checkpoint,
                        **draw(Path(arguments.data) / data_set, shots, number, Path(folder)),
                        "seed": number,
                        "threads": arguments.threads,
                        "max_length": arguments.max_length,
                        "settings": settings[name],
                    }
                    record |= {**workers[name].train(task), "versions": workers[name].versions}
                records.add(out, record)
    finally:
        for worker in workers.values():
            worker.close()


def key_of(record: Mapping[str, Any]) -> str:
    """What makes a training the same."""
    names = ("contestant", "data_set", "shots", "draw", "checkpoint", "settings", "threads")
    return json.dumps([record[name] for name in names], sort_keys=True)


def rows_of(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row of the table for each data set, number of examples and settings: of both, the draws that both have run."""
    cells: dict[tuple[str, str, int], dict[tuple[str, str], Runs]] = defaultdict(lambda: defaultdict(dict))
    for one in found:
        name = one["contestant"], json.dumps(one["settings"], sort_keys=True)
        cells[one["checkpoint"], one["data_set"], one["shots"]][name][one["draw"]] = one
    rows = []
    for (checkpoint, data_set, shots), runs in sorted(cells.items()):
        own, peers = ([key for key in sorted(runs) if key[0] == name] for name in NAMES)
        for mine, theirs in itertools.product(own, peers or [("", "")]):
            start = [checkpoint, data_set, str(shots), _settings(mine[1])]
            rows.append([*start, *_compared(runs[mine], runs.get(theirs, {}))])
    return rows


def _settings(written: str) -> str:
    return "defaults" if written == "{}" else f"`{written}`"


def _compared(ours: Runs, theirs: Runs) -> list[str]:
    """Draws, scores, difference, seconds and ratios, of the draws that both have run; or of ours alone."""
    draws = sorted(ours.keys() & theirs.keys()) if theirs else sorted(ours)
    if not draws:
        return ["0", *[NONE] * 8]
    scores = [[100 * runs[draw]["correct"] / runs[draw]["total"] for draw in draws] for runs in (ours, theirs) if runs]
    seconds = [np.median([runs[draw]["training"] for draw in draws]) for runs in (ours, theirs) if runs]
    cells = [str(len(draws)), *_padded(f"{np.mean(part):.1f}" for part in scores)]
    if not theirs:
        return [*cells, NONE, *_padded(f"{part:.0f} s" for part in seconds), *[NONE] * 3]
    gain = over_seeds(np.subtract(*scores).tolist())
    bounds = f" ({gain.low:+.1f} to {gain.high:+.1f})" if len(draws) > 1 else ""
    cells += [f"{gain.value:+.1f}{bounds}", *(f"{part:.0f} s" for part in seconds)]
    for kind in ("training", "processor", "whole"):
        ratio = Spread.of([theirs[draw][kind] / ours[draw][kind] for draw in draws])
        cells.append(f"{ratio.median:.1f} ({ratio.low:.1f} to {ratio.high:.1f})")
    return cells


def _padded(cells: Iterable[str]) -> list[str]:
    """Two cells, of which the second may be missing."""
    return [*cells, NONE][:2]


def table(arguments: argparse.Namespace) -> None:
    """Print a Markdown table."""
    found = records.read(Path(arguments.out))
    threads = ", ".join(sorted({str(one["threads"]) for one in found}))
    used = sorted({f"{one['contestant']} {one['precision']}" for one in found})
    print(f"Machine: {platform.machine()}, {os.cpu_count()} cores, {threads} thread(s) for each; {', '.join(used)}.\n")
    names = ("checkpoint", "data", "per class", "settings", "draws", "`contrastive`", "setfit", "difference (95 %)")
    names += ("training", "setfit's", "setfit / ours", "in processor time", "with loading, checks, test data")
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for row in rows_of(found):
        print(f"| {' | '.join(row)} |")


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    runner = verbs.add_parser("run", help="train")
    runner.add_argument("--checkpoint", required=True)
    runner.add_argument("--data", required=True, help="the folder with the data sets' folders")
    runner.add_argument("--setfit_python", default=sys.executable, help="the interpreter that has setfit")
    runner.add_argument("--sets", nargs="+", default=["trec6", "sst2"])
    runner.add_argument("--shots", type=int, nargs="+", default=[8, 16, 64])
    runner.add_argument("--draws", type=int, default=10)
    runner.add_argument("--threads", type=int, default=1)
    runner.add_argument("--max_length", type=int, default=64)
    runner.add_argument("--ours", type=json.loads, default={}, help="sections of our recipe")
    runner.add_argument("--setfit", type=json.loads, default=SETFIT, help="fields of setfit's TrainingArguments")
    runner.add_argument("--without", nargs="*", default=[], choices=NAMES)
    runner.set_defaults(action=run)
    printer = verbs.add_parser("table", help="print the table")
    printer.set_defaults(action=table)
    for verb in (runner, printer):
        verb.add_argument("--out", default="benchmarks/results/few_shot.jsonl")
    arguments = parser.parse_args()
    arguments.action(arguments)


if __name__ == "__main__":
    main()
