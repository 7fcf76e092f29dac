from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset

from hftransfer.advise.encoding import encode_layers
from hftransfer.advise.facts import wording_of
from hftransfer.caching.states import model_inputs
from hftransfer.recipe import DataSection, TextClassification
from hftransfer.tasks.registry import build_task
from hftransfer.training_settings import CacheSection
from tests.tiny_models import NUM_BLOCKS, tiny_classifier, tiny_tokenizer
from tests.tiny_runs import TASKS


def encoded(family, **cache):
    rows = Dataset.from_list(TASKS["text_classification"][2])
    task = build_task(TextClassification(), DataSection(), rows)
    features = task.encode(rows, tiny_tokenizer(family), 32)
    model, accelerator = tiny_classifier(family), Accelerator(cpu=True)
    found = encode_layers(model, task, features, np.arange(len(features)), accelerator, CacheSection(**cache))
    return found, model, task, features


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "mpnet", "deberta-v2"])
def test_layers_are_the_means_of_the_hidden_states(family):
    found, model, task, features = encoded(family, max_bytes=0)
    assert list(found.layers) == list(range(NUM_BLOCKS + 1))
    for row in (0, 5):
        inputs = model_inputs(task.collate(features, np.asarray([row])))
        with torch.no_grad():
            hidden = model(**inputs, output_hidden_states=True).hidden_states
        for layer, values_ND in found.layers.items():
            expected = hidden[layer][0].mean(0).numpy()
            np.testing.assert_allclose(values_ND[row], expected, atol=1e-4, err_msg=f"layer {layer}")


def test_of_a_decoder_it_is_the_last_token():
    found, model, task, features = encoded("gpt2", max_bytes=0)
    inputs = model_inputs(task.collate(features, np.asarray([1])))
    with torch.no_grad():
        last = model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1].numpy()
    np.testing.assert_allclose(found.layers[NUM_BLOCKS][1], last, atol=1e-4)


def test_vectors_are_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("HFTRANSFER_CACHE", str(tmp_path / "states"))
    first, *_ = encoded("bert")
    again, *_ = encoded("bert")
    other, *_ = encoded("distilbert")
    assert (first.computed, again.computed) == (12, 0)
    assert other.computed == 12
    for layer, values_ND in first.layers.items():
        np.testing.assert_array_equal(again.layers[layer], values_ND)


def test_fragments_and_unknown_pieces_are_counted():
    found = wording_of(["the good film", "a zzz film"], tiny_tokenizer("bert"))
    assert found.tokens_per_word == 1.0
    assert found.unknown == pytest.approx(1 / 6)
    assert found.is_foreign
    assert not wording_of(["the good film"] * 3, tiny_tokenizer("bert")).is_foreign
