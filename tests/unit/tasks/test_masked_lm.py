"""Masked language modelling: no text is lost, the loss is transformers', masks follow from step and row alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from hftransfer.caching.states import PlainInputs, model_inputs
from hftransfer.errors import CheckpointError, DataError
from hftransfer.recipe import DataSection, MaskedLM
from hftransfer.tasks.masked_lm import MaskedLMTask
from hftransfer.training import evaluate
from tests.tiny_models import WORDS, tiny_model, tiny_tokenizer

TEXTS = [" ".join(WORDS[:40]), "the film was good", "", " ".join(WORDS[5:25])]


def a_task(family="bert", texts=TEXTS, **settings):
    tokenizer, dataset = tiny_tokenizer(family), Dataset.from_dict({"text": texts})
    model = tiny_model(AutoModelForSeq2SeqLM if family == "t5" else AutoModelForMaskedLM, family)
    task = MaskedLMTask.from_data(MaskedLM(**settings), DataSection(), dataset)
    task.attach(model, tokenizer)
    return task, model, tokenizer, dataset


def test_long_texts_are_cut_and_nothing_is_lost():
    task, _, tokenizer, dataset = a_task()
    features = task.encode(dataset, tokenizer, 16)
    assert features.example_N.tolist() == [0, 0, 0, 1, 2, 3, 3]
    assert features.lengths_N.max() == 16
    for example, text in enumerate(TEXTS):
        rows = np.flatnonzero(features.example_N == example)
        spans = [slice(*features.offsets_N1[row : row + 2]) for row in rows]
        read = [tokenizer.decode(features.columns["input_ids"][span], skip_special_tokens=True) for span in spans]
        assert " ".join(filter(None, read)) == text
    train = task.encode(dataset, tokenizer, 16, training=True)
    assert train.example_N.tolist() == [0, 0, 0, 1, 3, 3], "an empty text has nothing to learn from"
    with pytest.raises(DataError, match="no text has a word"):
        task.encode(Dataset.from_dict({"text": ["", ""]}), tokenizer, 16, training=True)


@pytest.mark.parametrize("family", ["bert", "roberta", "t5"])
def test_loss_and_weight_give_the_mean_of_transformers(family):
    task, model, tokenizer, dataset = a_task(family, texts=[TEXTS[0], TEXTS[1], TEXTS[3]])
    features, rows = task.encode(dataset, tokenizer, 32, training=True), np.arange(4)
    batch = task.collate(features, rows, 5)
    assert task.weight(features, rows, 5) == int((batch["labels"] != -100).sum())
    inputs = model_inputs(batch)
    with torch.no_grad():
        found = task.loss(model(**inputs), batch) / task.weight(features, rows, 5)
        inputs.pop("decoder_input_ids", None)
        torch.testing.assert_close(found, model(**inputs, labels=batch["labels"]).loss)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_a_rows_mask_does_not_depend_on_its_batch(family):
    task, _, tokenizer, dataset = a_task(family, whole_words=True, texts=[TEXTS[0], TEXTS[1], TEXTS[3]])
    features = task.encode(dataset, tokenizer, 32, training=True)

    def hidden(rows, seed, row):
        batch = task.collate(features, np.asarray(rows), seed)
        place = rows.index(row)
        labels = batch["labels"][place]
        inputs = batch["input_ids"][place][batch["attention_mask"][place] == 1]
        return inputs.tolist(), labels[labels != -100].tolist()

    assert hidden([0, 1, 3], 8, 3) == hidden([3], 8, 3)
    assert hidden([0], 8, 0) != hidden([0], 9, 0)
    assert hidden([0], None, 0) == hidden([0, 1], None, 0)


def test_scores_are_over_all_hidden_tokens_whatever_the_batches():
    task, model, tokenizer, dataset = a_task()
    features = task.encode(dataset, tokenizer, 16)
    scores = []
    for size in (1, 4):
        predictions = evaluate.predict(model, task, PlainInputs(task, features), max_examples=size)
        scores.append(task.score(predictions, features))
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    assert set(scores[0]) == set(task.metrics)
    records = task.decode(predictions, features)
    counts = np.bincount(features.example_N, weights=[len(row_M2) for row_M2 in predictions])
    assert [record["tokens"] for record in records] == counts.tolist()
    assert records[2]["prediction"] is None


@pytest.mark.parametrize(("family", "message"), [("t5", "no sentinels"), ("bart", "does not guess masked tokens")])
def test_models_without_masks_are_refused(family, message):
    model = tiny_model(AutoModelForSeq2SeqLM, family)
    with pytest.raises(CheckpointError, match=message):
        MaskedLMTask(MaskedLM(), DataSection()).attach(model, tiny_tokenizer("bart"))


def word_pieces() -> PreTrainedTokenizerFast:
    """Cuts words into pieces, as those of BERT do."""
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[MASK]",
        "film",
        "##s",
        "wonder",
        "##ful",
        "##ly",
        "story",
        "un",
        "##touch",
        "##ed",
    ]
    backend = Tokenizer(WordPiece({token: at for at, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]", model_max_length=512
    )


@pytest.mark.parametrize("whole_words", [True, False])
def test_whole_words_are_hidden_where_that_is_asked_for(whole_words):
    tokenizer = word_pieces()
    dataset = Dataset.from_dict({"text": ["films wonderfully untouched story " * 4] * 8})
    model = tiny_model(AutoModelForMaskedLM, "bert")
    task = MaskedLMTask.from_data(MaskedLM(whole_words=whole_words), DataSection(), dataset)
    task.attach(model, tokenizer)
    features = task.encode(dataset, tokenizer, 64)
    words_T = np.asarray(tokenizer(dataset["text"][0]).word_ids())
    hidden_BT = task.collate(features, np.arange(8), 3)["labels"].numpy() != -100
    assert hidden_BT.any(1).all()
    in_part = [
        word
        for row_T in hidden_BT
        for word in np.unique(words_T[row_T[: len(words_T)]])
        if not row_T[: len(words_T)][words_T == word].all()
    ]
    assert bool(in_part) is not whole_words
