"""What transformers' Trainer reaches on the data of a config with the config's budget.

    python -m benchmarks.trainer_quality stsb --checkpoint DIR --data DIR --seeds 1

The stock sequence classifier (or regressor) with its own pooling; epochs, batch, peak rate, warm-up and decay of the
config's recipe, one rate for all layers; the best epoch by the recipe's metric on validation data. One label or number
a row. Every line of output is one seed.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from benchmarks.quality import recipe_of
from hftransfer import Recipe
from hftransfer.data.load import load_splits
from hftransfer.tasks.labels import Labels, infer_labels
from hftransfer.tasks.metrics import classification_metrics, regression_metrics
from hftransfer.training.defaults import resolve

MAX_LENGTH = 128


def encode(data: Dataset, tokenizer: Any, recipe: Recipe, labels: Labels) -> Dataset:
    """Token ids and labels of a split."""
    texts = [data[column][:] for column in (recipe.data.text, recipe.data.text_pair) if column is not None]
    rows = dict(tokenizer(*texts, truncation=True, max_length=MAX_LENGTH))
    return Dataset.from_dict({**rows, "labels": labels.encode(data[recipe.data.label][:], "labels")})


def scores_of(labels: Labels, metric: str) -> Any:
    """A function for the Trainer that gives the metric."""

    def compute(found: Any) -> dict[str, float]:
        if labels.problem == "regression":
            return {metric: regression_metrics(found.label_ids, found.predictions.reshape(-1))[metric]}
        probabilities = torch.from_numpy(found.predictions).softmax(-1).numpy()
        return {metric: classification_metrics(found.label_ids, probabilities, labels.names)[metric]}

    return compute


def train(recipe: Recipe, seed: int, folder: str) -> tuple[str, float, float]:
    """The recipe's metric, and its values on validation and test data."""
    recipe, _ = resolve(recipe)
    set_seed(seed)
    splits = load_splits(recipe.data, seed=seed, stratify=recipe.task.has_classes)
    labels = infer_labels(splits.train, recipe.data.label, "auto", "training data")
    metric = recipe.evaluation.metric or {"regression": "spearman"}.get(labels.problem, "accuracy")
    tokenizer = AutoTokenizer.from_pretrained(recipe.checkpoint)
    train_rows, validation, test = (
        encode(data, tokenizer, recipe, labels) for data in (splits.train, splits.validation, splits.test)
    )
    model = AutoModelForSequenceClassification.from_pretrained(
        recipe.checkpoint, num_labels=labels.num_outputs, dtype=torch.float32
    )
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=recipe.optim.per_device_train_batch_size,
        per_device_eval_batch_size=64,
        learning_rate=recipe.optim.learning_rate,
        num_train_epochs=recipe.optim.num_train_epochs,
        warmup_steps=recipe.optim.warmup_ratio,
        weight_decay=recipe.optim.weight_decay,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        train_sampling_strategy="group_by_length",
        seed=seed,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=train_rows,
        eval_dataset=validation,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=scores_of(labels, metric),
    )
    trainer.train()
    return metric, *(trainer.evaluate(rows)[f"eval_{metric}"] for rows in (validation, test))


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_set", help="a config of recipes/configs/text_classification")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            arguments.out = folder
            recipe = recipe_of(arguments.data_set, "full_fine_tuning", seed, arguments)
            metric, validation, test = train(recipe, seed, f"{folder}/trainer")
        print(f"{arguments.data_set} seed {seed}: {metric} {validation:.4f} on validation, {test:.4f} on test data")


if __name__ == "__main__":
    main()
