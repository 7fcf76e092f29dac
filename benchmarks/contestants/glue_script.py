"""The least script that does what run_glue does with files: its imports, its order, its defaults (batch 8, pad to 128).

run_glue also fetches its metric from the Hub; this script does without, which is to its advantage.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import datasets
import evaluate  # noqa: F401
import numpy as np
from datasets import load_dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)


@dataclass
class DataArguments:
    """Files and lengths."""

    train_file: str
    validation_file: str
    max_seq_length: int = 128


@dataclass
class ModelArguments:
    """The checkpoint."""

    model_name_or_path: str = field(metadata={"help": "Folder or Hub id."})


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """The share of right answers."""
    return {"accuracy": float((np.argmax(prediction.predictions, -1) == prediction.label_ids).mean())}


def main() -> None:
    """Load, tokenize, train."""
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)
    datasets.disable_progress_bars()
    files = {"train": data_args.train_file, "validation": data_args.validation_file}
    raw = load_dataset("parquet", data_files=files)
    labels = sorted(raw["train"].unique("label"))
    config = AutoConfig.from_pretrained(model_args.model_name_or_path, num_labels=len(labels))
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path)
    model = AutoModelForSequenceClassification.from_pretrained(model_args.model_name_or_path, config=config)

    def encode(rows: dict[str, Any]) -> Any:
        return tokenizer(rows["text"], padding="max_length", max_length=data_args.max_seq_length, truncation=True)

    with training_args.main_process_first(desc="dataset map pre-processing"):
        encoded = raw.map(encode, batched=True)
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        compute_metrics=accuracy,
        processing_class=tokenizer,
        data_collator=default_data_collator,
    )
    trainer.train()


if __name__ == "__main__":
    main()
