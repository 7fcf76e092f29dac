"""Token classification: words meet their tokens, windows are merged, what is cut counts as missed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForTokenClassification

from hftransfer.caching.states import PlainInputs, model_inputs
from hftransfer.errors import DataError, RecipeError
from hftransfer.recipe import DataSection, TokenClassification
from hftransfer.report.outcomes import Outcomes
from hftransfer.tasks.base import IGNORED
from hftransfer.tasks.token_classification import TokenClassificationTask
from hftransfer.tasks.words import raw_text
from hftransfer.training import evaluate
from tests.tiny_models import WORDS, tiny_model, tiny_tokenizer

WORD_ROWS = [["the", "film", "was", "great!"], ["I", "loved", "this", "Xyz"], ["dog"], WORDS[5:28]]
TAG_ROWS = [[("O", "B-a", "I-a")[(row + at) % 3] for at in range(len(words))] for row, words in enumerate(WORD_ROWS)]


def a_task(words=WORD_ROWS, tags=TAG_ROWS, max_length=64, family="bert", **settings):
    data = Dataset.from_dict({"text": words, "label": tags})
    task = TokenClassificationTask.from_data(TokenClassification(**settings), DataSection(), data)
    return task, task.encode(data, tiny_tokenizer(family), max_length)


def right_logits(task, features, sure=9.0):
    """What a perfect model predicts in every row."""
    rows = []
    for row in range(len(features)):
        labels_W = features.labels[row]
        rows.append(np.where(np.arange(len(task.names)) == labels_W[:, None], sure, 0.0).astype(np.float32))
    return rows


def aligned(tokenizer, words):
    """The first token of every word, as transformers' own scripts find it."""
    word_ids = tokenizer(words, is_split_into_words=True).word_ids()
    return [word_ids.index(word) for word in range(len(words))]


@pytest.mark.parametrize("family", ["bert", "roberta", "t5", "gpt2"])
def test_words_are_tagged_at_their_first_token(family):
    _, features = a_task(family=family)
    tokenizer = tiny_tokenizer(family)
    for row, words in enumerate(WORD_ROWS):
        assert features.extra["places"][row].tolist() == aligned(tokenizer, words)
        assert features.extra["words"][row].tolist() == list(range(len(words)))
        lengths = features.offsets_N1[row : row + 2]
        expected = tokenizer(words, is_split_into_words=True)["input_ids"]
        assert features.columns["input_ids"][slice(*lengths)].tolist() == expected


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "gpt2"])
def test_batches_equal_single_examples_and_the_loss_is_stock(family):
    task, _ = a_task()
    tokenizer = tiny_tokenizer(family)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    data = Dataset.from_dict({"text": WORD_ROWS, "label": TAG_ROWS})
    features = task.encode(data, tokenizer, 64)
    model = tiny_model(AutoModelForTokenClassification, family, num_labels=3)
    found = evaluate.predict(model, task, PlainInputs(task, features), max_examples=3)
    losses, count = [], 0
    for row, words in enumerate(WORD_ROWS):
        batch = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        labels = torch.full_like(batch["input_ids"], IGNORED)
        places = aligned(tokenizer, words)
        labels[0, places] = torch.tensor([task.names.index(tag) for tag in TAG_ROWS[row]])
        with torch.no_grad():
            outputs = model(**batch, labels=labels)
        np.testing.assert_allclose(found[row], outputs.logits[0, places].numpy(), atol=1e-5)
        losses.append(outputs.loss * len(words))
        count += len(words)
    batch = task.collate(features, np.arange(4))
    with torch.no_grad():
        loss = task.loss(model(**model_inputs(batch)), batch)
    torch.testing.assert_close(loss, torch.stack(losses).sum(), rtol=1e-5, atol=1e-4)
    assert task.weight(features, np.arange(4)) == count


@pytest.mark.parametrize("stride", [0, 3, None])
def test_windows_are_merged_and_every_word_is_tagged_once_with_most_context(stride):
    words = [WORDS[:40], WORDS[3:9]]
    tags = [[("O", "B-a", "I-a", "B-b", "I-b")[(at * 7) % 5] for at in range(len(row))] for row in words]
    task, features = a_task(words, tags, max_length=12, stride=stride)
    assert (features.num_examples, features.truncated_rows, features.lost_labels) == (2, 0, 0)
    assert len(features) > 4
    assert features.lengths_N.max() == 12
    by_word = [features.extra["words"][row].tolist() for row in range(len(features)) if features.example_N[row] == 0]
    assert [word for row in by_word for word in row] == list(range(40))
    overlap = 12 // 4 if stride is None else stride
    # The words that two windows share are divided between them.
    assert abs(len(by_word[1]) - (10 - overlap)) <= 1
    scores = task.score(right_logits(task, features), features)
    assert (scores["f1"], scores["word_accuracy"]) == (1.0, 1.0)
    assert task.weight(features, np.arange(len(features))) == 46


def test_what_is_cut_off_is_missed_not_absent():
    words, tags = [WORDS[:20]], [["B-a", "I-a", *["O"] * 6, "B-a", "I-a", *["O"] * 6, "B-a", "I-a", "B-a", "O"]]
    task, features = a_task(words, tags, max_length=11, long_inputs="head")
    assert (len(features), features.truncated_rows, features.truncated_tokens) == (1, 1, 11)
    # The second entity is cut in two, the third and the fourth are out of sight.
    assert (features.gold_labels, features.lost_labels) == (4, 3)
    scores = task.score(right_logits(task, features), features)
    assert scores["recall"] == 1 / 4
    assert scores["precision"] == 1 / 2
    assert scores["word_accuracy"] == 9 / 20
    record = task.decode(right_logits(task, features), features)[0]
    assert record["prediction"][:10] == [*tags[0][:9], None]


def test_a_tag_that_training_did_not_have_is_missed_and_left_out_of_the_loss():
    task, _ = a_task()
    other = Dataset.from_dict({"text": [["the", "film"]], "label": [["B-new", "B-a"]]})
    features = task.encode(other, tiny_tokenizer("bert"), 64)
    assert features.labels[0].tolist() == [IGNORED, task.names.index("B-a")]
    scores = task.score([np.eye(3, dtype=np.float32)[[0, task.names.index("B-a")]]], features)
    assert (scores["recall"], scores["precision"], scores["f1/new"]) == (0.5, 1.0, 0.0)


def test_raw_text_with_spans():
    texts = ["We saw the film, it was great.", "a dog"]
    spans = [
        [{"start": 7, "end": 15, "label": "work"}, {"start": 24, "end": 29, "label": "praise"}],
        [{"start": 2, "end": 5, "label": "animal"}],
    ]
    task, features = a_task(texts, spans)
    assert task.names == ("O", "B-animal", "I-animal", "B-praise", "I-praise", "B-work", "I-work")
    logits = right_logits(task, features)
    assert task.score(logits, features)["f1"] == 1.0
    first, second = task.decode(logits, features)
    assert first["words"] == ["We", "saw", "the", "film", ",", "it", "was", "great", "."]
    assert first["prediction"][2:4] == ["B-work", "I-work"]
    assert [(e["label"], e["start"], e["end"], e["text"]) for e in first["entities"]] == [
        ("work", 7, 15, "the film"),
        ("praise", 24, 29, "great"),
    ]
    assert second["entities"][0]["score"] == pytest.approx(np.exp(9) / (np.exp(9) + 6))
    # A span that ends inside a word stays as it is in the reference, so that it is missed.
    shifted = [[{"start": 7, "end": 14, "label": "work"}], []]
    task, features = a_task(texts, shifted)
    assert task.score(right_logits(task, features), features)["f1"] == 0.0


def test_plain_tags_have_no_entities_and_a_task_comes_back_from_its_config():
    task, features = a_task(tags=[["X" if at % 2 else "Y" for at in range(len(words))] for words in WORD_ROWS])
    assert (task.default_metric, task.marks_entities) == ("word_accuracy", False)
    records = task.decode(right_logits(task, features), features)
    assert records[0] == {"prediction": ["Y", "X", "Y", "X"]}
    config = tiny_model(AutoModelForTokenClassification, "bert", num_labels=2).config
    for name, value in task.config_overrides().items():
        setattr(config, name, value)
    again = TokenClassificationTask.from_model(task.settings, DataSection(), config)
    assert again.names == task.names
    assert set(task.metrics) <= task.score(right_logits(task, features), features).keys()


@pytest.mark.parametrize(
    ("words", "tags", "message"),
    [
        ([["a", "b"], ["a"]], [["X"], ["Y"]], "row 1: 1 tags for 2 words"),
        (["a b"], [["X", "Y", "X"]], "give raw text its spans"),
        (["a b"], [[{"start": 2, "end": 9, "label": "x"}]], "does not lie in a text of 3 characters"),
        ([["a", "b"]], [["X", "X"]], "1 different tags"),
    ],
)
def test_what_does_not_fit_is_refused(words, tags, message):
    with pytest.raises(DataError, match=message):
        a_task(words, tags)


def test_a_stride_without_room_for_new_tokens_is_refused():
    with pytest.raises(RecipeError, match=r"task.stride: windows of 12 tokens that share 10 .* below 10"):
        a_task(max_length=12, stride=10)


@pytest.mark.parametrize("tags", [["B-kind", "O", "B-other"], ["x", "y", "z"]])
def test_counts_for_intervals_hold_kinds_that_train_lacks(tags):
    first, second, unseen = tags
    task, _ = a_task([["the", "film"], ["dog", "cat"]], [[first, second], [second, first]])
    later = Dataset.from_dict({"text": [["the", "film"]] * 4, "label": [[first, second], [unseen, second]] * 2})
    features = task.encode(later, tiny_tokenizer("bert"), 64)
    predictions = right_logits(task, features)
    scores, (kind, names, arrays) = task.score(predictions, features), task.outcomes(predictions, features)
    kept = Outcomes(kind, names, np.arange(4, dtype=np.uint64), arrays)
    compared = [name for name in kept.scores() if name in scores]
    assert len(compared) >= 2
    for name in compared:
        assert kept.statistic(name).value() == pytest.approx(scores[name]), name
    assert min(scores[name] for name in compared) < 1.0


def test_signs_that_no_space_divides_are_words_of_their_own():
    assert raw_text("\u6211\u5728\u5317\u4eac, 3km \u30a2").words == [
        "\u6211",
        "\u5728",
        "\u5317",
        "\u4eac",
        ",",
        "3km",
        "\u30a2",
    ]
    texts = ["\u6211\u5728\u5317\u4eac\u89c1\u4e86\u674e\u660e", "a dog"]
    spans = [[{"start": 2, "end": 4, "label": "place"}, {"start": 6, "end": 8, "label": "person"}], []]
    _, features = a_task(texts, spans)
    golds = features.extra["golds"][0]
    assert golds == ["O", "O", "B-place", "I-place", "O", "O", "B-person", "I-person"]


def test_marks_belong_to_their_letters():
    assert raw_text("Mu\u0308ller Donau\u00addampf \u2764\ufe0f").words[:2] == ["Mu\u0308ller", "Donau\u00addampf"]


def test_white_space_at_the_edges_of_a_span_is_left_out():
    texts = ["We saw the film, it was great.", "a dog"]
    spans = [[{"start": 6, "end": 16, "label": "work"}, {"start": 23, "end": 30, "label": "praise"}], []]
    spans[0][0]["end"] = 15
    _, features = a_task(texts, spans)
    assert features.extra["spans"][0] == [("work", 7, 15), ("praise", 24, 30)]
    with pytest.raises(DataError, match=r"row 2: the span 1 to 2 \(x\) is blank"):
        a_task(texts, [[], [{"start": 1, "end": 2, "label": "x"}]])


def test_spans_that_no_words_make_up_are_out_of_sight():
    texts = ["We saw the film, it was great.", "a dog"]
    spans = [[{"start": 7, "end": 14, "label": "work"}, {"start": 24, "end": 29, "label": "praise"}], []]
    _, features = a_task(texts, spans)
    assert (features.gold_labels, features.lost_labels) == (2, 1)
    inside = [[{"start": 11, "end": 13, "label": "work"}, {"start": 13, "end": 15, "label": "work"}], []]
    with pytest.raises(DataError, match="lies in one word with another"):
        a_task(texts, inside)
