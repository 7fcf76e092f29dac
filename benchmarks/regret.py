"""How much score the advisor's choice gives away against the best strategy in hindsight.

    python -m benchmarks.regret run sst2:50 trec6:500@MINILM --checkpoint TINY_BERT --data DATA --out OUT
    python -m benchmarks.regret measure sst2:50 ... --checkpoint TINY_BERT --data DATA --out OUT

`run` trains every candidate of a cell, a data set and a number of examples, and adds a line per training to
OUT/scores.jsonl; what is there already is not trained again. `measure` does the advisor's one pass over the same
examples and adds a line to OUT/measured.jsonl. An example is drawn by the seed; a tenth of them is cut off for
validation, as hftransfer does it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import records
from benchmarks.regret_table import KEY, collect, document, fitted, source_of

DATA_SETS: dict[str, dict[str, str]] = {
    "sst2": {},
    "trec6": {},
    "scicite": {},
    "snips": {"label": "intent"},
    "mrpc": {"text": "sentence1", "text_pair": "sentence2"},
    "davidson": {},
}
"""Data set -> its columns, where they have other names than `text` and `label`."""
TEST_ROWS, SPLIT_SEED = 500, 20


class Cell(NamedTuple):
    """`DATA:EXAMPLES[@CHECKPOINT]`."""

    data_set: str
    examples: int
    checkpoint: str | None = None

    @classmethod
    def parse(cls, text: str) -> Cell:
        """Read a cell as it is written on the command line."""
        cell, _, checkpoint = text.partition("@")
        data_set, _, examples = cell.partition(":")
        if data_set not in DATA_SETS or not examples.isdigit():
            raise argparse.ArgumentTypeError(f"{text}: write DATA:EXAMPLES with one of {', '.join(DATA_SETS)}")
        return cls(data_set, int(examples), checkpoint or None)


def read_rows(folder: Path, cell: Cell, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The training rows that a seed draws, and the test rows, which are the same for all candidates."""
    import pandas as pd

    columns = {"text": "text", "label": "label", **DATA_SETS[cell.data_set]}
    train = pd.read_parquet(folder / cell.data_set / "train.parquet")[list(columns.values())]
    test_file = folder / cell.data_set / "test.parquet"
    if test_file.exists():
        test = pd.read_parquet(test_file)[list(columns.values())].sample(frac=1, random_state=SPLIT_SEED)
    else:
        shuffled = train.sample(frac=1, random_state=SPLIT_SEED)
        test, train = shuffled[:TEST_ROWS], shuffled[TEST_ROWS:]
    texts = [name for role, name in columns.items() if role != "label"]
    train = train[~train.duplicated(texts)].merge(test[texts].assign(_seen=1).drop_duplicates(), how="left", on=texts)
    train = train[train["_seen"].isna()].drop(columns="_seen")
    # No class may have a single row: the validation part could not be cut off by class. Without training rows a class
    # has no test rows either: nobody could get them right.
    label = columns["label"]
    chosen = train.sample(n=cell.examples, random_state=seed)
    counts = chosen[label].value_counts()
    chosen = chosen[chosen[label].isin(counts[counts > 1].index)]
    test = test[:TEST_ROWS]
    return chosen.to_dict("records"), test[test[label].isin(set(chosen[label]))].to_dict("records")


def recipe_values(cell: Cell, checkpoint: str, seed: int, folder: str) -> dict[str, Any]:
    """The settings that all candidates of a cell share."""
    return {
        "checkpoint": cell.checkpoint or checkpoint,
        "data": DATA_SETS[cell.data_set],
        "seed": seed,
        "preflight": "off",
        "overwrite": True,
        "output_dir": folder,
    }


def train_one(values: dict[str, Any], train: list[dict[str, Any]], test: list[dict[str, Any]]) -> dict[str, Any]:
    """Train as `finetune` does, and score the test rows; neither report nor model is written."""
    from hftransfer import Recipe, one_seed
    from hftransfer.caching.states import PlainInputs
    from hftransfer.finetuning import prepare_all
    from hftransfer.training.evaluate import predict

    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        prepared = prepare_all(Recipe(**values), train=train, test=test)
        score_alone(prepared.task, str(prepared.recipe.evaluation.metric))
        training = one_seed.build(prepared)
        training.run()
        model = prepared.strategy.finish(training.model)
        features = prepared.data.features
        predictions = predict(model, prepared.task, PlainInputs(prepared.task, features["test"]))
        scores = prepared.task.score(predictions, features["test"])
    metric = str(prepared.recipe.evaluation.metric)
    return {
        "metric": metric,
        "score": scores[metric],
        "validation": training.progress.best_score,
        "test_rows": len(test),
        "train_rows": len(features["train"]),
        "steps": training.progress.step,
        "training_seconds": round(training.progress.seconds, 2),
        "seconds": round(time.perf_counter() - started, 2),
    }


def score_alone(task: Any, metric: str) -> None:
    """Spare the other metrics, which cost more than a step of a tiny model, where the one that chooses is accuracy."""
    if metric == "accuracy":
        task.score = lambda predictions, features: {
            "accuracy": float((predictions.argmax(-1) == features.labels).mean())
        }


def key_of(cell: Cell, checkpoint: str, seed: int) -> dict[str, Any]:
    """What names a cell and a seed in the results."""
    name = Path(cell.checkpoint or checkpoint).name
    return {"data_set": cell.data_set, "examples": cell.examples, "checkpoint": name, "seed": seed}


def jobs(arguments: argparse.Namespace) -> Iterator[tuple[Cell, int, dict[str, Any]]]:
    """Seeds and cells in order: every cell is there once before one is there twice."""
    for seed in arguments.seeds:
        for cell in arguments.cells:
            yield cell, seed, key_of(cell, arguments.checkpoint, seed)


def run(arguments: argparse.Namespace) -> None:
    """Train what has no result yet."""
    import torch
    from transformers import AutoConfig

    from hftransfer.advise.candidates import candidates
    from hftransfer.advise.cost import BLOCKS

    torch.set_num_threads(1)
    path = arguments.out / "scores.jsonl"
    done = {tuple(line[name] for name in (*KEY, "candidate")) for line in records.read(path)}
    for cell, seed, key in jobs(arguments):
        config = AutoConfig.from_pretrained(cell.checkpoint or arguments.checkpoint).to_dict()
        blocks = next(config[name] for name in BLOCKS if name in config)
        train, test = read_rows(arguments.data, cell, seed)
        label = DATA_SETS[cell.data_set].get("label", "label")
        classes = len({row[label] for row in train})
        for candidate in candidates(blocks, round(0.9 * len(train)), classes):
            if (*key.values(), candidate.name) in done:
                continue
            with tempfile.TemporaryDirectory() as folder:
                values = recipe_values(cell, arguments.checkpoint, seed, folder)
                values |= {"strategy": dict(candidate.strategy)}
                found = train_one(values, train, test)
            gc.collect()
            records.add(path, {**key, "candidate": candidate.name, **found})
            print(*key.values(), candidate.name, f"{found['score']:.4f}", f"{found['seconds']:.1f} s", flush=True)


def measure(arguments: argparse.Namespace) -> None:
    """The advisor's pass over every cell and seed that has none yet."""
    import torch

    from hftransfer import Recipe, advising
    from hftransfer.finetuning import prepare_all

    torch.set_num_threads(1)
    path = arguments.out / "measured.jsonl"
    done = {tuple(line[name] for name in KEY) for line in records.read(path)}
    for cell, seed, key in jobs(arguments):
        if tuple(key.values()) in done:
            continue
        train, test = read_rows(arguments.data, cell, seed)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            recipe = advising.probing_recipe(Recipe(**recipe_values(cell, arguments.checkpoint, seed, folder)))
            prepared = prepare_all(recipe, train=train, test=test)
            started = time.perf_counter()
            reading, encoded = advising.measure(prepared)
            seconds = time.perf_counter() - started
            facts = advising.gather_facts(prepared)
        situation = advising.situation_of(reading, facts.train_examples, advising.classes_to_pair(prepared))
        values = {**asdict(situation), "deviation": reading.deviation, "foreign": facts.wording.is_foreign}
        layers = [asdict(layer) for layer in reading.layers]
        records.add(path, {**key, **values, "layers": layers, "encoded": encoded, "seconds": round(seconds, 2)})
        print(*key.values(), f"head {reading.score:.4f}", f"{seconds:.1f} s", flush=True)


def fit(arguments: argparse.Namespace) -> None:
    """Write the weights of the rules, from all trainings there are."""
    found = collect(arguments.out)
    path = Path(__file__).parents[1] / "hftransfer" / "advise" / "fitted.py"
    path.write_text(source_of(fitted(found), found), encoding="utf-8")
    print(f"wrote {path.name}: {len(found)} trainings")


def table(arguments: argparse.Namespace) -> None:
    """Write the regrets of the advisor, fitted on other data sets, and of what needs no advisor."""
    arguments.document.write_text(document(collect(arguments.out)), encoding="utf-8")
    print(f"wrote {arguments.document}")


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    runner = verbs.add_parser("run", help="train every candidate")
    runner.set_defaults(action=run)
    fitter = verbs.add_parser("fit", help="write hftransfer/advise/fitted.py")
    fitter.set_defaults(action=fit)
    printer = verbs.add_parser("table", help="write docs/advisor-regret.md")
    printer.set_defaults(action=table)
    printer.add_argument("--document", type=Path, default=Path("docs/advisor-regret.md"))
    measurer = verbs.add_parser("measure", help="do the advisor's pass")
    measurer.set_defaults(action=measure)
    for verb in (runner, measurer):
        verb.add_argument("cells", nargs="+", type=Cell.parse, metavar="DATA:EXAMPLES[@CHECKPOINT]")
        verb.add_argument("--checkpoint", help="of the cells that name none", default="")
        verb.add_argument("--data", type=Path, required=True, help="the folder with the data sets")
        verb.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    for verb in verbs.choices.values():
        verb.add_argument("--out", type=Path, default=Path("benchmarks/results/regret"))
    arguments = parser.parse_args()
    os.environ.setdefault("HFTRANSFER_CACHE", "runs/regret/states")
    arguments.action(arguments)


if __name__ == "__main__":
    main()
