"""Multiple choice: rows flattened, every row's softmax over its own choices, in any number from 2 to 8."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForMultipleChoice

from hftransfer.caching.states import PlainInputs, model_inputs
from hftransfer.errors import DataError, RecipeError
from hftransfer.recipe import DataSection, MultipleChoice
from hftransfer.tasks.metrics import multiple_choice_metrics
from hftransfer.tasks.multiple_choice import MultipleChoiceTask
from hftransfer.training import evaluate
from tests.tiny_models import tiny_model, tiny_tokenizer

ROWS = {
    "text": ["the film was", "we liked", "a dog"],
    "choices": [["good", "very bad and boring"], ["music", "the sad story", "it"], ["saw a cat", "heard", "read", "."]],
    "label": [1, 0, 3],
}
DATA = DataSection(text_pair="choices")


def a_task(rows=ROWS, data=DATA):
    dataset = Dataset.from_dict(rows)
    task = MultipleChoiceTask.from_data(MultipleChoice(), data, dataset)
    return task, task.encode(dataset, tiny_tokenizer("bert"), 32)


def stock_logits(model, tokenizer, row):
    """One example at a time, as transformers documents its multiple choice heads."""
    choices = ROWS["choices"][row]
    batch = tokenizer([ROWS["text"][row]] * len(choices), choices, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(**{name: tensor[None] for name, tensor in batch.items()}).logits[0]


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_batches_equal_single_examples(family):
    task, _ = a_task()
    tokenizer, model = tiny_tokenizer(family), tiny_model(AutoModelForMultipleChoice, family)
    features = task.encode(Dataset.from_dict(ROWS), tokenizer, 32)
    found = evaluate.predict(model, task, PlainInputs(task, features), max_examples=2)
    assert [len(row) for row in found] == [2, 3, 4]
    for row, logits in enumerate(found):
        np.testing.assert_allclose(logits, stock_logits(model, tokenizer, row).numpy(), atol=1e-5)


def test_the_loss_is_cross_entropy_over_a_rows_own_choices():
    task, features = a_task()
    model, rows = tiny_model(AutoModelForMultipleChoice, "bert"), np.asarray([2, 0])
    batch = task.collate(features, rows)
    assert set(model_inputs(batch)) == {"input_ids", "token_type_ids", "attention_mask"}
    with torch.no_grad():
        found = task.loss(model(**model_inputs(batch)), batch)
    expected = sum(
        torch.nn.functional.cross_entropy(stock_logits(model, tiny_tokenizer("bert"), row), torch.tensor(label))
        for row, label in ((2, 3), (0, 1))
    )
    torch.testing.assert_close(found, expected)
    assert task.weight(features, rows) == 2.0


def test_columns_with_one_choice_each_and_a_premise_of_two():
    columns = {"one": ["good", "bad"], "two": ["a film", "a book"], "text": ["it was", "we saw"], "why": ["x", "y"]}
    columns["label"] = [0, 1]
    task, features = a_task(columns, DataSection(text="text, why", text_pair="one,two"))
    assert features.extra["choices"] == [["good", "a film"], ["bad", "a book"]]
    text = tiny_tokenizer("bert").decode(task.collate(features, np.asarray([1]))["input_ids"][0, 0])
    assert "we saw" in text
    assert features.labels.tolist() == [0, 1]


def test_decode_gives_number_text_and_probabilities():
    task, features = a_task()
    records = task.decode([np.asarray([0.0, 0.0]), np.asarray([0.0, 9.0, 0.0]), np.arange(4.0)], features)
    assert [record["prediction"] for record in records] == [0, 1, 3]
    assert [record["choice"] for record in records] == ["good", "the sad story", "."]
    assert records[0]["probabilities"] == [0.5, 0.5]
    assert all(sum(record["probabilities"]) == pytest.approx(1.0) for record in records)


def test_scores_stand_beside_chance():
    logits = [np.asarray([0.0, 1.0]), np.asarray([1.0, 0.0, 0.5, 0.2]), np.asarray([1.0, 1.0])]
    assert multiple_choice_metrics(np.asarray([1, 2, 0]), logits) == pytest.approx(
        {"accuracy": 2 / 3, "chance": (0.5 + 0.25 + 0.5) / 3}
    )
    with pytest.raises(DataError, match="NaN"):
        multiple_choice_metrics(np.asarray([1]), [np.asarray([0.0, np.nan])])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": [["a"], ["a", "b"], ["a", "b"]]}, "row 1 has 1 choices"),
        ({"choices": [["a", "b"], ["a"] * 9, ["a", "b"]]}, "row 2 has 9 choices"),
        ({"label": [1, 3, 0]}, "row 2: choice 3 of 3; choices are numbered from 0"),
    ],
)
def test_what_cannot_be_chosen_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        a_task({**ROWS, **change})


def test_a_column_with_choices_must_be_named():
    with pytest.raises(RecipeError, match=r"data\.text_pair"):
        a_task(data=DataSection())


def test_evaluation_keeps_the_label_from_the_model():
    task, features = a_task()
    seen = []
    model = tiny_model(AutoModelForMultipleChoice, "bert")
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(set(kwargs)), with_kwargs=True)
    inputs = PlainInputs(task, features)
    with torch.no_grad():
        task.predictions(partial(inputs.run, model), inputs.collate(np.asarray([0])))
    assert seen == [{"input_ids", "token_type_ids", "attention_mask"}]


def test_an_example_with_several_cut_choices_is_one_truncated_example():
    long = " ".join(["good"] * 12)
    dataset = Dataset.from_dict({"text": ["we", "a"], "choices": [["bad", "sad"], [long, long, "it"]], "label": [0, 1]})
    features = MultipleChoiceTask.from_data(MultipleChoice(), DATA, dataset).encode(dataset, tiny_tokenizer("bert"), 8)
    assert (features.num_examples, features.truncated_rows) == (2, 1)
    assert features.truncated_tokens == 2 * (12 + 1 + 3 - 8)
