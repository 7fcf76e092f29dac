"""Sequence to sequence: the loss of transformers, rows and references, prompts, and batched generation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSeq2SeqLM

from hftransfer.caching.states import PlainInputs, model_inputs
from hftransfer.errors import CheckpointError, DataError, RecipeError
from hftransfer.recipe import DataSection, TextGeneration
from hftransfer.tasks.generation import cut_targets, fill_prompt
from hftransfer.tasks.seq2seq import Seq2SeqTask
from hftransfer.training import evaluate
from tests.tiny_models import tiny_model, tiny_tokenizer

ROWS = {
    "text": ["the film was good", "we", "a very nice story of the cat and the dog", "sad"],
    "label": [["good film", "nice"], ["we liked it very much"], ["story"], ["bad", "dull"]],
}


def a_task(family, max_new_tokens=32, **settings):
    dataset, model = Dataset.from_dict(ROWS), tiny_model(AutoModelForSeq2SeqLM, family)
    task = Seq2SeqTask.from_data(TextGeneration(max_new_tokens=max_new_tokens, **settings), DataSection(), dataset)
    tokenizer = tiny_tokenizer(family)
    task.attach(model, tokenizer)
    return task, model, tokenizer, dataset


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_loss_and_weight_give_the_mean_of_transformers(family):
    task, model, tokenizer, dataset = a_task(family)
    features, rows = task.encode(dataset, tokenizer, 32, training=True), np.arange(3)
    batch = task.collate(features, rows)
    inputs = model_inputs(batch)
    with torch.no_grad():
        found = task.loss(model(**inputs), batch) / task.weight(features, rows)
        del inputs["decoder_input_ids"]
        expected = model(**inputs, labels=batch["labels"]).loss
    torch.testing.assert_close(found, expected)
    assert task.weight(features, rows) == int((batch["labels"] != -100).sum())


def test_smoothing_spreads_over_the_vocabulary_and_leaves_padding_out():
    task, model, tokenizer, dataset = a_task("t5", label_smoothing=0.2)
    features = task.encode(dataset, tokenizer, 32, training=True)
    losses = []
    with torch.no_grad():
        for rows in ([0, 2], [0], [2]):
            batch = task.collate(features, np.asarray(rows))
            losses.append(task.loss(model(**model_inputs(batch)), batch))
        logits = model(**model_inputs(batch)).logits[0].log_softmax(-1)
    torch.testing.assert_close(losses[0], losses[1] + losses[2])
    labels = batch["labels"][0]
    by_hand = -(0.8 * logits[torch.arange(len(labels)), labels] + 0.2 * logits.mean(-1)).sum()
    torch.testing.assert_close(losses[2], by_hand)


def test_training_has_a_row_per_reference_and_evaluation_one_per_example():
    task, _, tokenizer, dataset = a_task("t5")
    train, test = task.encode(dataset, tokenizer, 32, training=True), task.encode(dataset, tokenizer, 32)
    assert train.example_N.tolist() == [0, 0, 1, 2, 3, 3]
    assert test.example_N.tolist() == [0, 1, 2, 3]
    assert [tokenizer.decode(train.labels[row]) for row in (0, 1)] == ["good film </s>", "nice </s>"]
    assert test.extra["references"] == ROWS["label"]
    assert task.encode(dataset.remove_columns("label"), tokenizer, 32).labels is None


def test_an_input_with_several_outputs_is_one_truncated_example():
    task, _, tokenizer, dataset = a_task("t5")
    for training in (True, False):
        features = task.encode(dataset, tokenizer, 4, training=training)
        assert (features.num_examples, features.truncated_rows) == (4, 2)


def test_long_outputs_keep_their_end_and_are_counted():
    assert cut_targets([[5, 6, 7, 1], [5, 1]], 3) == ([[5, 6, 1], [5, 1]], 1)
    task, _, tokenizer, dataset = a_task("t5", max_new_tokens=4)
    features = task.encode(dataset, tokenizer, 32)
    assert features.labels.lengths_N.max() == 4
    assert (features.gold_labels, features.lost_labels) == (13, 2)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_batches_generate_what_single_examples_do(family, beams):
    task, model, tokenizer, dataset = a_task(family, num_beams=beams, max_new_tokens=9)
    found = evaluate.predict(model, task, PlainInputs(task, task.encode(dataset, tokenizer, 32)), max_examples=3)
    for text, generated in zip(ROWS["text"], task.decoded(found), strict=True):
        with torch.no_grad():
            ids = model.generate(
                **tokenizer(text, return_tensors="pt"), max_new_tokens=9, num_beams=beams, do_sample=False
            )
        assert generated == tokenizer.decode(ids[0], skip_special_tokens=True).strip()


@pytest.mark.parametrize(
    ("prompt", "pair", "filled"),
    [
        (None, None, "a dog"),
        (None, "b", "a dog b"),
        ("summarize: ", None, "summarize: a dog"),
        ("<{text}>", None, "<a dog>"),
        ("{text_pair} | {text}", "{text}", "{text} | a dog"),
        ("q: {text}!", "b", "q: a dog b!"),
    ],
)
def test_prompts(prompt, pair, filled):
    assert fill_prompt(prompt, "a dog", pair) == filled


def test_what_cannot_work_is_refused():
    with pytest.raises(RecipeError, match="has no column"):
        a_task("t5", prompt="{text_pair}{text}")
    with pytest.raises(RecipeError, match="set at most 63"):
        a_task("bart", max_new_tokens=64)
    task, model, tokenizer, _ = a_task("t5")
    with pytest.raises(DataError, match="row 1 has no right output"):
        task.encode(Dataset.from_dict({"text": ["a"], "label": [[]]}), tokenizer, 32)
    model.config.decoder_start_token_id = None
    with pytest.raises(CheckpointError, match="decoder_start_token_id"):
        task.attach(model, tokenizer)


def test_what_the_checkpoints_old_task_wants_of_generation_is_dropped_and_the_model_can_be_saved(tmp_path):
    dataset, model, tokenizer = (
        Dataset.from_dict(ROWS),
        tiny_model(AutoModelForSeq2SeqLM, "bart"),
        tiny_tokenizer("bart"),
    )
    generation = model.generation_config
    old = {"early_stopping": True, "num_beams": 4, "length_penalty": 2.0, "min_length": 20, "no_repeat_ngram_size": 3}
    for name, value in {**old, "temperature": 0.7, "repetition_penalty": 1.3}.items():
        setattr(generation, name, value)
    token = generation.forced_eos_token_id = tokenizer.eos_token_id
    task = Seq2SeqTask.from_data(TextGeneration(max_new_tokens=8), DataSection(), dataset)
    task.attach(model, tokenizer)
    model.save_pretrained(tmp_path)
    saved = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).generation_config
    assert saved.num_beams == 1
    assert saved.max_new_tokens == 8
    assert saved.forced_eos_token_id == token
    left = {name: getattr(saved, name) for name in (*old, "temperature", "repetition_penalty") if name != "num_beams"}
    assert set(left.values()) <= {None, False}, left


@pytest.mark.parametrize(
    ("prompt", "end"),
    [("{text} is good ?", "is good ?"), ("movie {text} ?", "?"), ("is {text_pair} good {text}", "we")],
)
def test_long_texts_lose_their_end_and_keep_their_prompt(prompt, end):
    rows = {"text": ["the film " * 20 if "pair" not in prompt else "we", "sad"], "label": [["good", "nice"], ["bad"]]}
    rows["pair"] = ["the dog " * 20, "a cat"]
    dataset, model, tokenizer = Dataset.from_dict(rows), tiny_model(AutoModelForSeq2SeqLM, "t5"), tiny_tokenizer("t5")
    data = DataSection(text_pair="pair") if "pair" in prompt else DataSection()
    task = Seq2SeqTask.from_data(TextGeneration(max_new_tokens=8, prompt=prompt), data, dataset)
    task.attach(model, tokenizer)
    features = task.encode(dataset, tokenizer, 16, training=True)
    first = tokenizer.decode(features.columns["input_ids"][: features.offsets_N1[1]], skip_special_tokens=True)
    assert features.lengths_N[0] == 16
    assert first.startswith(prompt.split("{")[0].strip())
    assert first.endswith(end)
    whole = task.texts(dataset)[0]
    assert features.truncated_rows == 1
    # It has two right outputs, and so two rows.
    assert features.truncated_tokens == 2 * (len(tokenizer(whole)["input_ids"]) - 16)
    unlabelled = task.encode(dataset.remove_columns("label"), tokenizer, 16)
    assert unlabelled.columns["input_ids"][:16].tolist() == features.columns["input_ids"][:16].tolist()
    assert unlabelled.truncated_rows == 1
