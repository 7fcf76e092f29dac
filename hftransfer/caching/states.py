"""The states of one split at one boundary, gathered by row; and the inputs of a stage, with states or without.

Shape legend: N rows, B rows of a batch, T tokens, D hidden size, S stored vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hftransfer.caching.boundary import Replay
from hftransfer.caching.store import RowHashes, Shard
from hftransfer.models.vocabulary_head import logits_only_at
from hftransfer.tasks.base import NOT_FOR_THE_MODEL, Features, Task

if TYPE_CHECKING:
    from torch import nn

Rows = NDArray[np.int64]

STATES = "boundary_states"
"""Name of the states in a batch."""

# Up to this size the states of a split are copied into memory, in one piece and without double rows.
MEMORY_BYTES = 2 << 30


class Inputs(Protocol):
    """Where the batches of a split come from, and how the model is run on one."""

    @property
    def features(self) -> Features:
        """The rows."""
        ...

    @property
    def lengths_N(self) -> NDArray[np.int64]:
        """Tokens per row that the model runs on, (N,)."""
        ...

    def collate(self, rows: Rows, seed: int | None = None) -> dict[str, torch.Tensor]:
        """The batch of these rows on the CPU, `labels` included where there are any."""
        ...

    def run(self, model: nn.Module, batch: Mapping[str, torch.Tensor], method: str = "__call__", **options: Any) -> Any:
        """What the model, or another of its methods, makes of a batch on its device; `labels` are not given to it."""
        ...


class PlainInputs:
    """Batches of tokens, for a model that runs from end to end."""

    def __init__(self, task: Task, features: Features) -> None:
        self.task, self.features = task, features

    @property
    def lengths_N(self) -> NDArray[np.int64]:
        """Tokens per row, (N,)."""
        return self.features.lengths_N

    def collate(self, rows: Rows, seed: int | None = None) -> dict[str, torch.Tensor]:
        """The padded batch."""
        return self.task.collate(self.features, rows, seed)

    def run(self, model: nn.Module, batch: Mapping[str, torch.Tensor], method: str = "__call__", **options: Any) -> Any:
        """Call the model."""
        return call_model(self.task, model, batch, method, options)


class States:
    """Stored states of the rows of a split; some rows may have none.

    Args:
        shards: Where they are.
        hashes_N2: The rows' addresses.
        width: D.
    """

    def __init__(self, shards: Sequence[Shard], hashes_N2: RowHashes, width: int) -> None:
        self.width = width
        self.shard_N = np.full(len(hashes_N2), -1, np.int64)
        self.start_N, self.count_N = np.zeros((2, len(hashes_N2)), np.int64)
        for number, (wanted, position) in enumerate(find_rows(shards, hashes_N2)):
            starts_N1 = shards[number].starts_N1
            self.shard_N[wanted] = number
            self.start_N[wanted] = starts_N1[position]
            self.count_N[wanted] = starts_N1[position + 1] - starts_N1[position]
        self.sources = [shard.states_SD for shard in shards]
        self._copy_to_memory()

    @property
    def found_N(self) -> NDArray[np.bool_]:
        """Which rows have states."""
        return self.shard_N >= 0

    def _copy_to_memory(self) -> None:
        """Replace memory-mapped shards by one tensor in memory, if it is small."""
        rows = np.flatnonzero(self.found_N)
        # Rows with equal inputs share their states.
        places, first, inverse = np.unique(
            np.stack([self.shard_N[rows], self.start_N[rows]]), axis=1, return_index=True, return_inverse=True
        )
        counts = self.count_N[rows][first]
        if not len(rows) or counts.sum() * self.width * self.sources[0].dtype.itemsize > MEMORY_BYTES:
            return
        starts = np.concatenate([[0], np.cumsum(counts)])
        memory_SD = torch.empty(int(starts[-1]), self.width, dtype=self.sources[0].dtype)
        for shard in np.unique(places[0]):
            of_shard = places[0] == shard
            memory_SD[torch.from_numpy(_ranges(starts[:-1][of_shard], counts[of_shard]))] = self.sources[shard][
                torch.from_numpy(_ranges(places[1][of_shard], counts[of_shard]))
            ]
        self.sources = [memory_SD]
        self.shard_N[rows] = 0
        self.start_N[rows] = starts[:-1][inverse.reshape(-1)]

    def gather(self, rows: Rows, computed: Callable[[Rows], list[torch.Tensor]]) -> torch.Tensor:
        """The states of a batch, padded on the right with zeros.

        Args:
            rows: Which rows, (B,).
            computed: Computes the states of rows that have none stored, (T, D) each.

        Returns:
            (B, T, D) in fp32.
        """
        missing = rows[~self.found_N[rows]]
        fresh = dict(zip(missing.tolist(), computed(missing), strict=True)) if len(missing) else {}
        counts_B = np.asarray([len(fresh[row]) if row in fresh else self.count_N[row] for row in rows.tolist()])
        longest = int(counts_B.max())
        batch_BTD = torch.zeros(len(rows), longest, self.width)
        flat_SD = batch_BTD.view(-1, self.width)
        line_B = np.arange(len(rows)) * longest
        shard_B = self.shard_N[rows]
        for shard in np.unique(shard_B[shard_B >= 0]):
            of_shard = shard_B == shard
            target = torch.from_numpy(_ranges(line_B[of_shard], counts_B[of_shard]))
            source = torch.from_numpy(_ranges(self.start_N[rows][of_shard], counts_B[of_shard]))
            flat_SD[target] = self.sources[shard].index_select(0, source).float()
        for place, row in enumerate(rows.tolist()):
            if row in fresh:
                batch_BTD[place, : len(fresh[row])] = fresh[row]
        return batch_BTD


def find_rows(shards: Sequence[Shard], hashes_N2: RowHashes) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Where the wanted rows lie: for each shard the wanted rows that it holds and their positions in it.

    A row that several shards hold is given once, from the first of them.
    """
    missing_N = np.ones(len(hashes_N2), bool)
    for shard in shards:
        order = np.argsort(shard.hashes_N2[:, 0], kind="stable")
        place = np.searchsorted(shard.hashes_N2[order, 0], hashes_N2[:, 0])
        position_N = order[np.minimum(place, len(order) - 1)]
        found_N = missing_N & (shard.hashes_N2[position_N] == hashes_N2).all(1)
        missing_N &= ~found_N
        wanted = np.flatnonzero(found_N)
        yield wanted, position_N[wanted]


def have_states(shards: Sequence[Shard], hashes_N2: RowHashes) -> NDArray[np.bool_]:
    """Which rows have states in these shards, (N,)."""
    found_N = np.zeros(len(hashes_N2), bool)
    for wanted, _ in find_rows(shards, hashes_N2):
        found_N[wanted] = True
    return found_N


class CachedInputs:
    """Batches of states, for a model that runs from its boundary."""

    def __init__(
        self, task: Task, features: Features, replay: Replay, states: States, compute: Callable[[Rows], Any]
    ) -> None:
        self.task, self.features, self.replay, self.states, self.compute = task, features, replay, states, compute
        self.fed = single_tokens(features, replay.tap.head_input)
        self.served = self.recomputed = 0

    @property
    def lengths_N(self) -> NDArray[np.int64]:
        """Vectors per row, (N,)."""
        return self.fed.lengths_N

    def whole_batch(self, most_bytes: int) -> dict[str, torch.Tensor] | None:
        """The batch of all rows, if each of them is one stored vector and it has at most so many bytes of states.

        `table[name][rows]` is then what `collate(rows)` has. None where a task draws something for every batch.
        """
        rows = np.arange(len(self.features))
        small = len(rows) * self.states.width * torch.float32.itemsize <= most_bytes
        draws = type(self.task).collate is not Task.collate
        if self.replay.tap.head_input == "tokens" or draws or not small or not self.states.found_N.all():
            return None
        return {**self.task.collate(self.fed, rows), STATES: self.states.gather(rows, self.compute)}

    def collate(self, rows: Rows, seed: int | None = None) -> dict[str, torch.Tensor]:
        """The padded batch with its states."""
        found = int(self.states.found_N[rows].sum())
        self.served += found
        self.recomputed += len(rows) - found
        return {**self.task.collate(self.fed, rows, seed), STATES: self.states.gather(rows, self.compute)}

    def run(self, model: nn.Module, batch: Mapping[str, torch.Tensor], method: str = "__call__", **options: Any) -> Any:
        """Call the model on the states; what else it can do runs it whole, since it may run parts several times."""
        self.replay.feed(batch[STATES] if method == "__call__" else None)
        return call_model(self.task, model, batch, method, options)


def call_model(
    task: Task, model: nn.Module, batch: Mapping[str, torch.Tensor], method: str, options: Mapping[str, Any]
) -> Any:
    """What a method of the model makes of a batch; a forward pass gives no logits that the task does not read."""
    targets = task.targets(batch) if method == "__call__" else None
    with logits_only_at(model, None if targets is None else targets[0]):
        return getattr(model, method)(**model_inputs(batch), **options)


def model_inputs(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What of a batch the model is given: not the labels, since the task computes the loss, nor what is kept beside."""
    return {name: tensor for name, tensor in batch.items() if name not in NOT_FOR_THE_MODEL and name != STATES}


class OpenChunk(Protocol):
    """Streamed rows, of which one chunk is open at a time."""

    number: int
    features: Features


class ChunkedInputs:
    """Batches of the chunk that is open; a new one gets inputs of its own.

    Args:
        chunk: Which chunk is open.
        open_inputs: Makes the inputs of a chunk; called on all processes alike.
    """

    def __init__(self, chunk: OpenChunk, open_inputs: Callable[[Features], PlainInputs | CachedInputs]) -> None:
        self.chunk, self.open_inputs = chunk, open_inputs
        self._number = -1
        self._inputs: PlainInputs | CachedInputs | None = None
        self._served = self._recomputed = 0

    @property
    def _current(self) -> PlainInputs | CachedInputs:
        """The inputs of the open chunk."""
        if self._inputs is None or self._number != self.chunk.number:
            self._served, self._recomputed = self.served, self.recomputed
            # Let go of the old chunk's states before those of the new one are read.
            self._inputs = None
            self._inputs, self._number = self.open_inputs(self.chunk.features), self.chunk.number
        return self._inputs

    @property
    def features(self) -> Features:
        """The rows of the open chunk."""
        return self._current.features

    @property
    def lengths_N(self) -> NDArray[np.int64]:
        """Tokens (or vectors) per row of the open chunk, (N,)."""
        return self._current.lengths_N

    @property
    def served(self) -> int:
        """How many rows of all chunks ran from stored states."""
        return self._served + (self._inputs.served if isinstance(self._inputs, CachedInputs) else 0)

    @property
    def recomputed(self) -> int:
        """How many rows of all chunks had no stored states though others had."""
        return self._recomputed + (self._inputs.recomputed if isinstance(self._inputs, CachedInputs) else 0)

    def collate(self, rows: Rows, seed: int | None = None) -> dict[str, torch.Tensor]:
        """The padded batch of these rows of the open chunk."""
        return self._current.collate(rows, seed)

    def run(self, model: nn.Module, batch: Mapping[str, torch.Tensor], method: str = "__call__", **options: Any) -> Any:
        """Call the model."""
        return self._current.run(model, batch, method, **options)


@dataclass
class StageInputs:
    """The inputs of one stage.

    Attributes:
        splits: Inputs by the name of the split.
        note: One line for the user; empty where there is nothing to say.
        seconds_per_row: What computing the states of one row takes.
    """

    splits: dict[str, Inputs]
    note: str = ""
    seconds_per_row: float = 0.0
    encoded_rows: int = 0
    encoding_seconds: float = 0.0

    def facts(self) -> dict[str, Any]:
        """How often states were found, and the seconds that this saved."""
        cached = [inputs for inputs in self.splits.values() if isinstance(inputs, CachedInputs | ChunkedInputs)]
        served, recomputed = sum(i.served for i in cached), sum(i.recomputed for i in cached)
        return {
            "cache_served_rows": served,
            "cache_recomputed_rows": recomputed,
            "cache_encoded_rows": self.encoded_rows,
            "cache_encoding_seconds": round(self.encoding_seconds, 3),
            "cache_saved_seconds": round(served * self.seconds_per_row - self.encoding_seconds, 3),
        }


def single_tokens(features: Features, head_input: str) -> Features:
    """Rows of one token, the one that the head reads; the rows as they are where it reads all."""
    if head_input == "tokens":
        return features
    at_N = features.offsets_N1[1:] - 1 if head_input == "last" else features.offsets_N1[:-1]
    return Features(
        columns={name: values[at_N] for name, values in features.columns.items()},
        offsets_N1=np.arange(len(features) + 1, dtype=np.int64),
        labels=features.labels,
        example_N=features.example_N,
        extra=features.extra,
    )


def _ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers `start .. start + count - 1` of all pairs, one after another."""
    offsets = np.repeat(starts - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
    return (offsets + np.arange(int(counts.sum()))).astype(np.int64)
