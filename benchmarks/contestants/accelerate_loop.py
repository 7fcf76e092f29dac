"""A plain loop on Accelerate, as run_glue_no_trainer has it; evaluated once instead of after every epoch.

Settings: precision, batch, epochs, learning_rate, warmup, weight_decay.
"""

from __future__ import annotations

import math
import time
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    get_scheduler,
)

from benchmarks.contestants import common
from benchmarks.contestants.common import MAX_LENGTH, Spec

NO_DECAY = ("bias", "LayerNorm.weight")


def optimizer_of(model: Any, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW that decays no bias and no norm."""
    groups: dict[float, list[Any]] = {weight_decay: [], 0.0: []}
    for name, parameter in model.named_parameters():
        groups[0.0 if any(part in name for part in NO_DECAY) else weight_decay].append(parameter)
    return torch.optim.AdamW(
        [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()], lr=learning_rate
    )


def loop(spec: Spec, splits: dict[str, Any], model: Any, tokenizer: Any) -> Any:
    """Tokenize, train and evaluate; returns the model."""
    settings = spec.settings
    accelerator = Accelerator(mixed_precision="bf16" if settings["precision"] == "bf16" else "no")

    def encode(rows: dict[str, list[Any]]) -> Any:
        encoded = tokenizer(rows["text"], padding=False, max_length=MAX_LENGTH, truncation=True)
        return {**encoded, "labels": rows["label"]}

    encoded = {name: rows.map(encode, batched=True, remove_columns=rows.column_names) for name, rows in splits.items()}
    collate = DataCollatorWithPadding(tokenizer)
    train = DataLoader(encoded["train"], shuffle=True, collate_fn=collate, batch_size=settings["batch"])
    held_out = DataLoader(encoded["eval"], collate_fn=collate, batch_size=settings["batch"])
    optimizer = optimizer_of(model, settings["learning_rate"], settings["weight_decay"])
    model, optimizer, train, held_out = accelerator.prepare(model, optimizer, train, held_out)
    steps = settings["epochs"] * len(train)
    warmup = math.ceil(settings["warmup"] * steps)
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    for _ in range(settings["epochs"]):
        model.train()
        for batch in train:
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        for batch in held_out:
            accelerator.gather_for_metrics((model(**batch).logits.argmax(-1), batch["labels"]))
    return accelerator.unwrap_model(model, keep_fp32_wrapper=False)


def main(spec: Spec) -> None:
    """Train and report."""
    datasets.disable_progress_bars()
    set_seed(spec.seed)
    splits = {name: common.read_dataset(path) for name, path in (("train", spec.train), ("eval", spec.validation))}
    tokenizer = AutoTokenizer.from_pretrained(spec.checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(
        spec.checkpoint, num_labels=len(set(splits["train"]["label"])), dtype=torch.float32
    )
    started = time.perf_counter()
    model = loop(spec, splits, model, tokenizer)
    seconds = time.perf_counter() - started
    tokens = sum(common.count_tokens(tokenizer, splits["train"]["text"])) * spec.settings["epochs"]
    common.report(spec, seconds, tokens=tokens, **common.score_classifier(model, tokenizer, spec.test))


if __name__ == "__main__":
    main(Spec.from_command_line())
