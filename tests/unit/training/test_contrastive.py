"""Pairs: classes right, none with itself, a function of seed and step alone; the loss against plain numpy."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch.nn import functional

from hftransfer import Recipe, finetune, make_strategy
from hftransfer.caching.boundary import find_tap
from hftransfer.errors import DataError, StrategyError
from hftransfer.models.load import load_model
from hftransfer.tasks.labels import Labels
from hftransfer.tasks.text_classification import TextClassificationTask
from hftransfer.tasks.tokenization import tokenize
from hftransfer.training.contrastive import PairBatches, PairInputs, check_support, contrastive_loss
from tests.tiny_models import WORDS, tiny_tokenizer
from tests.tiny_runs import TASKS

LABELS = st.lists(st.integers(0, 4), min_size=3, max_size=60).map(lambda labels: np.asarray(labels, np.int64))


def pairable(labels_N: np.ndarray[Any, Any]) -> bool:
    counts = np.unique(labels_N, return_counts=True)[1]
    return len(counts) > 1 and counts.max() > 1


@settings(deadline=None, max_examples=40)
@given(LABELS, st.integers(1, 4), st.integers(4, 40), st.integers(0, 2**31))
def test_batches_hold_pairs_of_both_kinds(labels_N, pairs, batch_size, seed):
    assume(pairable(labels_N))
    batches = PairBatches(labels_N, pairs, batch_size, seed)
    anchored = np.zeros(len(labels_N), np.int64)
    for step in range(batches.per_epoch):
        rows = batches[step]
        # No text twice, so none is paired with itself.
        assert len(np.unique(rows)) == len(rows)
        assert len(rows) <= batch_size + 1
        assert set(rows.tolist()) <= set(range(len(labels_N)))
        classes, counts = np.unique(labels_N[rows], return_counts=True)
        assert len(classes) > 1
        # A text is alone with its class only where it is so in all data, or was added as the other of a single class.
        alone = [int(label) for label in classes[counts == 1] if (labels_N == label).sum() > 1]
        assert len(alone) <= 1
        assert not alone or len(classes) == 2
        anchored[rows] += 1
    assert anchored.min() >= pairs
    assert batches.per_epoch == pairs * -(-len(labels_N) // (batch_size // 2))


@settings(deadline=None, max_examples=40)
@given(LABELS, st.integers(1, 3), st.integers(4, 20), st.integers(0, 1000))
def test_batches_are_a_function_of_seed_and_step(labels_N, pairs, batch_size, seed):
    assume(pairable(labels_N))
    forwards, backwards = (PairBatches(labels_N, pairs, batch_size, seed) for _ in range(2))
    steps = range(2 * forwards.per_epoch)
    expected = [forwards[step].tolist() for step in steps]
    assert [backwards[step].tolist() for step in reversed(steps)] == expected[::-1]


def test_another_seed_and_another_pass_give_other_batches():
    labels_N = np.arange(64) % 4
    first, second = (PairBatches(labels_N, 2, 16, seed) for seed in (1, 2))
    assert first[0].tolist() != second[0].tolist()
    assert first[0].tolist() != first[first.per_pass].tolist()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.integers(0, 100))
def test_an_anchor_is_paired_with_every_other_of_its_class(others, seed):
    """Uniformly, up to what few draws show: over many steps each one comes."""
    labels_N = np.asarray([0, *[1] * (others + 1)])
    batches = PairBatches(labels_N, 1, 4, seed)
    found = [int(batches._positives(np.asarray([1]), step)[0]) for step in range(12 * (others + 1))]
    assert 1 not in found
    assert set(labels_N[found]) == {1}
    assert len(set(found)) > 0.9 * others


def test_classes_are_spread_evenly_over_batches():
    labels_N = np.repeat(np.arange(4), 16)
    batches = PairBatches(labels_N, 3, 32, 5)
    for step in range(batches.per_epoch):
        counts = np.bincount(labels_N[batches[step]], minlength=4)
        # Four anchors of each, and at most as many partners.
        assert 4 <= counts.min() <= counts.max() <= 8


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]])
def test_data_without_pairs_are_refused(labels):
    with pytest.raises(DataError, match="pairs need at least two classes, and two examples in one of them"):
        PairBatches(np.asarray(labels), 1, 8, 0)


def oracle(embeddings_BD, labels_B):
    """SetFit's loss, pair by pair."""
    unit = embeddings_BD / np.linalg.norm(embeddings_BD, axis=1, keepdims=True)
    errors = {True: [], False: []}
    for i, j in itertools.combinations(range(len(unit)), 2):
        same = labels_B[i] == labels_B[j]
        errors[same].append((unit[i] @ unit[j] - float(same)) ** 2)
    return sum(np.mean(found) for found in errors.values() if found)


@settings(deadline=None, max_examples=40)
@given(
    arrays.arrays(np.float64, (7, 3), elements=st.floats(-3, 3)),
    st.lists(st.integers(0, 3), min_size=7, max_size=7),
)
def test_the_loss_is_that_of_the_paper(embeddings_BD, labels):
    assume((np.linalg.norm(embeddings_BD, axis=1) > 0.1).all())
    found = contrastive_loss(torch.from_numpy(embeddings_BD), torch.tensor(labels))
    assert float(found) == pytest.approx(oracle(embeddings_BD, labels), rel=1e-4, abs=1e-5)


def test_the_loss_has_a_gradient_where_a_text_is_alone():
    embeddings = torch.randn(4, 3, requires_grad=True)
    contrastive_loss(embeddings, torch.tensor([0, 0, 1, 2])).backward()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize(("labels", "expected"), [([0, 1], 0.36), ([0, 0], 0.16)])
def test_a_kind_without_pairs_adds_nothing(labels, expected):
    embeddings = torch.tensor([[1.0, 0.0], [6.0, 8.0]], requires_grad=True)
    loss = contrastive_loss(embeddings, torch.tensor(labels))
    loss.backward()
    assert loss.item() == pytest.approx(expected)
    assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize("pooling", ["own", "mean"])
def test_embeddings_are_what_the_head_reads(pooling, checkpoints):
    loaded = load_model(
        str(checkpoints / "bert"),
        "AutoModelForSequenceClassification",
        config_overrides={"num_labels": 3},
        pooling=pooling,
        seed=1,
    )
    strategy = make_strategy("contrastive")
    model: Any = strategy.apply(loaded.model, loaded.anatomy).eval()
    texts = [" ".join(WORDS[at : at + 2 + at]) for at in range(5)]
    features = tokenize(tiny_tokenizer("bert"), texts, None, 32, np.zeros(5, np.int64))
    task = TextClassificationTask(Recipe(checkpoint="m").task, Recipe(checkpoint="m").data, Labels("single_label", ()))
    inputs = PairInputs(task, features, Accelerator(cpu=True, mixed_precision="no"), model)
    batch = inputs.collate(np.arange(5))
    read: list[torch.Tensor] = []
    hook = model.bert.pooler.register_forward_pre_hook(lambda module, args: read.append(args[0][:, 0]))
    model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
    hook.remove()
    found = inputs.run(model, batch)
    torch.testing.assert_close(found, read[0], atol=1e-4, rtol=1e-4)
    assert find_tap(model, loaded.anatomy.head_depth) == inputs.tap
    functional.normalize(found, dim=-1).sum().backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert reached == learns
    assert not any("classifier" in name or "pooler" in name for name in learns)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"optim": {"gradient_accumulation_steps": 2}}, "optim.gradient_accumulation_steps: .*one batch"),
        ({"optim": {"per_device_train_batch_size": 2}}, "optim.per_device_train_batch_size: .*at least 4"),
        ({"optim": {"head_learning_rate": 1e-3}}, "optim.head_learning_rate: .*in one step"),
        ({"optim": {"torch_compile": True}}, "optim.torch_compile: "),
        ({"evaluation": {"early_stopping_patience": 2}}, "evaluation.early_stopping_patience: .*only at the end"),
        ({"evaluation": {"every": 2}}, "evaluation.every: .*only at the end"),
        ({"evaluation": {"keep": "ema"}}, "evaluation.keep: .*in one step"),
        ({"data": {"streaming": True}}, "data.streaming: .*drawn from all examples"),
        ({"task": {"balance": "classes"}}, "task.balance: .*fitted without it"),
        ({"task": {"label_smoothing": 0.1}}, "task.label_smoothing: "),
        ({"task": {"focal_gamma": 1.0}}, "task.focal_gamma: "),
        ({"task": {"long_inputs": "windows"}}, "task.long_inputs: .*windows of one text"),
    ],
)
def test_what_does_not_go_with_it_is_refused_in_one_line(sections, message):
    recipe = Recipe(checkpoint="m", strategy="contrastive", **sections)
    task = TextClassificationTask(recipe.task, recipe.data, Labels("single_label", ("a", "b")))
    with pytest.raises(StrategyError, match=message) as caught:
        check_support(recipe, task, Accelerator(cpu=True))
    assert "\n" not in str(caught.value)
    check_support(recipe.model_copy(update={"strategy": Recipe(checkpoint="m").strategy}), task, Accelerator(cpu=True))


@pytest.mark.parametrize(
    ("task", "rows"),
    [
        ("text_classification", [{"text": f"text {at}", "label": ["a", "b"][: 1 + at % 2]} for at in range(8)]),
        ("text_classification", [{"text": f"text {at}", "label": at + 0.5} for at in range(8)]),
        ("token_classification", TASKS["token_classification"][2]),
    ],
    ids=["multi_label", "regression", "tags"],
)
def test_other_problems_are_refused_before_anything_is_written(task, rows, checkpoints, tmp_path):
    recipe = Recipe(
        checkpoint=str(checkpoints / "bert"), task=task, strategy="contrastive", output_dir=str(tmp_path / "run")
    )
    with pytest.raises(StrategyError, match=r"^strategy.type contrastive: is for text_classification with one label"):
        finetune(recipe, train=rows, validation=rows)
    assert not (tmp_path / "run").exists()
