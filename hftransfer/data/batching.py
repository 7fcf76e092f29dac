"""Which examples go into which batch, as pure functions of (lengths, seed, epoch).

Nothing here keeps state or touches a global random generator, so a training that resumes at any step sees the batches
that it would have seen without the interruption, on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

# Padded tokens of a batch of a pass without gradients: what stays in a CPU's cache, and what fills a GPU.
CPU_PASS_TOKENS, GPU_PASS_TOKENS = 2048, 16384

# Separate streams of random numbers for one seed.
_EPOCH, _BATCHES, _CELLS = 1, 2, 3


def random_order(count: int, *key: int) -> Indices:
    """A permutation of `range(count)` that depends on nothing but its arguments.

    It sorts raw words of the counter-based Philox generator (Salmon et al. 2011): NumPy promises that these words never
    change between its versions, which it does not promise for `Generator.permutation`.

    Args:
        count: Number of examples.
        key: Non-negative integers, such as seed, stream and epoch.

    Returns:
        The permutation, shape (count,).
    """
    words = np.random.Philox(np.random.SeedSequence(key)).random_raw(count)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


def epoch_order(num_examples: int, seed: int, epoch: int, chunk: int = 0) -> Indices:
    """The order of the examples in one epoch.

    Args:
        num_examples: Number of training examples.
        seed: The recipe's seed, not negative.
        epoch: 0-based.
        chunk: Which part of streamed data these are, 0-based.

    Returns:
        A permutation of `range(num_examples)`, shape (num_examples,).
    """
    return random_order(num_examples, *_key(seed, _EPOCH, epoch, chunk))


def balanced_order(cells_N: Indices, seed: int, epoch: int) -> Indices:
    """The order of the examples in one epoch that draws every cell equally often.

    An epoch has as many draws as there are examples. Each cell is dealt out like a deck that is shuffled whenever it is
    used up, on from where the epoch before has left it: no example of a cell comes a second time before all have come
    once, and the largest cell's examples all have their turn over the epochs.

    Args:
        cells_N: The cell of every example, from 0 without gaps, shape (num_examples,).
        seed: The recipe's seed, not negative.
        epoch: 0-based.

    Returns:
        Indices of examples, shape (num_examples,), shuffled; the counts of two cells differ by at most one.
    """
    count, num_cells = len(cells_N), int(cells_N.max()) + 1
    by_cell = np.argsort(cells_N, kind="stable")
    bounds = np.searchsorted(cells_N[by_cell], np.arange(num_cells + 1))
    drawn = []
    for cell in range(num_cells):
        members = by_cell[bounds[cell] : bounds[cell + 1]]
        # The draws of a cell over all epochs, counted on: those that do not divide evenly go round.
        start, stop = (((turn * count) + num_cells - 1 - cell) // num_cells for turn in (epoch, epoch + 1))
        for deck in range(start // len(members), -(-stop // len(members))):
            order = members[random_order(len(members), seed, _CELLS, cell, deck)]
            drawn.append(order[max(0, start - deck * len(members)) : stop - deck * len(members)])
    found = np.concatenate(drawn)
    return found[random_order(len(found), *_key(seed, _EPOCH, epoch, 0))]


def _key(seed: int, stream: int, epoch: int, chunk: int) -> tuple[int, ...]:
    """What an order depends on. The first chunk has the order of data that are not streamed."""
    return (seed, stream, epoch, chunk) if chunk else (seed, stream, epoch)


def training_batches(
    lengths: Sequence[int] | NDArray[np.integer],
    *,
    global_batch_size: int,
    seed: int,
    epoch: int,
    bucket: int | None = 16,
    chunk: int = 0,
    cells: Indices | None = None,
) -> list[Indices]:
    """The global batches of one epoch: every example exactly once, or every cell equally often.

    With length bucketing the shuffled examples are sorted by length within windows of `bucket` batches, cut into
    batches, and the batches are shuffled. The bound on the randomness: which examples share a window is uniformly
    random in every epoch; within a window of `bucket * global_batch_size` examples, batch-mates are neighbours in
    length. `bucket=1` leaves the membership of batches wholly random and sorts inside each; `bucket=None` does not sort
    at all.

    Args:
        lengths: Length of every example in tokens, shape (num_examples,).
        global_batch_size: Examples per optimizer step over all ranks and micro-steps.
        seed: The recipe's seed, not negative.
        epoch: 0-based.
        bucket: Window of the length bucketing in batches; None turns it off.
        chunk: Which part of streamed data these are, 0-based.
        cells: The cell of every example where cells are drawn equally often (`balanced_order`).

    Returns:
        One index array per optimizer step. All have `global_batch_size` examples except at most one, which comes last
        without bucketing and anywhere with it. The order depends on no number of ranks: see `rank_slice`.
    """
    _require_positive(global_batch_size=global_batch_size, bucket=1 if bucket is None else bucket)
    sizes = np.asarray(lengths)
    order = epoch_order(len(sizes), seed, epoch, chunk) if cells is None else balanced_order(cells, seed, epoch)
    if bucket is None:
        return _cut(order, global_batch_size)
    windows = _cut(order, global_batch_size * bucket)
    # The sort is stable, so examples of equal length stay in random order.
    batches = [
        batch
        for window in windows
        for batch in _cut(window[np.argsort(sizes[window], kind="stable")], global_batch_size)
    ]
    return [batches[position] for position in random_order(len(batches), *_key(seed, _BATCHES, epoch, chunk))]


def rank_slice(batch: Indices, rank: int, world_size: int) -> Indices:
    """The part of a global batch that one rank trains on.

    Args:
        batch: A global batch, shape (batch,).
        rank: 0-based rank of this process.
        world_size: Number of processes.

    Returns:
        A contiguous slice. The slices of all ranks differ by at most one example in size and make up the batch; where
        the batch has fewer examples than there are ranks, some are empty.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is outside 0..{world_size - 1}")
    return batch[len(batch) * rank // world_size : len(batch) * (rank + 1) // world_size]


def micro_batches(indices: Indices, per_device_size: int) -> list[Indices]:
    """Cut one rank's slice of a global batch into what fits on the device at once.

    Args:
        indices: One rank's examples, shape (examples,).
        per_device_size: Most examples per forward pass.

    Returns:
        Consecutive pieces of `per_device_size`, the last one possibly smaller; none for an empty slice.
    """
    _require_positive(per_device_size=per_device_size)
    return _cut(indices, per_device_size)


def pass_tokens(device_type: str) -> int:
    """Padded tokens per batch of an encoding, an evaluation or a prediction on this kind of device."""
    return CPU_PASS_TOKENS if device_type == "cpu" else GPU_PASS_TOKENS


def token_budget_batches(
    lengths: Sequence[int] | NDArray[np.integer], max_tokens: int, max_examples: int
) -> list[Indices]:
    """Batches for passes without gradients, where the order of the examples does not matter.

    Args:
        lengths: Length of every example in tokens, shape (num_examples,).
        max_tokens: Most padded tokens (examples * longest length) per batch. A longer single example gets a batch of
            its own.
        max_examples: Most examples per batch.

    Returns:
        Index arrays that hold every example exactly once, longest first, so that a batch which does not fit into memory
        is met at the start. The caller puts the results back in order with the indices.
    """
    _require_positive(max_tokens=max_tokens, max_examples=max_examples)
    sizes = np.asarray(lengths)
    order = np.argsort(-sizes.astype(np.int64), kind="stable")
    batches: list[Indices] = []
    start = 0
    while start < len(order):
        longest = max(1, int(sizes[order[start]]))
        stop = start + min(max_examples, max(1, max_tokens // longest))
        batches.append(order[start:stop])
        start = stop
    return batches


def _cut(indices: Indices, size: int) -> list[Indices]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def _require_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
