"""Predictions in token-budget batches equal those of one example at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hftransfer.caching.states import PlainInputs
from hftransfer.errors import DataError
from hftransfer.recipe import DataSection, TextClassification
from hftransfer.tasks.labels import Labels
from hftransfer.tasks.text_classification import TextClassificationTask
from hftransfer.tasks.tokenization import tokenize
from hftransfer.training import evaluate
from hftransfer.training.averaging import is_better
from tests.tiny_models import WORDS, tiny_classifier, tiny_tokenizer

TEXTS = [" ".join(WORDS[index : index + 1 + index * 7 % 23]) for index in range(13)]


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
@pytest.mark.parametrize("budget", [30, 8192])
def test_batches_equal_single_examples(family, budget, monkeypatch):
    monkeypatch.setattr(evaluate, "pass_tokens", lambda device_type: budget)
    tokenizer, model = tiny_tokenizer(family), tiny_classifier(family).train()
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    task = TextClassificationTask(TextClassification(), DataSection(), Labels("single_label", ("a", "b", "c")))
    task.pad_values = {"input_ids": tokenizer.pad_token_id}
    features = tokenize(tokenizer, TEXTS, None, 64, np.zeros(len(TEXTS), np.int64))
    found = evaluate.predict(model, task, PlainInputs(task, features), max_examples=4)
    assert model.training, "the mode is put back"
    model.eval()
    with torch.no_grad():
        single = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in TEXTS]
    np.testing.assert_allclose(found, torch.stack(single).numpy(), atol=1e-5)
    assert found.dtype == np.float32


def test_no_rows_is_a_user_error():
    task = TextClassificationTask(TextClassification(), DataSection(), Labels("regression", ()))
    features = tokenize(tiny_tokenizer("bert"), [], None, 64, None)
    with pytest.raises(DataError, match="no rows"):
        evaluate.predict(tiny_classifier("bert"), task, PlainInputs(task, features))


NAN = float("nan")


@pytest.mark.parametrize(
    ("value", "best", "metric", "better"),
    [
        (0.5, None, "accuracy", True),
        (0.5, 0.4, "accuracy", True),
        (0.4, 0.4, "accuracy", False),
        (0.5, 0.4, "mse", False),
        (0.3, 0.4, "mse", True),
        (0.9, 0.8, "f1/rare", True),
        (NAN, None, "accuracy", True),
        (NAN, 0.1, "accuracy", False),
        (NAN, NAN, "accuracy", False),
        (0.1, NAN, "accuracy", True),
        (9.0, NAN, "mse", True),
    ],
)
def test_nan_is_the_worst_score(value, best, metric, better):
    assert is_better(value, best, metric) is better
