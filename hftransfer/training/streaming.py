"""Streamed training data: one chunk of features at a time, and the batches of a run that walks through the chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hftransfer.data.batching import training_batches
from hftransfer.errors import DataError
from hftransfer.tasks.base import Features

if TYPE_CHECKING:
    from datasets import Dataset

    from hftransfer.data.streaming import Stream


class Chunks:
    """The training rows, of which one chunk is encoded and open at a time.

    Args:
        stream: Where the rows are.
        encode: Tokenizes a chunk.
        rows: Wanted rows per chunk; rounded up to whole global batches once those are known.

    Attributes:
        number: Which chunk is open, -1 before the first.
        features: Its rows.
        truncated_rows: How many rows lost tokens to max_length, of all chunks that were open so far.
        counted: How many chunks that were.
    """

    def __init__(self, stream: Stream, encode: Callable[[Dataset], Features], rows: int) -> None:
        self.stream, self.encode, self.rows = stream, encode, rows
        self.number, self.truncated_rows = -1, 0
        self.features: Features
        self._reading: Iterator[Dataset] = iter(())
        self._next, self.counted = -1, 0

    @property
    def num_rows(self) -> int:
        """Rows of all chunks."""
        return self.stream.num_rows

    def open(self, number: int) -> None:
        """Encode a chunk. The next one is read on from here; for another the reading starts anew."""
        if number == self.number:
            return
        if number != self._next:
            self._reading = self.stream.chunks(self.rows, start=number * self.rows)
        dataset = next(self._reading)
        self.features = self.encode(dataset)
        self.number, self._next = number, number + 1
        if len(self.features) != len(dataset):
            raise DataError(
                "this task makes several rows of an example, so the rows of a stream cannot be counted",
                where="data.streaming",
                fix="set it to false",
            )
        if number >= self.counted:
            self.counted = number + 1
            self.truncated_rows += self.features.truncated_rows


class ChunkedBatches:
    """As `EpochBatches`: the global batches of a run, by global step, whose rows are those of the chunk they open.

    Chunks come in the order of the data, rows are shuffled within each. The order is a pure function of the data, the
    seed, the epoch and the chunk; it does not depend on the number of processes.
    """

    def __init__(self, chunks: Chunks, global_batch_size: int, seed: int) -> None:
        self.chunks, self.global_batch_size, self.seed = chunks, global_batch_size, seed
        # Whole batches, so that no chunk but the last ends in a short one.
        self.per_chunk = -(-chunks.rows // global_batch_size)
        chunks.rows = self.per_chunk * global_batch_size
        self.per_epoch = -(-chunks.num_rows // global_batch_size)
        self._known, self._batches = (-1, -1), [np.empty(0, np.int64)]

    @property
    def rows_per_epoch(self) -> int:
        """How many rows are run in an epoch: each once."""
        return self.chunks.num_rows

    def first_row(self, step: int) -> int:
        """The row of all data that is row 0 of the chunk which is open at this step."""
        return (step % self.per_epoch) // self.per_chunk * self.chunks.rows

    def __getitem__(self, step: int) -> NDArray[np.int64]:
        """The rows, within the chunk that is then open, of the global batch of this step."""
        epoch, position = divmod(step, self.per_epoch)
        chunk, place = divmod(position, self.per_chunk)
        self.chunks.open(chunk)
        if self._known != (epoch, chunk):
            self._known = (epoch, chunk)
            self._batches = training_batches(
                self.chunks.features.lengths_N,
                global_batch_size=self.global_batch_size,
                seed=self.seed,
                epoch=epoch,
                chunk=chunk,
            )
        return self._batches[place]
