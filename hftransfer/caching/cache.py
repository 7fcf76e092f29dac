"""The boundary cache: which stages run from stored states, and the one pass that computes what is missing.

Shape legend: N rows, B rows of a batch, T tokens, D hidden size.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from hftransfer import interruption
from hftransfer.caching.boundary import CannotSplitError, Replay, Tap, capture, find_tap
from hftransfer.caching.key import states_key
from hftransfer.caching.states import (
    CachedInputs,
    ChunkedInputs,
    Inputs,
    OpenChunk,
    PlainInputs,
    Rows,
    StageInputs,
    States,
    have_states,
    model_inputs,
)
from hftransfer.caching.store import RowHashes, Shard, ShardWriter, Space, StateStore, hash_rows
from hftransfer.data.batching import pass_tokens, token_budget_batches
from hftransfer.strategies.casting import autocast_dtype, frozen_weights_cast
from hftransfer.tasks.base import Features, Task

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hftransfer.recipe import Recipe

FORMAT = 3
"""Counts up when the same key would mean other states."""

# Rows on which running from states is compared with running the whole model.
CHECKED_ROWS = 4


@dataclass
class Encoded:
    """What came of computing the states of rows that had none.

    Attributes:
        rows: How many rows were stored.
        not_finite: How many could not be, whatever the room.
        trouble: Why others could not be; empty where there was no room for them.
    """

    rows: int = 0
    not_finite: int = 0
    trouble: str = ""


@dataclass
class BoundaryCache:
    """Opens the inputs of one stage after another.

    Attributes:
        recipe: Its cache settings, and what else decides whether states can be kept.
        task: Collates rows.
        accelerator: Its processes share the encoding.
        features: The splits by name.
        chunk: Training rows that are streamed; `features` then holds the other splits.
    """

    recipe: Recipe
    task: Task
    accelerator: Accelerator
    features: Mapping[str, Features]
    chunk: OpenChunk | None = None
    _hashes: dict[str, RowHashes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._store = StateStore(max_bytes=self.recipe.cache.max_bytes)
        if not self.recipe.cache.is_off:
            self._store.check()

    @contextmanager
    def stage(self, model: nn.Module, boundaries: Sequence[int], passes: float) -> Iterator[StageInputs]:
        """The inputs of a stage whose model is in place; the model runs from states inside the context.

        Args:
            model: The model in this stage, already prepared for its precision.
            boundaries: The stage's boundary, then those of later stages that one pass may serve as well.
            passes: How often the rows of `train` will be seen in all these stages.
        """
        plain: dict[str, Inputs] = {name: PlainInputs(self.task, part) for name, part in self.features.items()}
        if self.chunk is not None:
            plain["train"] = ChunkedInputs(self.chunk, lambda features: PlainInputs(self.task, features))
        with ExitStack() as stack:
            try:
                taps = self.taps(model, boundaries)
                replay = stack.enter_context(Replay(model, taps[0]))
                width = self.check(model, replay)
                opened = self._open(model, replay, taps, width, passes)
            except CannotSplitError as reason:
                stack.close()
                opened = StageInputs(plain, note=f"no feature cache: {reason}" if boundaries[0] > 0 else "")
            yield opened

    def taps(self, model: nn.Module, boundaries: Sequence[int]) -> list[Tap]:
        """Where to cut: at the first boundary, and at the later ones that can be cut.

        Raises:
            CannotSplitError: If this training does not run from states.
        """
        if self.recipe.cache.is_off:
            raise CannotSplitError("it is switched off")
        if self.task.random_inputs:
            raise CannotSplitError("the inputs are drawn anew at every step")
        if self.recipe.optim.torch_compile:
            raise CannotSplitError("a compiled model runs from end to end")
        if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            raise CannotSplitError("the weights are sharded over the processes")
        taps = [find_tap(model, boundaries[0])]
        for boundary in boundaries[1:]:
            # Below a lower boundary the weights are still those that this stage freezes.
            if 1 < boundary < taps[-1].boundary:
                taps.append(find_tap(model, boundary))
        return taps

    def check(self, model: nn.Module, replay: Replay) -> int:
        """Compare both ways of running the model on a few rows, in fp32; returns the width of the states.

        Raises:
            CannotSplitError: If they differ.
        """
        features = next(iter(self.features.values()))
        order = np.argsort(features.lengths_N, kind="stable")
        rows = np.unique(order[np.linspace(0, len(order) - 1, min(CHECKED_ROWS, len(order))).astype(int)])
        inputs = self._to_device(self.task.collate(features, rows))
        with torch.autocast(self.accelerator.device.type, enabled=False):
            replay.check(inputs)
            states = capture(model, [replay.tap], inputs)[replay.tap.boundary]
        if len(states) != len(rows):
            raise CannotSplitError("an example is several sequences")
        return int(states.shape[-1])

    def _open(self, model: nn.Module, replay: Replay, taps: Sequence[Tap], width: int, passes: float) -> StageInputs:
        """Encode what no run has encoded yet, and open the states of all splits."""
        keys = [self._key(model, tap, width) for tap in taps]
        hashes = {name: self._hash(name) for name in self.features}
        if self.chunk is None:
            return self._open_rows(model, replay, taps, keys, self.features, hashes, passes)
        if passes <= 1:
            raise CannotSplitError("the training data are seen but once")
        opened = self._open_rows(model, replay, taps, keys, self.features, hashes, passes)
        opened.note += "; training data chunk by chunk"
        # Chunks come round in turn: with too little room each would push out the one that is needed next.
        started = time.time()

        def open_chunk(features: Features) -> CachedInputs:
            rows = hash_rows(features.columns, features.offsets_N1)
            # A space for each chunk: what is opened and searched stays as small as the chunk.
            own = hashlib.sha256(rows.tobytes()).hexdigest()
            replay.feed(None)
            own_keys = [{**key, "chunk": own} for key in keys]
            part = self._open_rows(model, replay, taps, own_keys, {"train": features}, {"train": rows}, passes, started)
            opened.encoded_rows += part.encoded_rows
            opened.encoding_seconds += part.encoding_seconds
            opened.seconds_per_row = part.seconds_per_row
            inputs = part.splits["train"]
            assert isinstance(inputs, CachedInputs)
            return inputs

        opened.splits["train"] = ChunkedInputs(self.chunk, open_chunk)
        return opened

    def _open_rows(
        self,
        model: nn.Module,
        replay: Replay,
        taps: Sequence[Tap],
        keys: Sequence[Mapping[str, Any]],
        features: Mapping[str, Features],
        hashes: Mapping[str, RowHashes],
        passes: float,
        since: float = math.inf,
    ) -> StageInputs:
        """Look rows up in the spaces of these keys, one for each tap, and encode what is missing.

        Spaces used since `since` are not removed to make room.
        """
        store = self._store
        store.keep_since = since
        width = keys[0]["width"]
        spaces = [store.space(key) for key in keys]
        shards = spaces[0].shards()
        found = {name: States(shards, hashes[name], width) for name in hashes}
        # All processes look before one of them writes, and decide alike.
        missing_by_name = {name: int((~states.found_N).sum()) for name, states in found.items()}
        counted = self._of_processes(sum(missing_by_name.values()), missing_by_name.get("train", 0))
        missing, of_train = counted.amax(0).tolist()
        if passes <= 1 and of_train:
            raise CannotSplitError("the training data are seen but once")
        started, done, encoded = time.perf_counter(), Encoded(), 0
        if missing:
            done = self._encode(model, taps, spaces, found, features, hashes)
            interruption.stop_if_any_requested(self.accelerator)
            encoded, not_finite = self._of_processes(done.rows, done.not_finite).sum(0).tolist()
            done.trouble = done.trouble or _not_finite(not_finite, keys[0]["dtype"])
            shards = spaces[0].shards()
            found = {name: States(shards, hashes[name], width) for name in hashes}
        seconds = time.perf_counter() - started if missing else 0.0
        splits: dict[str, Inputs] = {
            name: CachedInputs(self.task, part, replay, found[name], self._computing(model, replay, part))
            for name, part in features.items()
        }
        rows, kept = sum(map(len, features.values())), sum(int(states.found_N.sum()) for states in found.values())
        note = (
            f"feature cache at depth {taps[0].boundary}: {rows - missing:,} of {rows:,} rows found"
            + (f", {encoded:,} encoded in {seconds:.1f} s" if encoded else "")
            + _left_out(rows - kept, done.trouble)
        )
        return StageInputs(splits, note, _seconds_per_row(shards), encoded, seconds)

    def _of_processes(self, *counts: int) -> torch.Tensor:
        """These counts of all processes, one row for each; all have come as far as this when it is there."""
        found: torch.Tensor = self.accelerator.gather(torch.tensor([counts], device=self.accelerator.device))
        return found

    def _hash(self, name: str) -> RowHashes:
        if name not in self._hashes:
            self._hashes[name] = hash_rows(self.features[name].columns, self.features[name].offsets_N1)
        return self._hashes[name]

    def _key(self, model: nn.Module, tap: Tap, width: int) -> dict[str, Any]:
        """All that the states depend on, besides the row's own inputs."""
        precision = str(self.accelerator.mixed_precision)
        return states_key(
            model,
            tap,
            width,
            self.accelerator,
            format=FORMAT,
            checkpoint=self.recipe.checkpoint,
            dtype=self.recipe.cache.dtype or {"no": "fp32"}.get(precision, precision),
        )

    def _encode(
        self,
        model: nn.Module,
        taps: Sequence[Tap],
        spaces: Sequence[Space],
        found: Mapping[str, States],
        rows_of: Mapping[str, Features],
        hashes: Mapping[str, RowHashes],
    ) -> Encoded:
        """Compute and store the states of rows that have none; every process takes its share of them."""
        done = Encoded()
        rank, world_size = self.accelerator.process_index, self.accelerator.num_processes
        missing = {name: np.flatnonzero(~states.found_N) for name, states in found.items()}
        # Equal rows are computed once, for the split that has them first.
        addresses = np.concatenate([hashes[name][rows] for name, rows in missing.items()])
        first = np.sort(np.unique(addresses, axis=0, return_index=True)[1])
        # Another run may have stored what this pass computes on the way.
        held: list[list[Shard]] = [[], *(space.shards() for space in spaces[1:])]
        start = 0
        for name, rows in missing.items():
            unique = rows[first[(first >= start) & (first < start + len(rows))] - start]
            start += len(rows)
            own = unique[rank::world_size]
            try:
                writer = self._encode_rows(model, taps, spaces, held, rows_of[name], hashes[name], own)
                if writer is not None:
                    done.rows, done.not_finite = done.rows + writer.rows, done.not_finite + writer.not_finite
            except OSError as error:
                # A full or read-only disk: what is not stored is recomputed, and the run goes on.
                done.trouble = f"{self._store.root}: {error.strerror or error}"
            except interruption.Interrupted:
                # Several processes end together, once all are through.
                if world_size == 1:
                    raise
        return done

    def _encode_rows(
        self,
        model: nn.Module,
        taps: Sequence[Tap],
        spaces: Sequence[Space],
        held: Sequence[Sequence[Shard]],
        features: Features,
        hashes_N2: RowHashes,
        rows: Rows,
    ) -> ShardWriter | None:
        """One pass over rows: their states at all taps, each into its space, as far as the budget goes.

        A space gets no row that one of the shards which it held before has. Returns what was written to the first one.
        """
        kept, promised, processes = [], 0, self.accelerator.num_processes
        for tap, space, shards in zip(taps, spaces, held, strict=True):
            key, new = space.key, rows[~have_states(shards, hashes_N2[rows])]
            counts = np.ones(len(new)) if tap.head_input != "tokens" else features.lengths_N[new]
            bytes_N = np.cumsum(counts) * key["width"] * {"fp32": 4}.get(key["dtype"], 2)
            # Every process has about as many rows, and every tap its part of one budget.
            wanted_bytes = int(bytes_N[-1]) * processes if len(new) else 0
            room = self._store.make_room(wanted_bytes, spaces, promised)
            promised += room
            kept.append(set(new[: int(np.searchsorted(bytes_N, room // processes, side="right"))].tolist()))
        wanted = np.asarray(sorted(set().union(*kept)), np.int64)
        if not len(wanted):
            return None
        budget = pass_tokens(self.accelerator.device.type)
        with ExitStack() as stack:
            # One pass runs to the highest tap; below a lower one fewer blocks would have to run.
            highest = max(max(tap.boundary for tap in taps) - 1, 1)
            shares = [max(tap.boundary - 1, 0) / highest for tap in taps]
            writers = [stack.enter_context(space.writer(share)) for space, share in zip(spaces, shares, strict=True)]
            stack.enter_context(frozen_weights_cast(model, autocast_dtype(self.accelerator)))
            for positions in token_budget_batches(features.lengths_N[wanted], budget, budget):
                batch = wanted[positions]
                # What is cut short is not kept: in other batches its rows would get other last bits.
                interruption.stop_if_requested()
                found = self._capture(model, taps, features, batch)
                for tap, writer, fits in zip(taps, writers, kept, strict=True):
                    chosen = [place for place, row in enumerate(batch.tolist()) if row in fits]
                    pieces = [found[tap.boundary][place] for place in chosen]
                    if pieces:
                        lengths = np.asarray([len(piece) for piece in pieces])
                        writer.append(hashes_N2[batch[chosen]], lengths, torch.cat(pieces))
        return writers[0]

    def _capture(
        self, model: nn.Module, taps: Sequence[Tap], features: Features, rows: Rows
    ) -> dict[int, list[torch.Tensor]]:
        """Boundary -> the states of each row, (T, D), without padding."""
        inputs = self._to_device(self.task.collate(features, rows))
        with self.accelerator.autocast():
            found = capture(model, taps, inputs)
        lengths = features.lengths_N[rows].tolist()
        return {
            tap.boundary: [
                states_TD[: length if tap.head_input == "tokens" else 1]
                for states_TD, length in zip(found[tap.boundary], lengths, strict=True)
            ]
            for tap in taps
        }

    def _computing(self, model: nn.Module, replay: Replay, features: Features) -> Any:
        """Computes the states of rows that are not stored."""

        def compute(rows: Rows) -> list[torch.Tensor]:
            replay.feed(None)
            return [
                states.float().cpu()
                for states in self._capture(model, [replay.tap], features, rows)[replay.tap.boundary]
            ]

        return compute

    def _to_device(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The model's inputs among a batch, on its device."""
        return {name: tensor.to(self.accelerator.device) for name, tensor in model_inputs(batch).items()}


def _not_finite(rows: int, dtype: str) -> str:
    """Why rows are not stored that the cache's precision cannot hold; empty where there are none."""
    advice = ": choose bf16 or fp32 for cache.dtype" if dtype == "fp16" else ""
    return f"the states of {rows:,} are not finite in {dtype}{advice}" if rows else ""


def _left_out(rows: int, trouble: str) -> str:
    """What is said of rows that are not stored; nothing where there are none."""
    if not rows:
        return ""
    why = f"cannot be stored and are recomputed ({trouble})" if trouble else "do not fit and are recomputed"
    return f", {rows:,} {why}"


def _seconds_per_row(shards: Sequence[Shard]) -> float:
    rows = sum(len(shard.hashes_N2) for shard in shards)
    return sum(shard.seconds for shard in shards) / rows if rows else 0.0
