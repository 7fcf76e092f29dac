"""Put every fault into the folder of every task and strategy, and see what the verification finds.

    python -m scripts.inject_faults [TASK ...]

Prints a table: how many folders were right and found right, and for each fault in how many folders it was found. Models
are tiny and random; the figures are about finding faults alone.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from hftransfer.errors import StrategyError
from hftransfer.models.probe import check_folder
from tests.folder_faults import FAULTS, edit_json, rehash, restored
from tests.tiny_models import FAMILIES, write_tiny_checkpoint
from tests.tiny_runs import CLASSES, STRATEGIES, TASKS, tiny_run
from tests.tiny_runs import FAMILIES as FAMILY_OF

MORE = {
    ("text_classification", "multi_label"): ("full_fine_tuning", "lora"),
    ("text_classification", "regression"): ("full_fine_tuning", "lora"),
    ("text_classification", "pairs"): ("full_fine_tuning",),
    ("text_classification", "gpt2"): ("full_fine_tuning", "lora", "ia3"),
    ("text_classification", "roberta"): ("full_fine_tuning", "lora"),
    ("text_classification", "bart"): ("full_fine_tuning",),
    ("text_classification", "merged"): ("lora", "ia3"),
    ("text_classification", "dora"): ("lora",),
    ("text_classification", "mean"): ("lora", "full_fine_tuning"),
    ("causal_lm", "llama"): ("full_fine_tuning", "lora"),
    ("seq2seq", "bart"): ("full_fine_tuning", "lora"),
    ("causal_lm", "merged"): ("lora",),
}
"""Beyond one family for each task: problems, families and forms of adapters."""


def cases() -> Iterator[tuple[str, str, str]]:
    """Task, variant and strategy."""
    for task in TASKS:
        for strategy in STRATEGIES:
            yield task, "", strategy
    for (task, variant), strategies in MORE.items():
        for strategy in strategies:
            yield task, variant, strategy


def train(task: str, variant: str, strategy: str, folder: Path) -> tuple[Path, Path]:
    """Train one case; the model's folder and the checkpoint's."""
    family = variant if variant in FAMILIES else FAMILY_OF.get(task, "bert")
    name = CLASSES.get(task, "AutoModel")
    checkpoint = write_tiny_checkpoint(folder / "checkpoint", family, auto_class=getattr(transformers, name))
    settings: dict[str, Any] = {"type": strategy, **STRATEGIES[strategy]}
    settings |= {"merge": True} if variant == "merged" else {"variant": "dora"} if variant == "dora" else {}
    rows, columns, task_settings = [dict(row) for row in TASKS[task][2]], {}, {}
    for at, row in enumerate(rows):
        if variant == "multi_label":
            row["label"] = [["a", "b"], ["b"], ["a", "c"]][at % 3]
        elif variant == "regression":
            row["label"] = at / 7
        elif variant == "pairs":
            row["other"], columns = "the dog was good", {"text_pair": "other"}
    if variant == "mean":
        task_settings = {"pooling": "mean"}
    run = tiny_run(task, settings, checkpoint, folder / "run", rows=rows, columns=columns, settings=task_settings)
    if variant == "merged":
        edit_json(
            run.model_folder / "hftransfer_probe.json",
            lambda probe: probe.update(merged_from=str(checkpoint / "model.safetensors")),
        )
    return run.model_folder, checkpoint


def inject(model: Path, checkpoint: Path) -> Iterator[tuple[str, list[str]]]:
    """Every fault that a folder can have, with what the verification says of it."""
    for name, fault in FAULTS.items():
        with restored(model, checkpoint):
            if fault(model):
                rehash(model)
                yield name, check_folder(model)["problems"]


def main(only: list[str]) -> int:
    """Run the campaign and print its table; 1 if a fault was missed or a right folder refused."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    started, right, refused, largest = time.perf_counter(), 0, [], 0.0
    found, tried, missed = Counter[str](), Counter[str](), []
    for task, variant, strategy in cases():
        if only and task not in only:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            try:
                model, checkpoint = train(task, variant, strategy, Path(temporary))
            except StrategyError:
                continue
            case = f"{task} {variant} {strategy}"
            result = check_folder(model)
            right, largest = right + 1, max(largest, result["difference"])
            refused += [f"{case}: {result['problems'][0]}"] if result["problems"] else []
            for name, problems in inject(model, checkpoint):
                tried[name] += 1
                found[name] += bool(problems)
                missed += [] if problems else [f"{name} in {case}"]
    print(
        f"{right} folders of {len(TASKS)} tasks that were right: {len(refused)} refused; differences to {largest:.1e}"
    )
    print(*refused, sep="\n", end="\n" if refused else "")
    print(f"\n{'fault':28} found  of")
    for name in FAULTS:
        print(f"{name:28} {found[name]:5} {tried[name]:3}")
    print(f"{'all':28} {found.total():5} {tried.total():3}   ({time.perf_counter() - started:.0f} s)")
    print(*missed, sep="\n")
    return int(bool(missed or refused))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
