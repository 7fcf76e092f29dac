"""One pass over a sample that keeps one vector per text and layer, on disk where the feature cache lies.

Shape legend: N rows, B rows of a batch, T tokens, D hidden size, V = L + 1 layers, the embeddings among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from hftransfer import interruption
from hftransfer.caching.boundary import HeadInput, Tap, capture, find_tap
from hftransfer.caching.key import states_key
from hftransfer.caching.states import States, model_inputs
from hftransfer.caching.store import Space, StateStore, hash_rows
from hftransfer.data.batching import pass_tokens, token_budget_batches
from hftransfer.strategies.casting import autocast_dtype, frozen_weights_cast
from hftransfer.strategies.freezing import anatomy_of, attach_anatomy, transformers_model
from hftransfer.tasks.base import Features, Task

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from hftransfer.training_settings import CacheSection

FORMAT = "layers-1"
"""Counts up when the same key would mean other vectors."""


@dataclass(frozen=True)
class Encoded:
    """The vectors of a sample.

    Attributes:
        layers: Layer -> (N, D) in fp32; 0 is what the blocks read, L what the head reads.
        computed: How many rows were computed, not found.
    """

    layers: Mapping[int, NDArray[np.float32]]
    computed: int


def layer_taps(model: nn.Module) -> list[Tap]:
    """Where every layer's vectors are taken; the boundary of a tap is its layer, counted from 1.

    A vector is the mean over a text's tokens; of a decoder, whose other tokens have not seen the whole text, the last.

    Args:
        model: A sequence classifier.
    """
    top = find_tap(model, anatomy_of(model).head_depth)
    kept: HeadInput = "last" if top.head_input == "last" else "mean"
    blocks = anatomy_of(model).blocks
    inputs = [Tap(number, path, True, (), kept) for number, path in enumerate(blocks, 1)]
    return [*inputs, replace(top, boundary=len(blocks) + 1, resting=(), head_input=kept, pooling_block=None)]


def encode_layers(
    model: nn.Module,
    task: Task,
    features: Features,
    rows: NDArray[np.int64],
    accelerator: Accelerator,
    cache: CacheSection,
) -> Encoded:
    """The vectors of some rows at all layers; found on disk or computed in one forward pass, and kept.

    Args:
        model: A sequence classifier with its pretrained backbone, on its device.
        task: Collates rows.
        features: Encoded rows.
        rows: Which of them.
        accelerator: Its precision and device.
        cache: Where and whether vectors are kept.

    Raises:
        CannotSplitError: If the model's states cannot be taken.
    """
    attach_anatomy(model)
    taps = layer_taps(model)
    width = int(transformers_model(model).config.hidden_size)
    store = StateStore(max_bytes=cache.max_bytes)
    space = store.space(_key(model, taps, width, accelerator)) if not cache.is_off else None
    hashes_N2 = hash_rows(features.columns, features.offsets_N1)[rows]
    found = States(space.shards() if space else [], hashes_N2, width)
    missing = np.flatnonzero(~found.found_N)
    computed = _compute(model, task, features, rows[missing], taps, accelerator)
    if space is not None and len(missing):
        _keep(store, space, hashes_N2[missing], computed)
    by_place = dict(zip(missing.tolist(), computed, strict=True))
    states_NVD = found.gather(np.arange(len(rows)), lambda places: [by_place[place] for place in places.tolist()])
    return Encoded(
        {layer: states_NVD[:, layer].contiguous().numpy() for layer in range(len(taps))}, computed=len(missing)
    )


def _compute(
    model: nn.Module,
    task: Task,
    features: Features,
    rows: NDArray[np.int64],
    taps: Sequence[Tap],
    accelerator: Accelerator,
) -> list[torch.Tensor]:
    """The vectors (V, D) of every row, on the CPU."""
    found: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    was_training = model.training
    model.eval()
    budget = pass_tokens(accelerator.device.type)
    precision = autocast_dtype(accelerator)
    with accelerator.autocast() if precision is not None else nullcontext(), frozen_weights_cast(model, precision):
        for places in token_budget_batches(features.lengths_N[rows], budget, budget):
            interruption.stop_if_requested()
            batch = model_inputs(task.collate(features, rows[places]))
            states = capture(model, taps, {name: tensor.to(accelerator.device) for name, tensor in batch.items()})
            states_BVD = torch.cat([states[tap.boundary] for tap in taps], 1).float().cpu()
            for place, vectors_VD in zip(places.tolist(), states_BVD, strict=True):
                found[place] = vectors_VD
    model.train(was_training)
    return found


def _keep(store: StateStore, space: Space, hashes_N2: NDArray[Any], vectors: Sequence[torch.Tensor]) -> None:
    """Write what was computed, where there is room; what cannot be kept is computed again another time."""
    states_SD = torch.cat(list(vectors))
    size = states_SD.numel() * states_SD.element_size()
    try:
        if store.make_room(size, [space]) < size:
            return
        with space.writer() as writer:
            writer.append(hashes_N2, np.asarray([len(one) for one in vectors]), states_SD)
    except OSError:
        # A full or read-only disk is no reason to give no advice.
        return


def _key(model: nn.Module, taps: Sequence[Tap], width: int, accelerator: Accelerator) -> dict[str, Any]:
    """All that the vectors depend on, besides the row's own inputs."""
    whole = replace(taps[-1], boundary=anatomy_of(model).head_depth)
    config: Any = transformers_model(model).config
    checkpoint = str(config._name_or_path)
    return states_key(model, whole, width, accelerator, format=FORMAT, checkpoint=checkpoint, dtype="fp32")
