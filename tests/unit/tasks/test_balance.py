"""Reweighing and balanced sampling: the formula in plain Python, and what an epoch holds."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hftransfer.data.batching import balanced_order, training_batches
from hftransfer.errors import RecipeError
from hftransfer.recipe import DataSection, TextClassification
from hftransfer.tasks.balance import cells_of, group_names, reweighing
from hftransfer.tasks.base import CELLS, ROW_WEIGHTS
from hftransfer.tasks.text_classification import TextClassificationTask
from tests.tiny_models import tiny_tokenizer

ROWS = [("she", "a", 1), ("she", "a", 1), ("she", "a", 0), ("he", "b", 0), ("he", "b", 0), ("it", None, 1)]
DATA = Dataset.from_dict({name: [row[at] for row in ROWS] for at, name in enumerate(("text", "who", "label"))})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=60))
def test_reweighing_makes_label_and_group_independent(pairs: list[tuple[int, int]]) -> None:
    groups, labels = (np.asarray([pair[at] for pair in pairs]) for at in range(2))
    weights = reweighing(groups, labels).astype(np.float64)
    for (group, label), count in Counter(pairs).items():
        expected = (groups == group).mean() * (labels == label).mean() / (count / len(pairs))
        assert weights[(groups == group) & (labels == label)] == pytest.approx(expected, rel=1e-5)
    if len(set(pairs)) == len(set(groups)) * len(set(labels)):
        assert weights.mean() == pytest.approx(1.0)
        for group, label in set(pairs):
            joint = weights[(groups == group) & (labels == label)].sum() / weights.sum()
            assert joint == pytest.approx((groups == group).mean() * (labels == label).mean())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 5), st.integers(0, 7))
def test_an_epoch_draws_every_cell_equally_often(codes: list[int], seed: int, epoch: int) -> None:
    cells = np.unique(codes, return_inverse=True)[1]
    order = balanced_order(cells, seed, epoch)
    counts = np.bincount(cells[order], minlength=cells.max() + 1)
    assert len(order) == len(cells)
    assert counts.max() - counts.min() <= 1
    assert np.array_equal(order, balanced_order(cells, seed, epoch))


def test_no_example_comes_again_before_all_of_its_cell_have_come() -> None:
    cells = np.asarray([0] * 17 + [1] * 3)
    drawn = np.concatenate([balanced_order(cells, 4, epoch) for epoch in range(5)])
    # Ten of the large cell in each of five epochs: 50 draws of 17 examples.
    assert set(Counter(drawn[drawn < 17].tolist()).values()) <= {2, 3}
    assert set(Counter(drawn[drawn >= 17].tolist()).values()) <= {16, 17}
    first, second = (balanced_order(cells, 4, epoch) for epoch in (0, 1))
    assert len(set(first[first < 17]) & set(second[second < 17])) == 3


def test_batches_of_cells_are_those_of_the_order() -> None:
    cells = np.asarray([0] * 30 + [1] * 6)
    batches = training_batches(np.arange(36) % 5, global_batch_size=8, seed=3, epoch=2, cells=cells)
    assert sorted(np.concatenate(batches).tolist()) == sorted(balanced_order(cells, 3, 2).tolist())


def test_cells_are_numbered_without_gaps() -> None:
    assert cells_of(np.asarray([0, 2, 2, 5]), np.asarray([1, 0, 1, 1])).tolist() == [0, 1, 2, 3]
    assert group_names(DATA, DataSection(sensitive="who,label"))[4:] == ["b & 0", "(none) & 1"]


@pytest.mark.parametrize(
    ("balance", "name"), [("groups", ROW_WEIGHTS), ("sample_groups", CELLS), ("sample_classes", CELLS)]
)
def test_training_rows_alone_carry_weights_or_cells(balance: str, name: str) -> None:
    task = TextClassificationTask.from_data(TextClassification(balance=balance), DataSection(sensitive="who"), DATA)
    tokenizer = tiny_tokenizer("bert")
    train, other = (task.encode(DATA, tokenizer, 8, training=training) for training in (True, False))
    assert list(train.extra) == [name]
    assert other.extra == {}
    batch = task.collate(train, np.arange(6))
    assert (ROW_WEIGHTS in batch) == (name == ROW_WEIGHTS)


def test_the_loss_is_the_weighted_mean() -> None:
    task = TextClassificationTask.from_data(TextClassification(balance="groups"), DataSection(sensitive="who"), DATA)
    train = task.encode(DATA, tiny_tokenizer("bert"), 8, training=True)
    rows, logits = np.asarray([0, 2, 3, 5]), torch.randn(4, 2)
    batch = task.collate(train, rows)
    outputs = type("Outputs", (), {"logits": logits})()
    weights = torch.from_numpy(reweighing(np.asarray([1, 1, 1, 2, 2, 0]), train.labels)[rows])
    losses = torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
    assert task.loss(outputs, batch) / task.weight(train, rows) == pytest.approx(
        float((losses * weights).sum() / weights.sum())
    )


def test_balance_that_means_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match="no columns with groups"):
        TextClassificationTask.from_data(TextClassification(balance="groups"), DataSection(), DATA)
    lists = Dataset.from_dict({"text": ["a", "b"], "label": [["x"], ["x", "y"]]})
    with pytest.raises(RecipeError, match="single label"):
        TextClassificationTask.from_data(TextClassification(balance="sample_classes"), DataSection(), lists)
