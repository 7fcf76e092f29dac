"""transformers' Trainer, as run_glue uses it: tokenize with `map`, train, evaluate once.

Settings: precision (fp32, bf16), batch, accumulation, padding (max_length, dynamic), sampling (random,
group_by_length), frozen (none, body, or the number of top blocks that learn), frozen_dtype, epochs, learning_rate,
warmup, weight_decay. What is frozen has no gradient; its dropout stays on, as Trainer leaves it. For checkpoints of
the BERT family.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from benchmarks.contestants import common
from benchmarks.contestants.common import MAX_LENGTH, Spec

Settings = Mapping[str, Any]


def freeze(model: Any, settings: Settings) -> Any:
    """Freeze the body, or all but its top blocks; the pooler and the head learn, as with hftransfer."""
    frozen = settings.get("frozen", "none")
    if frozen == "none":
        return model
    model.base_model.requires_grad_(False)
    # Without a pooler the head has a dense layer of its own.
    if model.base_model.pooler is not None:
        model.base_model.pooler.requires_grad_(True)
    blocks = model.base_model.encoder.layer
    for block in blocks[len(blocks) - (0 if frozen == "body" else int(frozen)) :]:
        block.requires_grad_(True)
    return model


def arguments(spec: Spec) -> TrainingArguments:
    """The Trainer's arguments; what is not named keeps its default."""
    settings, on_gpu = spec.settings, torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(Path(spec.folder) / "trainer"),
        per_device_train_batch_size=settings["batch"],
        per_device_eval_batch_size=settings.get("eval_batch", settings["batch"]),
        gradient_accumulation_steps=settings.get("accumulation", 1),
        num_train_epochs=settings["epochs"],
        learning_rate=settings["learning_rate"],
        # A number below 1 is a share of the steps.
        warmup_steps=settings.get("warmup", 0.0),
        weight_decay=settings.get("weight_decay", 0.0),
        bf16=settings["precision"] == "bf16",
        train_sampling_strategy=settings.get("sampling", "random"),
        # Nobody saves or logs inside the timed section.
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=on_gpu,
        use_cpu=not on_gpu,
        seed=spec.seed,
    )


def accuracy(prediction: Any) -> dict[str, float]:
    """What run_glue computes when it evaluates."""
    return {"accuracy": float((np.argmax(prediction.predictions, -1) == prediction.label_ids).mean())}


def train(spec: Spec, adapt: Callable[[Any, Settings], Any] = freeze) -> None:
    """Train and report.

    Args:
        spec: What the harness said.
        adapt: Freezes or wraps the model.
    """
    settings = spec.settings
    datasets.disable_progress_bars()
    set_seed(spec.seed)
    splits = {name: common.read_dataset(path) for name, path in (("train", spec.train), ("eval", spec.validation))}
    tokenizer = AutoTokenizer.from_pretrained(spec.checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(
        spec.checkpoint, num_labels=len(set(splits["train"]["label"])), dtype=torch.float32
    )
    to_maximum = settings["padding"] == "max_length"

    def encode(rows: dict[str, list[str]]) -> Any:
        padding = "max_length" if to_maximum else False
        return tokenizer(rows["text"], padding=padding, max_length=MAX_LENGTH, truncation=True)

    started = time.perf_counter()
    model = adapt(model, settings)
    if settings.get("frozen_dtype") == "bf16":
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    encoded = {name: split.map(encode, batched=True, remove_columns=["text"]) for name, split in splits.items()}
    trainer = Trainer(
        model=model,
        args=arguments(spec),
        train_dataset=encoded["train"],
        eval_dataset=encoded["eval"],
        compute_metrics=accuracy,
        processing_class=tokenizer,
        data_collator=default_data_collator if to_maximum else DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    trainer.evaluate()
    seconds = time.perf_counter() - started
    tokens = sum(common.count_tokens(tokenizer, splits["train"]["text"])) * settings["epochs"]
    common.report(spec, seconds, tokens=tokens, **common.score_classifier(trainer.model, tokenizer, spec.test))


if __name__ == "__main__":
    train(Spec.from_command_line())
