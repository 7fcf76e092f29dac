"""The text classification task: what it tells the model, and what it makes of outputs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from hftransfer.caching.states import PlainInputs
from hftransfer.errors import RecipeError
from hftransfer.recipe import DataSection, TextClassification
from hftransfer.tasks.labels import Labels
from hftransfer.tasks.metrics import METRICS
from hftransfer.tasks.text_classification import TextClassificationTask
from hftransfer.training.evaluate import predict
from tests.tiny_models import tiny_classifier, tiny_tokenizer

TEXTS = ["good film", "bad film indeed", "a boring story", "lovely music"]
COLUMNS = {
    "single_label": ["pos", "neg", "neg", "pos"],
    "multi_label": [["fun"], ["sad", "fun"], ["sad"], []],
    "regression": [0.5, 2.0, -1.0, 0.25],
}


def a_task(problem, **settings):
    data = Dataset.from_dict({"text": TEXTS, "label": COLUMNS[problem]})
    task = TextClassificationTask.from_data(TextClassification(**settings), DataSection(), data)
    return task, task.encode(data, tiny_tokenizer("bert"), 16)


@pytest.mark.parametrize("problem", COLUMNS)
def test_every_metric_that_may_be_asked_for_is_scored(problem):
    task, features = a_task(problem)
    scores = task.score(np.random.default_rng(0).normal(size=(4, task.labels.num_outputs)), features)
    assert {*METRICS[problem], *(f"f1/{name}" for name in task.labels.names)} <= scores.keys()
    assert task.default_metric in scores


@pytest.mark.parametrize("problem", COLUMNS)
def test_a_task_comes_back_from_the_config_of_its_model(problem):
    task, features = a_task(problem)
    predictions = np.random.default_rng(1).normal(size=(4, task.labels.num_outputs)).astype(np.float32)
    task.calibrate(predictions, features)
    config = tiny_classifier("bert", num_labels=task.labels.num_outputs).config
    for name, value in {**task.config_overrides(), **task.saved_config()}.items():
        setattr(config, name, value)
    again = TextClassificationTask.from_model(task.settings, DataSection(), config)
    assert again.labels == task.labels
    assert again.decode(predictions, features) == task.decode(predictions, features)


def test_calibration_moves_the_thresholds_only_when_asked():
    predictions = np.asarray([[-1.0, -3.0], [-2.0, -1.0], [-4.0, -1.5], [-5.0, -6.0]], dtype=np.float32)
    tuned, features = a_task("multi_label")
    tuned.calibrate(predictions, features)
    assert tuned.score(predictions, features)["f1_macro"] == 1.0
    fixed, _ = a_task("multi_label")
    fixed.calibrate(predictions, features, thresholds=False)
    assert fixed.score(predictions, features)["f1_macro"] == 0.0


def test_decode_speaks_in_label_names():
    task, features = a_task("single_label")
    records = task.decode(np.asarray([[0.0, 2.0], [3.0, 0.0], [0.0, 0.0], [0.0, 1.0]]), features)
    assert [record["prediction"] for record in records] == ["pos", "neg", "neg", "pos"]
    assert records[2]["probabilities"] == {"neg": 0.5, "pos": 0.5}
    task, features = a_task("multi_label")
    records = task.decode(np.asarray([[9.0, 9.0], [-9.0, -9.0], [9.0, -9.0], [-9.0, 9.0]]), features)
    assert [record["prediction"] for record in records] == [["fun", "sad"], [], ["fun"], ["sad"]]
    task, features = a_task("regression")
    assert task.decode(np.asarray([[1.5]]), features) == [{"prediction": 1.5}]


def test_collate_pads_and_weight_counts_rows():
    task, features = a_task("single_label")
    batch = task.collate(features, np.asarray([1, 0]))
    assert batch["labels"].tolist() == [0, 1]
    assert batch["attention_mask"].sum(1).tolist() == [5, 4]
    assert task.weight(features, np.asarray([1, 0])) == 2.0


def test_balanced_class_weights_have_mean_one_over_examples():
    data = Dataset.from_dict({"text": ["x"] * 5, "label": ["a", "b", "b", "b", "b"]})
    task = TextClassificationTask.from_data(TextClassification(balance="classes"), DataSection(), data)
    features = task.encode(data, tiny_tokenizer("bert"), 16)
    task.initialise_head(tiny_classifier("bert", num_labels=2), ["classifier.bias"], features)
    assert task.class_weights_C.tolist() == pytest.approx([2.5, 0.625])
    assert task.weight(features, np.arange(5)) == pytest.approx(5.0)
    assert task.weight(features, np.asarray([0])) == pytest.approx(2.5)


def test_a_new_head_starts_at_the_base_rate_and_a_trained_one_stays():
    task, features = a_task("multi_label")
    model = tiny_classifier("roberta", num_labels=2)
    before = model.classifier.out_proj.bias.clone()
    task.initialise_head(model, [], features)
    assert torch.equal(model.classifier.out_proj.bias, before)
    task.initialise_head(model, ["classifier.out_proj.bias"], features)
    assert model.classifier.out_proj.bias.sigmoid().tolist() == pytest.approx([0.5, 0.5])
    task, features = a_task("regression")
    model = tiny_classifier("bert", num_labels=1)
    task.initialise_head(model, ["classifier.bias"], features)
    assert model.classifier.bias.tolist() == pytest.approx([0.4375])


def test_the_output_layer_is_initialised_not_a_dense_layer_of_the_same_width():
    task = TextClassificationTask(
        TextClassification(), DataSection(), Labels("multi_label", tuple(map(str, range(16))))
    )
    model = tiny_classifier("roberta", num_labels=16)
    dense = model.classifier.dense.bias.clone()
    fresh = [name for name, _ in model.named_parameters() if name.startswith("classifier")]
    task.initialise_head(model, fresh, SimpleNamespace(labels=np.full((4, 16), 0.25, np.float32)))
    assert torch.equal(model.classifier.dense.bias, dense)
    assert model.classifier.out_proj.bias.sigmoid().tolist() == pytest.approx([0.25] * 16)


@pytest.mark.parametrize(
    ("problem", "settings"),
    [
        ("regression", {"balance": "classes"}),
        ("regression", {"focal_gamma": 2.0}),
        ("multi_label", {"label_smoothing": 0.1}),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(problem, settings):
    with pytest.raises(RecipeError, match=f"task.{next(iter(settings))}"):
        a_task(problem, **settings)


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("long_inputs", ["head", "windows", "head_tail"])
def test_a_text_that_holds_an_end_of_sequence_is_text(family, long_inputs, tmp_path):
    rows = Dataset.from_dict({"text": ["a good film", "a </s> film </s>"], "label": ["x", "y"]})
    task = TextClassificationTask.from_data(TextClassification(long_inputs=long_inputs), DataSection(), rows)
    model, tokenizer = tiny_classifier(family, 2), tiny_tokenizer(family)
    task.attach(model, tokenizer)
    features = task.encode(rows, tokenizer, 16)
    together = predict(model, task, PlainInputs(task, features))
    for row in range(2):
        alone = predict(model, task, PlainInputs(task, task.encode(rows.select([row]), tokenizer, 16)))
        np.testing.assert_allclose(together[row], alone[0], atol=1e-5)
    # Plain transformers read the saved tokenizer alike.
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(rows["text"][1])["input_ids"].count(again.eos_token_id) == 1


@pytest.mark.parametrize("long_inputs", ["head", "windows"])
def test_an_empty_text_is_read_as_an_end_of_sequence_where_nothing_else_is_there(long_inputs):
    rows = Dataset.from_dict({"text": ["a good film", ""], "label": ["x", "y"]})
    task = TextClassificationTask.from_data(TextClassification(long_inputs=long_inputs), DataSection(), rows)
    tokenizer = tiny_tokenizer("gpt2")
    features = task.encode(rows, tokenizer, 16)
    assert features.lengths_N.tolist() == [3, 1]
    assert features.columns["input_ids"][-1] == tokenizer.eos_token_id
