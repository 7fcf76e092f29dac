"""Text classification of long texts: head, head and tail, or windows whose logits are pooled."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from hftransfer.errors import RecipeError
from hftransfer.recipe import DataSection, QuestionAnswering, TextClassification, TokenClassification
from hftransfer.tasks.question_answering import QuestionAnsweringTask
from hftransfer.tasks.text_classification import TextClassificationTask
from hftransfer.tasks.token_classification import TokenClassificationTask
from tests.tiny_models import WORDS, tiny_classifier, tiny_tokenizer

ROWS = {"text": [" ".join(WORDS[:30]), "good film", " ".join(WORDS[30:42])], "label": ["long", "short", "long"]}
TOKENIZER = tiny_tokenizer("bert")


def a_task(max_length=10, data=None, **settings):
    dataset = Dataset.from_dict(ROWS)
    task = TextClassificationTask.from_data(TextClassification(**settings), data or DataSection(), dataset)
    return task, task.encode(dataset, TOKENIZER, max_length)


def text_of(features, row):
    ids = features.columns["input_ids"][features.offsets_N1[row] : features.offsets_N1[row + 1]]
    return TOKENIZER.decode(ids, skip_special_tokens=True).split()


def test_the_head_is_what_is_read_unless_the_recipe_says():
    _, usual = a_task()
    _, head = a_task(long_inputs="head")
    assert text_of(usual, 0) == text_of(head, 0) == WORDS[:8]
    assert (head.truncated_rows, head.truncated_tokens) == (2, 22 + 4)


def test_head_and_tail_leave_out_the_middle():
    _, features = a_task(long_inputs="head_tail")
    assert text_of(features, 0) == [*WORDS[:2], *WORDS[24:30]]
    assert text_of(features, 1) == ["good", "film"]
    assert features.lengths_N.tolist() == [10, 4, 10]
    assert (features.truncated_rows, features.truncated_tokens) == (2, 22 + 4)


def test_windows_read_everything_and_their_logits_are_averaged():
    task, features = a_task(long_inputs="windows", stride=2)
    assert features.example_N.tolist() == [0] * 5 + [1] + [2] * 2
    assert features.labels.tolist() == [0] * 5 + [1] + [0] * 2
    assert (features.num_examples, features.truncated_rows) == (3, 0)
    assert {word for row in range(5) for word in text_of(features, row)} == set(WORDS[:30])
    logits = np.zeros((8, 2), np.float32)
    logits[:5, 0] = [9, -1, -1, -1, -1]
    logits[5, 1] = 1
    logits[6:, 1] = [3, -2]
    records = task.decode(logits, features)
    # One sure window outweighs four that lean the other way; the mean of 3 and -2 is above 0.
    assert [record["prediction"] for record in records] == ["long", "short", "short"]
    assert records[0]["probabilities"]["long"] == pytest.approx(1 / (1 + np.exp(-1.0)))
    assert task.score(logits, features)["accuracy"] == pytest.approx(2 / 3)


def test_multi_label_thresholds_are_tuned_on_texts_not_on_windows():
    rows = {**ROWS, "label": [["a"], [], ["a", "b"]]}
    data = Dataset.from_dict(rows)
    task = TextClassificationTask.from_data(TextClassification(long_inputs="windows", stride=2), DataSection(), data)
    features = task.encode(data, TOKENIZER, 10)
    logits = np.full((8, 2), -2.0, np.float32)
    logits[[0, 6], 0] = [4.0, 1.0]
    logits[6, 1] = 1.0
    task.calibrate(logits, features)
    scores = task.score(logits, features)
    assert (scores["accuracy"], scores["f1_macro"]) == (1.0, 1.0)


def test_what_has_no_head_and_tail_is_refused():
    model = tiny_classifier("bert")
    with pytest.raises(RecipeError, match="single texts"):
        TextClassificationTask.from_data(
            TextClassification(long_inputs="head_tail"), DataSection(text_pair="text"), Dataset.from_dict(ROWS)
        ).attach(model, TOKENIZER)
    tagger = TokenClassificationTask(TokenClassification(long_inputs="head_tail"), DataSection(), ["X", "Y"])
    reader = QuestionAnsweringTask(QuestionAnswering(long_inputs="head_tail"), DataSection(text_pair="context"))
    for task in (tagger, reader):
        with pytest.raises(RecipeError, match="use windows or head"):
            task.attach(model, TOKENIZER)
