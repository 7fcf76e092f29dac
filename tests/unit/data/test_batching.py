"""Batches: every example exactly once, as pure functions of their arguments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftransfer.data.batching import epoch_order, micro_batches, rank_slice, token_budget_batches, training_batches

LENGTHS = st.lists(st.integers(0, 600), max_size=120)
SEEDS = st.integers(0, 2**32)
BUCKETS = st.one_of(st.none(), st.integers(1, 20))


@given(st.integers(0, 300), SEEDS, st.integers(0, 50))
def test_an_epoch_is_a_permutation_and_repeats(count, seed, epoch):
    order = epoch_order(count, seed, epoch)
    assert sorted(order.tolist()) == list(range(count))
    assert np.array_equal(order, epoch_order(count, seed, epoch))


def test_seed_and_epoch_change_the_order():
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_the_order_is_the_same_on_every_machine_and_version():
    # Written down once: a change here silently changes every resumed training.
    assert epoch_order(8, 13, 2).tolist() == [7, 6, 3, 0, 2, 5, 1, 4]


def test_the_order_does_not_touch_the_global_generator():
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    training_batches(range(30), global_batch_size=4, seed=1, epoch=1)
    assert np.array_equal(before, np.random.get_state()[1])


def test_every_place_is_equally_likely():
    first = np.bincount([epoch_order(5, 7, epoch)[0] for epoch in range(2000)], minlength=5)
    assert 320 < first.min() <= first.max() < 480


@given(LENGTHS, st.integers(1, 17), SEEDS, st.integers(0, 9), BUCKETS)
def test_training_batches_hold_every_example_once(lengths, size, seed, epoch, bucket):
    batches = training_batches(lengths, global_batch_size=size, seed=seed, epoch=epoch, bucket=bucket)
    assert sorted(index for batch in batches for index in batch.tolist()) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // size)
    assert sum(len(batch) != size for batch in batches) == (1 if len(lengths) % size else 0)
    if bucket is None and batches:
        assert all(len(batch) == size for batch in batches[:-1])


def test_bucketing_saves_padding_and_keeps_the_windows_random():
    lengths = np.arange(960) % 97
    padded = {}
    for bucket in (None, 1, 16):
        batches = training_batches(lengths, global_batch_size=8, seed=5, epoch=0, bucket=bucket)
        padded[bucket] = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    assert padded[16] < 0.65 * padded[None]
    assert abs(padded[1] - padded[None]) < 0.05 * padded[None]
    # The batches come in no order of length.
    longest = [int(lengths[batch].max()) for batch in training_batches(lengths, global_batch_size=8, seed=5, epoch=0)]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.4


def test_batches_come_in_another_order_in_every_epoch():
    # One window and no equal lengths: the batches are the same, so nothing but their order can differ.
    epochs = [training_batches(range(40), global_batch_size=4, seed=5, epoch=epoch, bucket=10) for epoch in range(3)]
    orders = [tuple(int(batch.min()) for batch in batches) for batches in epochs]
    assert len(set(orders)) == 3
    assert len({frozenset(order) for order in orders}) == 1


@given(LENGTHS, st.integers(1, 17), SEEDS, st.integers(1, 6))
def test_batch_mates_share_a_window_of_the_epochs_order(lengths, size, seed, bucket):
    place = np.empty(len(lengths), int)
    place[epoch_order(len(lengths), seed, 3)] = np.arange(len(lengths))
    for batch in training_batches(lengths, global_batch_size=size, seed=seed, epoch=3, bucket=bucket):
        assert len(set(place[batch] // (size * bucket))) == 1


@given(st.integers(0, 60), st.integers(1, 9))
def test_rank_slices_make_up_the_batch_evenly(count, world_size):
    batch = np.arange(count) * 3
    slices = [rank_slice(batch, rank, world_size) for rank in range(world_size)]
    assert np.array_equal(np.concatenate(slices), batch)
    assert max(map(len, slices)) - min(map(len, slices)) <= 1


def test_a_rank_outside_the_world_is_an_error():
    with pytest.raises(ValueError, match="rank 2"):
        rank_slice(np.arange(4), 2, 2)


@given(st.integers(0, 60), st.integers(1, 9))
def test_micro_batches_make_up_the_slice(count, size):
    pieces = micro_batches(np.arange(count), size)
    assert [index for piece in pieces for index in piece.tolist()] == list(range(count))
    assert all(len(piece) == size for piece in pieces[:-1])
    assert all(0 < len(piece) <= size for piece in pieces)


@given(LENGTHS, st.integers(1, 2000), st.integers(1, 40))
def test_token_budget_holds_and_longest_come_first(lengths, max_tokens, max_examples):
    batches = token_budget_batches(lengths, max_tokens, max_examples)
    assert sorted(index for batch in batches for index in batch.tolist()) == list(range(len(lengths)))
    longest = [max(lengths[index] for index in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    for batch, length in zip(batches, longest, strict=True):
        assert len(batch) <= max_examples
        assert len(batch) == 1 or len(batch) * length <= max_tokens


def test_token_budget_fills_the_batches():
    assert [len(batch) for batch in token_budget_batches([10] * 10, 40, 100)] == [4, 4, 2]


@pytest.mark.parametrize("arguments", [{"global_batch_size": 0}, {"global_batch_size": 2, "bucket": 0}])
def test_sizes_below_one_are_errors(arguments):
    with pytest.raises(ValueError, match="at least 1"):
        training_batches([1, 2], seed=0, epoch=0, **arguments)


def test_chunks_of_a_stream_have_orders_of_their_own_and_the_first_that_of_no_stream():
    lengths = np.arange(40) % 7 + 1
    orders = [
        np.concatenate(training_batches(lengths, global_batch_size=4, seed=1, epoch=2, chunk=chunk)).tolist()
        for chunk in (0, 1, 2)
    ]
    assert orders[0] == np.concatenate(training_batches(lengths, global_batch_size=4, seed=1, epoch=2)).tolist()
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(40)) for order in orders)
