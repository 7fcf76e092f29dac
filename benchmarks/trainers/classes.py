"""Sequence classification and regression (run_glue), and multiple choice (run_swag)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import DataCollatorForMultipleChoice, Trainer

from benchmarks.trainers.base import Baseline
from hftransfer.tasks.labels import Labels
from hftransfer.tasks.metrics import classification_metrics, multiple_choice_metrics, regression_metrics
from hftransfer.tasks.multiple_choice import MultipleChoiceTask
from hftransfer.tasks.text_classification import TextClassificationTask


class SequenceClassification(Baseline):
    """One label or number a row, with the stock classifier's own pooling."""

    auto_class = "AutoModelForSequenceClassification"
    peft_type = "SEQ_CLS"
    task: TextClassificationTask

    @property
    def labels(self) -> Labels:
        """Problem and names."""
        return self.task.labels

    def model_options(self) -> dict[str, Any]:
        """The number of outputs."""
        return {"num_labels": self.labels.num_outputs}

    def rows(self, data: Dataset, *, training: bool) -> Dataset:
        """Texts, or pairs of them."""
        texts = [data[name][:] for name in (self.columns.text, self.columns.text_pair) if name is not None]
        encoded = self.tokenizer(*texts, truncation=True, max_length=self.max_length)
        return Dataset.from_dict({**encoded, "labels": self.labels.encode(data[self.columns.label][:], "labels")})

    def scores(self, trainer: Trainer, data: Dataset, rows: Dataset) -> dict[str, float]:
        """Of argmax and softmax."""
        found = trainer.predict(rows)
        if self.labels.problem == "regression":
            return regression_metrics(found.label_ids, found.predictions.reshape(-1))
        if self.labels.problem == "multi_label":
            raise SystemExit("multi-label is not among the baselines")
        probabilities = torch.from_numpy(found.predictions).softmax(-1).numpy()
        return classification_metrics(found.label_ids, probabilities, self.labels.names)


class MultipleChoice(Baseline):
    """As many choices in every row: the stock collator cannot do with more or fewer."""

    auto_class = "AutoModelForMultipleChoice"
    peft_type = "SEQ_CLS"
    task: MultipleChoiceTask

    def rows(self, data: Dataset, *, training: bool) -> Dataset:
        """Each choice as a pair with the premise."""
        prompts, choices = self.task._prompts(data), self.task._choices(data)
        encoded = [
            self.tokenizer([prompt] * len(texts), texts, truncation=True, max_length=self.max_length)
            for prompt, texts in zip(prompts, choices, strict=True)
        ]
        columns = {name: [row[name] for row in encoded] for name in encoded[0]}
        return Dataset.from_dict({**columns, "labels": [int(label) for label in data[self.columns.label][:]]})

    def collator(self, model: Any) -> Any:
        """Pads the choices of a batch to one length."""
        return DataCollatorForMultipleChoice(self.tokenizer)

    def scores(self, trainer: Trainer, data: Dataset, rows: Dataset) -> dict[str, float]:
        """Accuracy of the choice with the largest logit."""
        found = trainer.predict(rows)
        return multiple_choice_metrics(np.asarray(rows["labels"]), list(found.predictions))
