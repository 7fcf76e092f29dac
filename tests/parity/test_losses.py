"""The task's loss equals the loss that transformers computes from labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset

from hftransfer.recipe import DataSection, TextClassification
from hftransfer.tasks.text_classification import TextClassificationTask
from tests.tiny_models import tiny_classifier, tiny_tokenizer

COLUMNS = {
    "single_label": ["pos", "neg", "so so"],
    "multi_label": [["fun"], ["sad", "fun", "odd"], []],
    "regression": [0.5, 2.0, -1.0],
}


@pytest.mark.parametrize("problem", COLUMNS)
@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_the_loss_is_that_of_transformers(problem, family):
    data = Dataset.from_dict(
        {"text": ["good film", "a bad film", "boring story with music"], "label": COLUMNS[problem]}
    )
    task = TextClassificationTask.from_data(TextClassification(), DataSection(), data)
    tokenizer = tiny_tokenizer(family)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    features = task.encode(data, tokenizer, 32)
    model = tiny_classifier(family, num_labels=task.labels.num_outputs)
    model.config.problem_type = task.config_overrides()["problem_type"]
    batch = task.collate(features, np.arange(3))
    with torch.no_grad():
        outputs = model(**batch)
    found = task.loss(outputs, batch) / task.weight(features, np.arange(3))
    torch.testing.assert_close(found, outputs.loss)
