"""Causal language modelling: packed pieces do not see each other, prompts are not learnt, batches generate as one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from hftransfer.caching.states import PlainInputs, model_inputs
from hftransfer.errors import CheckpointError, RecipeError
from hftransfer.recipe import DataSection, TextGeneration
from hftransfer.tasks.causal_lm import CausalLMTask, pack
from hftransfer.training import evaluate
from tests.tiny_models import FAMILIES, WORDS, tiny_model, tiny_tokenizer

TEXTS = [" ".join(WORDS[:30]), "the film was good", "sad", " ".join(WORDS[5:14]), "we liked it very much"]
LABELS = [["good film", "nice"], ["we liked it"], ["story"], ["bad"], ["a dog"]]
CHAT = "{% for message in messages %}the {{ message.content }} {% endfor %}{% if add_generation_prompt %}? {% endif %}"


def a_task(family, *, labels=False, chat=None, **settings):
    rows = {"text": TEXTS, **({"label": LABELS} if labels else {})}
    dataset, model, tokenizer = (
        Dataset.from_dict(rows),
        tiny_model(AutoModelForCausalLM, family),
        tiny_tokenizer(family),
    )
    tokenizer.pad_token, tokenizer.chat_template = tokenizer.eos_token, chat
    data = DataSection(label="label") if labels else DataSection()
    task = CausalLMTask.from_data(TextGeneration(type="causal_lm", **settings), data, dataset)
    task.attach(model, tokenizer)
    return task, model, tokenizer, dataset


def losses_of(task, model, features):
    """The loss of every learnt token, all rows one after another."""
    batch = task.collate(features, np.arange(len(features)))
    with torch.no_grad():
        logits = model(**model_inputs(batch)).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    return torch.nn.functional.cross_entropy(logits[labels != -100], labels[labels != -100], reduction="none")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_packed_tokens_have_the_losses_of_unpacked_ones(family, attention):
    task, model, tokenizer, dataset = a_task(family)
    model.set_attn_implementation(attention)
    packed, plain = task.encode(dataset, tokenizer, 24, training=True), task.encode(dataset, tokenizer, 24)
    assert len(packed) < len(plain)
    assert packed.lengths_N.max() <= 24
    assert (packed.columns["position_ids"] == 0).sum() == len(plain), "every piece begins anew"
    torch.testing.assert_close(losses_of(task, model, packed), losses_of(task, model, plain), atol=1e-5, rtol=1e-4)
    rows = np.arange(len(packed))
    assert task.weight(packed, rows) == len(losses_of(task, model, plain))


def test_another_neighbour_changes_nothing():
    task, model, tokenizer, _ = a_task("llama")
    found = []
    for first in ("a dog saw a cat", "we hated the movie"):
        features = task.encode(Dataset.from_dict({"text": [first, TEXTS[4]]}), tokenizer, 32, training=True)
        assert len(features) == 1
        found.append(losses_of(task, model, features)[-6:])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_token_of_a_long_text_is_predicted_once(family):
    task, _, tokenizer, _ = a_task(family)
    features = task.encode(Dataset.from_dict({"text": TEXTS[:1]}), tokenizer, 8)
    learnt = features.labels.values[features.labels.values != -100].tolist()
    assert learnt == [*tokenizer(TEXTS[0])["input_ids"][1:], tokenizer.eos_token_id]
    assert pack([3, 4, 2, 7, 1], 8) == [[0, 1], [2], [3, 4]]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_loss_is_that_of_transformers_over_completions_alone(family):
    task, model, tokenizer, dataset = a_task(family, labels=True, max_new_tokens=8, prompt="{text} and")
    features = task.encode(dataset, tokenizer, 24, training=True)
    assert features.example_N.tolist() == [0, 0, 1, 2, 3, 4]
    rows = np.arange(len(features))
    batch = task.collate(features, rows)
    learnt = [tokenizer.decode(features.labels[row][features.labels[row] != -100][:-1]) for row in rows]
    assert learnt == [gold for golds in LABELS for gold in golds]
    with torch.no_grad():
        outputs = model(**model_inputs(batch), labels=batch["labels"])
    torch.testing.assert_close(task.loss(outputs, batch) / task.weight(features, rows), outputs.loss)
    # The first text and its prompt have more tokens than 24 - 8.
    assert features.truncated_rows == 1
    assert features.truncated_tokens == len(tokenizer(f"{TEXTS[0]} and")["input_ids"]) - 16


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_batches_generate_what_single_prompts_do(family, beams):
    task, model, tokenizer, dataset = a_task(
        family, labels=True, chat=CHAT, prompt="chat", num_beams=beams, max_new_tokens=7
    )
    expected = []
    for text in TEXTS:
        ids = tokenizer(f"the {text} ? ", add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            new = model.generate(**ids, max_new_tokens=7, num_beams=beams, do_sample=False)[
                0, ids["input_ids"].shape[1] :
            ]
        expected.append({"prediction": tokenizer.decode(new, skip_special_tokens=True).strip()})
    for part in (dataset, dataset.remove_columns("label")):
        features = task.encode(part, tokenizer, 60)
        found = evaluate.predict(model, task, PlainInputs(task, features), max_examples=3)
        assert task.decode(found, features) == expected
    features = task.encode(dataset, tokenizer, 60)
    assert set(task.score(evaluate.predict(model, task, PlainInputs(task, features)), features)) == set(task.metrics)


def test_only_decoders_suit():
    """An encoder's tokens see those that they should guess."""
    assert [family for family in FAMILIES if CausalLMTask.suits(family)] == ["gpt2", "llama"]


def test_what_cannot_work_is_refused():
    with pytest.raises(RecipeError, match="a prompt without completions"):
        a_task("gpt2", prompt="chat")
    with pytest.raises(CheckpointError, match="no chat template"):
        a_task("gpt2", labels=True, prompt="chat")
    task, _, tokenizer, dataset = a_task("gpt2", labels=True, max_new_tokens=24)
    with pytest.raises(RecipeError, match="leave no room for a prompt"):
        task.encode(dataset, tokenizer, 24)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("prompt", ["chat", "is {text} good ?", None])
def test_a_long_text_is_cut_within_its_prompt(family, prompt):
    task, _, tokenizer, _ = a_task(family, labels=True, max_new_tokens=4, prompt=prompt, chat=CHAT)
    rows = Dataset.from_dict({"text": ["the film was bad " * 20, "sad"], "label": ["good", "bad"]})
    features = task.encode(rows, tokenizer, 20)
    labels = features.labels[0]
    assert int((labels == -100).sum()) == 16
    kept = features.columns["input_ids"][:16].tolist()
    frame = task._prompt_ids([("", None)])[0]
    full = task._prompt_ids([(rows["text"][0], None)])[0]
    begins = 0 if prompt is None and family == "gpt2" else 1
    assert kept[:begins] == frame[:begins] == full[:begins]
    assert kept[-1] == full[-1]
    # These tokenizers have no token for the line break that ends a text without a prompt.
    assert prompt is None or full[-1] == frame[-1]
    assert features.truncated_tokens == len(full) - 16


def test_a_prompt_that_is_too_long_without_its_text_loses_its_beginning():
    task, _, tokenizer, _ = a_task("gpt2", labels=True, max_new_tokens=4, prompt="the cat and the dog saw {text} ?")
    rows = Dataset.from_dict({"text": ["a bird"], "label": ["good"]})
    kept = task.encode(rows, tokenizer, 8).columns["input_ids"][:4].tolist()
    assert kept == tokenizer("the cat and the dog saw a bird ?")["input_ids"][-4:]
