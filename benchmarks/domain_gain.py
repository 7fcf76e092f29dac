"""Does the forecast of `diagnose domain` come true? Adaptation then the task, against the task alone.

    python -m benchmarks.domain_gain run --checkpoint DIR --data DIR --seeds 1 2 3
    python -m benchmarks.domain_gain table --page docs/domain.md

For every data set: the diagnosis of its training texts against general text (English-EWT, web text of many kinds), the
adaptation of the checkpoint to its training texts with a quarter of the rows general, and the task, trained on a few
labelled rows, from the untouched and from the adapted checkpoint. Every finding is a line of OUT/results.jsonl; what is
there already is not measured again, and all data sets get their first seed before any gets its second.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks import records
from hftransfer import Recipe, finetune
from hftransfer.adaptation import ADAPTATION, AdaptationSettings, adapt
from hftransfer.data.texts import read_texts
from hftransfer.diagnose.domain import diagnose_domain
from hftransfer.report.statistics import over_seeds

SEED = 20
GENERAL = ("ewt_pos", "tokens")
"""Folder and text column of the general text."""
ARMS = ("alone", "adapted")


@dataclass(frozen=True)
class DataSet:
    """A data set: its folder, its columns, what it is scored by."""

    name: str
    label: str
    metric: str
    folder: str


DATA_SETS = {
    one.name: one
    for one in (
        DataSet("scicite", "label", "f1_macro", "scicite"),
        DataSet("davidson", "label", "f1_macro", "davidson"),
        DataSet("trec6", "label", "accuracy", "trec6"),
        DataSet("snips", "intent", "accuracy", "snips"),
        DataSet("sst2", "label", "accuracy", "sst2"),
    )
}


class Results:
    """Findings by key, a line each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, dict[str, Any]] = {line["key"]: line for line in records.read(path)}

    def once(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The finding of this key, measured if it is not there."""
        if key not in self.found:
            started = time.perf_counter()
            found = {"key": key, **measure()}
            found["seconds"] = round(time.perf_counter() - started, 1)
            records.add(self.path, found)
            self.found[key] = found
        return self.found[key]


def write_files(one: DataSet, arguments: argparse.Namespace) -> dict[str, Path]:
    """Texts to adapt to, labelled rows among them, and test rows; the same whenever it is repeated."""
    source, folder = Path(arguments.data, one.folder), Path(arguments.out, one.name)
    folder.mkdir(parents=True, exist_ok=True)

    def read(split: str) -> pd.DataFrame:
        frame = pd.read_parquet(source / f"{split}.parquet")[["text", one.label]]
        return frame.rename(columns={one.label: "label"}).sample(frac=1, random_state=SEED)

    train = read("train").drop_duplicates("text")
    if (source / "test.parquet").exists():
        test = read("test")
    else:
        test, train = train[: arguments.test_rows], train[arguments.test_rows :]
    train = train[~train["text"].isin(set(test["text"]))]
    frames = {
        "texts": train[: arguments.texts],
        "train": train[: arguments.rows],
        "test": test[: arguments.test_rows],
    }
    paths = {name: folder / f"{name}.parquet" for name in frames}
    for name, frame in frames.items():
        frame.reset_index(drop=True).to_parquet(paths[name])
    return paths


def recipe_of(one: DataSet, arm: str, seed: int, arguments: argparse.Namespace, paths: dict[str, Path]) -> Recipe:
    """The task from the untouched checkpoint; where the adapted one lies is said later."""
    return Recipe(
        checkpoint=arguments.checkpoint,
        data={"train": str(paths["train"]), "test": str(paths["test"])},
        optim={"num_train_epochs": arguments.epochs, "learning_rate": arguments.rate},
        evaluation={"metric": one.metric, "keep": "last"},
        output_dir=str(Path(arguments.out, one.name, arm, f"seed{seed}")),
        seed=SEED,
        seeds=[seed],
        overwrite=True,
        preflight="off",
    )


def diagnose(arguments: argparse.Namespace, paths: dict[str, Path], general: Path) -> dict[str, Any]:
    """What the diagnosis says before anything is trained."""
    sources = {
        "training": read_texts(str(paths["texts"]), "texts"),
        "reference": read_texts(str(general), "general"),
    }
    found = diagnose_domain(arguments.checkpoint, sources, max_texts=arguments.diagnosed)
    (pair,) = found.pairs
    return {
        "pays": found.forecast.pays,
        "margin": found.forecast.margin,
        "low": found.forecast.low,
        "high": found.forecast.high,
        "weak_head": found.forecast.weak_head,
        "distance": pair.distance.value,
        "shared_words": pair.overlap.top,
        "pieces": {name: source.pieces_per_word for name, source in found.sources.items()},
        "loss": {name: source.loss and source.loss.value for name, source in found.sources.items()},
    }


def adaptation(one: DataSet, arguments: argparse.Namespace, paths: dict[str, Path], general: Path) -> dict[str, Any]:
    """The adaptation, by the library's own command, with the task of the first seed behind it."""
    seed = arguments.seeds[0]
    recipe = recipe_of(one, "adapted", seed, arguments, paths)
    recipe = recipe.model_copy(update={"output_dir": str(Path(arguments.out, one.name, "both"))})
    settings = AdaptationSettings(
        str(paths["texts"]), "text", str(general), epochs=arguments.adapt_epochs, learning_rate=arguments.adapt_rate
    )
    done = adapt(recipe, settings)
    state = json.loads((done.adaptation.folder.parent / "adaptation.json").read_text(encoding="utf-8"))
    score = done.task.metrics["test"][one.metric]
    return {"before": state["loss_before"], "after": state["loss_after"], "seed": seed, "score": score}


def measure(arguments: argparse.Namespace) -> None:
    """Everything that is not measured yet."""
    import torch

    torch.set_num_threads(arguments.threads)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    results = Results(out / "results.jsonl")
    budget = {**{name: getattr(arguments, name) for name in BUDGET}, "checkpoint": Path(arguments.checkpoint).name}
    known = results.once("budget", lambda: budget)
    if any(known[name] != value for name, value in budget.items()):
        raise SystemExit(f"{out} was begun with another budget ({known}); give the same, or another --out")
    general = out / "general.txt"
    texts = read_texts(str(Path(arguments.data, GENERAL[0], "train.parquet")), "general", GENERAL[1]).texts
    general.write_text("\n".join(texts) + "\n", encoding="utf-8")
    for seed in arguments.seeds:
        for name in arguments.data_sets:
            measure_one(DATA_SETS[name], seed, arguments, results, general)


def measure_one(one: DataSet, seed: int, arguments: argparse.Namespace, results: Results, general: Path) -> None:
    """Diagnosis and adaptation of a data set, once; the task with this seed from both checkpoints."""
    paths = write_files(one, arguments)
    results.once(f"{one.name}/diagnosis", lambda: diagnose(arguments, paths, general))
    first = results.once(f"{one.name}/adaptation", lambda: adaptation(one, arguments, paths, general))
    adapted = Path(arguments.out, one.name, "both", ADAPTATION, "model")

    def score(arm: str, checkpoint: str) -> dict[str, Any]:
        if arm == "adapted" and seed == first["seed"]:
            return {"score": first["score"]}
        recipe = recipe_of(one, arm, seed, arguments, paths)
        run = finetune(recipe.model_copy(update={"checkpoint": checkpoint}))
        return {"score": run.metrics["test"][one.metric]}

    results.once(f"{one.name}/alone/{seed}", lambda: score("alone", arguments.checkpoint))
    results.once(f"{one.name}/adapted/{seed}", lambda: score("adapted", str(adapted)))


BUDGET = ("texts", "rows", "test_rows", "epochs", "rate", "adapt_epochs", "adapt_rate", "diagnosed")


def rows_of(results: Results) -> Iterator[list[str]]:
    """A row of the table for each data set that has both arms."""
    for one in DATA_SETS.values():
        named = {key: value for key, value in results.found.items() if key.startswith(f"{one.name}/")}
        scores = {
            arm: {key.rpartition("/")[2]: value["score"] for key, value in named.items() if f"/{arm}/" in key}
            for arm in ARMS
        }
        seeds = sorted(scores["alone"].keys() & scores["adapted"].keys())
        if not seeds:
            continue
        said, learnt = named[f"{one.name}/diagnosis"], named[f"{one.name}/adaptation"]
        gain = over_seeds([100 * (scores["adapted"][seed] - scores["alone"][seed]) for seed in seeds])
        interval = f" ({gain.low:+.1f} to {gain.high:+.1f})" if len(seeds) > 1 else ""
        means = [statistics.mean(100 * scores[arm][seed] for seed in seeds) for arm in ARMS]
        pieces = said["pieces"]["training"] / said["pieces"]["reference"]
        yield [
            f"{one.name}, {one.metric}",
            f"{said['distance']:.2f}",
            f"{said['shared_words']:.0%}",
            f"{pieces:.2f}",
            f"{said['margin']:+.2f} ({said['low']:+.2f} to {said['high']:+.2f})",
            said["pays"],
            *(f"{learnt['before'][name]:.2f} → {learnt['after'][name]:.2f}" for name in ("domain", "general")),
            *(f"{mean:.1f}" for mean in means),
            f"{gain.value:+.1f}{interval}",
            str(len(seeds)),
            _truth(said["pays"], gain.value, gain.low, gain.high),
        ]


def _truth(pays: str, gain: float, low: float, high: float) -> str:
    """Whether the forecast came true, where the seeds can tell."""
    if not (low > 0 or high < 0):
        return "undecided"
    return "right" if (pays == "yes") == (gain > 0) else "wrong"


HEAD = (
    "data, metric", "proxy A-distance to general text", "words shared", "pieces per word, ratio",
    "loss above general text, nats (interval)", "pays?", "domain loss, before → after", "general loss, before → after",
    "task alone", "adapted, then task", "gain (95 % interval over seeds of the task)", "seeds", "forecast",
)  # fmt: skip


def table(arguments: argparse.Namespace) -> None:
    """Print the table, or put it into a page."""
    results = Results(Path(arguments.out) / "results.jsonl")
    budget = results.found["budget"]
    lines = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows_of(results)]
    seconds = sum(found["seconds"] for found in results.found.values())
    lines += [
        "",
        f"{budget['checkpoint']}; {budget['texts']:,} texts at most to adapt to, {budget['adapt_epochs']} epochs at "
        f"{budget['adapt_rate']:g}; task: {budget['rows']:,} labelled rows, {budget['epochs']} epochs at "
        f"{budget['rate']:g}, at most {budget['test_rows']:,} test rows; diagnosis on {budget['diagnosed']:,} texts of "
        f"each source. {platform.machine()}, {os.cpu_count()} cores shared with other work, one thread, "
        f"{seconds / 60:.0f} minutes in all.",
        "",
        "Seeds are those of the task alone: the adaptation was trained once for each data set, and how much another "
        "one would differ is in none of the intervals.",
    ]
    text = "\n".join(lines)
    if arguments.page is None:
        print(text)
        return
    records.write_between(arguments.page, "gains", text)


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    runner = verbs.add_parser("run", help="measure")
    runner.add_argument("--checkpoint", required=True, help="a checkpoint with its masked-LM head")
    runner.add_argument("--data", required=True, help="the folder with the data sets")
    runner.add_argument("--data_sets", nargs="+", choices=DATA_SETS, default=list(DATA_SETS))
    runner.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    runner.add_argument("--texts", type=int, default=3000, help="texts to adapt to, at most")
    runner.add_argument("--rows", type=int, default=600, help="labelled rows")
    runner.add_argument("--test_rows", type=int, default=1000)
    runner.add_argument("--epochs", type=int, default=4)
    runner.add_argument("--rate", type=float, default=5e-4)
    runner.add_argument("--adapt_epochs", type=int, default=2)
    runner.add_argument("--adapt_rate", type=float, default=5e-4)
    runner.add_argument("--diagnosed", type=int, default=1000, help="texts of each source that the diagnosis reads")
    runner.add_argument("--threads", type=int, default=1)
    runner.set_defaults(action=measure)
    printer = verbs.add_parser("table", help="print the table")
    printer.add_argument("--page", type=Path, help="put it between the marks of this page")
    printer.set_defaults(action=table)
    for verb in (runner, printer):
        verb.add_argument("--out", default="runs/domain_gain")
    arguments = parser.parse_args()
    arguments.action(arguments)


if __name__ == "__main__":
    main()
