"""Trains on a handful of examples, again and again: a task per line of JSON on stdin, a result per line on stdout.

    python -m benchmarks.contestants.few_shot_worker ours|setfit

One process for all draws, so that importing is no part of any of them. A task has `checkpoint`, `train` and `test`
(parquet files with `text` and `label`), `seed`, `threads`, `max_length`, and `settings` of the contestant. A result has
`correct` and `total` on test data, and seconds: `training`, the training with its head; `processor`, of it what the
processor worked, which other programs on the machine change little; `whole`, with loading and predicting the test data.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.contestants import common


@contextlib.contextmanager
def timed(owner: Any, name: str) -> Iterator[dict[str, float]]:
    """The seconds that a function takes while the context lasts; it is called once."""
    function, seconds = getattr(owner, name), {}

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        started, worked = time.perf_counter(), time.process_time()
        result = function(*args, **kwargs)
        seconds["training"], seconds["processor"] = time.perf_counter() - started, time.process_time() - worked
        return result

    setattr(owner, name, wrapper)
    try:
        yield seconds
    finally:
        setattr(owner, name, function)


def ours(task: dict[str, Any]) -> dict[str, Any]:
    """hftransfer's `contrastive`, or another strategy that the settings name."""
    from hftransfer import Recipe, finetune
    from hftransfer.training.loop import Training

    train, test = common.read_dataset(task["train"]), common.read_dataset(task["test"])
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(
            checkpoint=task["checkpoint"],
            seed=task["seed"],
            output_dir=f"{folder}/run",
            **{"data": {"max_length": task["max_length"]}, "strategy": "contrastive", **task["settings"]},
        )
        started = time.perf_counter()
        # All drawn examples are learned from. Validation chooses nothing here, so the same ones stand in for it.
        with timed(Training, "run") as seconds:
            run = finetune(recipe, train=train, validation=train, test=test)
        whole = time.perf_counter() - started
        facts, scores = run.metrics["training"], run.metrics["test"]
        total = len(test)
        return {
            "correct": round(scores["accuracy"] * total),
            "total": total,
            **seconds,
            "whole": whole,
            "steps": facts["steps"],
            "precision": facts["mixed_precision"],
        }


def setfit(task: dict[str, Any]) -> dict[str, Any]:
    """The setfit package with its defaults, but for the settings: fields of its TrainingArguments."""
    from setfit import SetFitModel, Trainer, TrainingArguments

    train, (texts, labels) = common.read_dataset(task["train"]), common.read_rows(task["test"])
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        model = SetFitModel.from_pretrained(task["checkpoint"], device="cpu")
        model.model_body.max_seq_length = task["max_length"]
        options = {"seed": task["seed"], "report_to": "none", "save_strategy": "no", **task["settings"]}
        trainer = Trainer(
            model=model, args=TrainingArguments(output_dir=str(Path(folder)), **options), train_dataset=train
        )
        with timed(trainer, "train") as seconds:
            trainer.train()
        found = model.predict(texts, show_progress_bar=False)
        whole = time.perf_counter() - started
    steps = trainer.st_trainer.state.global_step
    counted = common.count_correct(found, labels)
    return {**counted, **seconds, "whole": whole, "steps": steps, "precision": "no"}


CONTESTANTS = {"ours": ours, "setfit": setfit}


def main() -> None:
    """Answer line by line; what the contestants print goes to stderr."""
    import torch

    contestant, answers = CONTESTANTS[sys.argv[1]], sys.stdout
    print(json.dumps({"versions": common.versions()}), file=answers, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        torch.set_num_threads(task["threads"])
        with contextlib.redirect_stdout(sys.stderr):
            result = contestant(task)
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()
