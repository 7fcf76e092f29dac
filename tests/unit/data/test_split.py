"""The validation cut: disjoint, complete, of the right size, stratified, grouped, repeatable."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hftransfer.data.split import choose_subset, cut_validation, encode_labels, encode_values
from hftransfer.errors import DataError

SEEDS = st.integers(0, 2**31)
FRACTIONS = st.floats(0.02, 0.6)
LABELS = st.lists(st.sampled_from("aaaaaabbbcd"), min_size=2, max_size=150)


def codes(labels):
    return encode_labels(pa.chunked_array([pa.array(labels)]))


def assert_partition(train, validation, count):
    assert min(len(train), len(validation)) > 0
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(count))
    assert np.all(np.concatenate((np.diff(train), np.diff(validation))) > 0)


@given(st.integers(2, 300), FRACTIONS, SEEDS)
def test_random_cut(count, fraction, seed):
    train, validation = cut_validation(count, fraction, seed)
    assert_partition(train, validation, count)
    assert abs(len(validation) - count * fraction) < 1.0
    assert np.array_equal(validation, cut_validation(count, fraction, seed)[1])


def test_the_seed_decides():
    assert len({tuple(cut_validation(60, 0.2, seed)[1]) for seed in range(10)}) == 10


@given(LABELS, FRACTIONS, SEEDS)
def test_stratified_cut(labels, fraction, seed):
    labels = np.array(labels)
    assume(max(np.unique(labels, return_counts=True)[1]) > 1)
    train, validation = cut_validation(len(labels), fraction, seed, labels=codes(labels))
    assert_partition(train, validation, len(labels))
    share = min(len(labels) - 1, max(1, round(len(labels) * fraction))) / len(labels)
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        taken = int(np.sum(labels[validation] == label))
        assert taken < count
        assert abs(taken - min(count * share, count - 1)) < 1.001
    if min(np.unique(labels, return_counts=True)[1]) * (1 - share) >= 1:
        assert len(validation) == round(len(labels) * share)
    assert np.array_equal(validation, cut_validation(len(labels), fraction, seed, labels=codes(labels))[1])


def test_stratified_cut_is_random_within_a_class():
    labels = codes(["a"] * 50 + ["b"] * 50)
    taken = np.concatenate([cut_validation(100, 0.1, seed, labels=labels)[1] for seed in range(200)])
    counts = np.bincount(taken, minlength=100)
    assert 3 < counts.min() <= counts.max() < 45


@given(st.lists(st.tuples(st.sampled_from("aab"), st.integers(0, 40)), min_size=40, max_size=150), SEEDS)
def test_grouped_cut(rows, seed):
    labels, groups = zip(*rows, strict=True)
    labels, group_codes = np.array(labels), encode_values(pa.array(groups))[0]
    try:
        train, validation = cut_validation(len(rows), 0.2, seed, labels=codes(labels), groups=group_codes)
    except DataError:
        # Only right where some label sits in one group.
        assert any(len({group for label, group in rows if label == name}) == 1 for name in set(labels.tolist()))
        return
    assert_partition(train, validation, len(rows))
    assert not set(group_codes[train]) & set(group_codes[validation])
    assert set(labels[train]) == set(labels)
    assert len(validation) <= 0.2 * len(rows) + np.bincount(group_codes).max()
    again = cut_validation(len(rows), 0.2, seed, labels=codes(labels), groups=group_codes)[1]
    assert np.array_equal(validation, again)


def test_grouped_cut_is_near_to_stratified():
    generator = np.random.default_rng(0)
    groups = generator.integers(0, 300, 3000)
    labels = np.where(generator.random(3000) < 0.1 + 0.2 * (groups % 2), "rare", "common")
    _, validation = cut_validation(3000, 0.1, 1, labels=codes(labels), groups=groups)
    assert abs(len(validation) - 300) <= 12
    assert abs(np.mean(labels[validation] == "rare") - np.mean(labels == "rare")) < 0.02


@pytest.mark.parametrize("labels", [None, ["a", "b", "a", "b", "a", "b"]])
def test_few_big_groups_still_give_a_validation_split(labels):
    groups = np.array([0, 0, 1, 1, 2, 2])
    train, validation = cut_validation(6, 0.1, 0, labels=None if labels is None else codes(labels), groups=groups)
    assert (len(train), len(validation)) == (4, 2)


@given(st.lists(st.lists(st.sampled_from("aaaabbbccd"), max_size=3, unique=True), min_size=60, max_size=150), SEEDS)
def test_lists_of_labels_stay_known_to_train(rows, seed):
    train, validation = cut_validation(len(rows), 0.1, seed, labels=codes(rows))
    assert_partition(train, validation, len(rows))
    assert {label for row in rows for label in row} == {label for index in train for label in rows[index]}
    assert len(validation) <= 0.1 * len(rows) + 2


def test_lists_of_labels_are_nearly_stratified():
    generator = np.random.default_rng(0)
    rows = [
        [name for name, share in zip("abc", (0.5, 0.1, 0.02), strict=True) if generator.random() < share]
        for _ in range(4000)
    ]
    _, validation = cut_validation(4000, 0.1, 3, labels=codes(rows))
    assert abs(len(validation) - 400) <= 12
    for name in "abc":
        wanted = 0.1 * sum(name in row for row in rows)
        assert abs(sum(name in rows[index] for index in validation) - wanted) <= 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_rows": 1},
        {"num_rows": 3, "labels": codes(["a", "b", "c"])},
        {"num_rows": 4, "groups": np.zeros(4, np.int64)},
        {"num_rows": 4, "labels": codes(["a", "a", "b", "b"]), "groups": np.array([0, 0, 1, 1])},
    ],
)
def test_an_impossible_cut_is_an_error(arguments):
    with pytest.raises(DataError, match="no validation split"):
        cut_validation(fraction=0.5, seed=0, **arguments)


@given(LABELS, st.integers(1, 200), SEEDS)
def test_a_subset_keeps_every_label_while_they_fit(labels, count, seed):
    chosen = choose_subset(len(labels), count, seed, codes(labels))
    assert len(set(chosen.tolist())) == min(count, len(labels))
    assert len({labels[index] for index in chosen}) >= min(count, len(set(labels)))
    assert np.array_equal(chosen, choose_subset(len(labels), count, seed, codes(labels)))


def test_a_subset_is_random():
    assert len({tuple(choose_subset(50, 10, seed)) for seed in range(10)}) == 10
