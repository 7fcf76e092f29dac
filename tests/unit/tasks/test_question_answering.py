"""Question answering: answers meet their tokens, windows share one answer, no answer is one, too."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForQuestionAnswering, PretrainedConfig, PreTrainedTokenizerFast

from hftransfer.caching.states import PlainInputs, model_inputs
from hftransfer.errors import DataError, RecipeError
from hftransfer.recipe import DataSection, QuestionAnswering
from hftransfer.tasks.question_answering import QuestionAnsweringTask
from hftransfer.tasks.windows import tokenize_windows
from hftransfer.training import evaluate
from tests.tiny_models import WORDS, tiny_model, tiny_tokenizer

CONTEXTS = ["the film was great and we loved it", " ".join(WORDS[:45]), "dog saw cat"]
ROWS = {
    "text": ["was it good", "what place", "is it red"],
    "context": CONTEXTS,
    "label": [
        {"text": ["great", "loved it"], "answer_start": [13, 26]},
        {"text": [" ".join(WORDS[30:32])], "answer_start": [len(" ".join(WORDS[:30])) + 1]},
        {"text": [], "answer_start": []},
    ],
}
DATA = DataSection(text_pair="context")


def a_task(rows=ROWS, max_length=64, family="bert", **settings):
    data = Dataset.from_dict(rows)
    task = QuestionAnsweringTask.from_data(QuestionAnswering(**settings), DATA, data)
    return task, task.encode(data, tiny_tokenizer(family), max_length)


def right_logits(features, sure=9.0):
    """What a perfect model predicts in every row: start and end where the labels are."""
    rows = []
    for row, length in enumerate(features.lengths_N):
        logits = np.zeros((length, 2), np.float32)
        logits[features.labels[row], [0, 1]] = sure
        rows.append(logits)
    return rows


def test_labels_are_the_tokens_of_the_answer_and_the_null_place():
    _, features = a_task()
    tokenizer = tiny_tokenizer("bert")
    for row, answer in ((0, "great"), (1, ROWS["label"][1]["text"][0])):
        ids = features.columns["input_ids"][features.offsets_N1[row] :]
        first, last = features.labels[row]
        assert tokenizer.decode(ids[first : last + 1]) == answer
    assert features.labels[2].tolist() == [0, 0]
    _, features = a_task(family="gpt2")
    assert features.labels[2].tolist() == [features.lengths_N[2] - 1] * 2


@pytest.mark.parametrize("max_length", [64, 20])
@pytest.mark.parametrize("family", ["bert", "roberta", "t5", "gpt2"])
def test_a_perfect_model_scores_1(family, max_length):
    task, features = a_task(max_length=max_length, family=family)
    assert (len(features) > 3) == (max_length == 20)
    assert (features.gold_labels, features.lost_labels) == (2, 0)
    logits = right_logits(features)
    task.calibrate(logits, features)
    assert task.score(logits, features) == pytest.approx(
        {
            "exact_match": 1.0,
            "f1": 1.0,
            "f1_answerable": 1.0,
            "accuracy_unanswerable": 1.0,
            "share_unanswerable": 1 / 3,
        }
    )
    records = task.decode(logits, features)
    for record, context in zip(records[:2], CONTEXTS, strict=False):
        assert context[record["start"] : record["end"]] == record["prediction"]
        assert record["score"] > 0.9
    assert (records[2]["prediction"], records[2]["start"]) == ("", None)


@pytest.mark.parametrize("max_length", [64, 20])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_decoder_can_answer_with_the_last_token_of_the_context(family, max_length):
    """Its tokenizer ends no text, so the token for no answer is added: it must not be the context's own."""
    long = " ".join(WORDS[:40])
    rows = {
        "text": ["what is it", "what is it", "what"],
        "context": ["dog saw cat", "dog saw cat", f"{long} cat"],
        "label": [
            {"text": ["cat"], "answer_start": [8]},
            {"text": [], "answer_start": []},
            {"text": ["cat"], "answer_start": [len(long) + 1]},
        ],
    }
    task, features = a_task(rows, max_length=max_length, family=family)
    lasts = features.lengths_N - 1
    assert features.lengths_N.max() <= max_length
    assert (features.columns["input_ids"][features.offsets_N1[1:] - 1] == tiny_tokenizer(family).eos_token_id).all()
    answered = [0, len(features) - 1]
    for row in range(len(features)):
        assert features.labels[row].tolist() == [lasts[row] - (row in answered)] * 2
    assert (features.gold_labels, features.lost_labels) == (2, 0)
    logits = right_logits(features)
    task.calibrate(logits, features)
    assert [record["prediction"] for record in task.decode(logits, features)] == ["cat", "", "cat"]
    assert task.score(logits, features)["exact_match"] == 1.0


def test_the_end_that_is_added_changes_nothing_before_it():
    task, features = a_task(family="gpt2")
    model = tiny_model(AutoModelForQuestionAnswering, "gpt2")
    found = evaluate.predict(model, task, PlainInputs(task, features), max_examples=3)
    for row in range(3):
        inputs = tiny_tokenizer("gpt2")(ROWS["text"][row], CONTEXTS[row], return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        np.testing.assert_allclose(found[row][:-1, 0], outputs.start_logits[0].numpy(), atol=1e-4)


def test_an_answer_behind_the_window_is_missed():
    task, features = a_task(max_length=20, long_inputs="head")
    assert (len(features), features.truncated_rows) == (3, 1)
    assert (features.gold_labels, features.lost_labels) == (2, 1)
    assert features.labels[1].tolist() == [0, 0]
    logits = right_logits(features)
    task.calibrate(logits, features)
    assert task.score(logits, features)["f1_answerable"] == 0.5


def test_without_unanswerable_questions_every_question_is_answered():
    rows = {name: values[:2] for name, values in ROWS.items()}
    task, features = a_task(rows)
    logits = right_logits(features)
    for row in logits:
        row[0] += 20.0
    task.calibrate(logits, features)
    assert task.threshold is None
    assert task.score(logits, features)["exact_match"] == 1.0
    task.threshold = 0.0
    assert task.score(logits, features)["exact_match"] == 0.0
    config = tiny_model(AutoModelForQuestionAnswering, "bert").config
    for name, value in task.saved_config().items():
        setattr(config, name, value)
    assert QuestionAnsweringTask.from_model(task.settings, DATA, config).threshold == 0.0


@pytest.mark.parametrize("family", ["bert", "modernbert", "t5"])
def test_batches_equal_single_examples_and_the_loss_is_stock(family):
    task, _ = a_task()
    tokenizer = tiny_tokenizer(family)
    features = task.encode(Dataset.from_dict(ROWS), tokenizer, 64)
    model = tiny_model(AutoModelForQuestionAnswering, family)
    found = evaluate.predict(model, task, PlainInputs(task, features), max_examples=2)
    losses = []
    for row in range(3):
        batch = tokenizer(ROWS["text"][row], CONTEXTS[row], return_tensors="pt")
        start, end = torch.from_numpy(features.labels[[row]]).unbind(1)
        with torch.no_grad():
            outputs = model(**batch, start_positions=start, end_positions=end)
        np.testing.assert_allclose(found[row][:, 0], outputs.start_logits[0].numpy(), atol=1e-4)
        np.testing.assert_allclose(found[row][:, 1], outputs.end_logits[0].numpy(), atol=1e-4)
        losses.append(outputs.loss)
    batch = task.collate(features, np.arange(3))
    with torch.no_grad():
        loss = task.loss(model(**model_inputs(batch)), batch)
    torch.testing.assert_close(loss, torch.stack(losses).sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "label",
    [
        [{"text": "great", "answer_start": 13}, {"text": "a", "answer_start": 8}, {"text": "dog", "answer_start": 2}],
        [[{"text": "great", "answer_start": 13}], [], [{"text": "dog", "answer_start": 2}]],
    ],
)
def test_other_forms_of_answers(label):
    rows = {**ROWS, "context": ["the film was great", "we saw: a", "a dog"], "label": label}
    _, features = a_task(rows)
    assert [one[0] if one else "" for one in features.extra["golds"]] in (["great", "a", "dog"], ["great", "", "dog"])


def test_what_cannot_be_asked_is_refused():
    wrong = {**ROWS, "label": [{"text": ["great"], "answer_start": [12]}, *ROWS["label"][1:]]}
    with pytest.raises(DataError, match="row 1: the context has no 'great' at 12"):
        a_task(wrong)
    for build, source in (
        (QuestionAnsweringTask.from_data, Dataset.from_dict(ROWS)),
        (QuestionAnsweringTask.from_model, PretrainedConfig()),
    ):
        with pytest.raises(RecipeError, match=r"data\.text_pair"):
            build(QuestionAnswering(), DataSection(), source)


def test_a_long_question_leaves_room_for_the_context():
    rows = {**ROWS, "text": [" ".join(WORDS), *ROWS["text"][1:]]}
    task, features = a_task(rows, max_length=24)
    logits = right_logits(features)
    task.calibrate(logits, features)
    assert task.score(logits, features)["exact_match"] == 1.0
    # Of the question half a window is left; the rest is reported.
    assert features.truncated_rows == 1
    assert features.truncated_tokens == len(WORDS) - 12


def byte_tokenizer():
    """A token for every byte, as byte-level tokenizers have for what is rare."""
    special = {"<s>": 0, "</s>": 1, "<pad>": 2}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({**special, **{one: at for at, one in enumerate(alphabet, 3)}}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ends = [(name, special[name]) for name in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B </s>", ends)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def test_a_question_of_characters_with_several_tokens_is_cut_to_half():
    tokenizer = byte_tokenizer()
    questions = ["\u4e2d" * 30, "why " * 30, "what"]
    found = tokenize_windows(tokenizer, questions, ["a long context " * 20] * 3, 64, QuestionAnswering())
    firsts = [int((found.text_S[start:end] == 0).sum()) for start, end in pairwise(found.offsets_N1)]
    assert max(firsts) <= 32
    assert min(firsts) == len("what")
    assert set(found.example_N) == {0, 1, 2}


def test_answers_that_are_longer_than_any_that_is_given_are_out_of_sight():
    long = " ".join(WORDS[:40])
    rows = {"text": ["what"], "context": [f"{long} end"], "label": [{"text": [long], "answer_start": [0]}]}
    _, features = a_task(rows)
    assert (features.gold_labels, features.lost_labels) == (1, 1)
    rows["label"] = [{"text": [" ".join(WORDS[:30])], "answer_start": [0]}]
    _, features = a_task(rows)
    assert (features.gold_labels, features.lost_labels) == (1, 0)


def test_a_space_that_a_token_holds_is_no_part_of_an_answer():
    task, features = a_task()
    windows = features.extra["windows"]
    # As the tokens of sentencepiece: each begins with the space before it.
    starts_S = np.where(windows.starts_S > 0, windows.starts_S - 1, 0)
    spaced = replace(features, extra={**features.extra, "windows": replace(windows, starts_S=starts_S)})
    plain, found = (task.decode(right_logits(features), one) for one in (features, spaced))
    assert [(one["prediction"], one["start"], one["end"]) for one in found] == [
        (one["prediction"], one["start"], one["end"]) for one in plain
    ]
    assert found[0]["prediction"] == "great"
