"""Micro-batches as CUDA graphs: forward and backward pass are launched at once, not kernel by kernel.

On a GPU a small batch takes as long as Python needs to launch its thousands of kernels. A CUDA graph is recorded once
for each shape of a batch and then replayed, from the same places in memory: inputs are copied there, gradients add up
there. Batches are padded to few lengths, whether they are replayed or not, and dropout draws from the same seed either
way: a run that is resumed, and records its graphs later, gets the same numbers, as far as the GPU's kernels repeat
theirs.

Shape legend: N rows, B rows of a batch, T tokens.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from hftransfer.caching.states import STATES, CachedInputs, Inputs, model_inputs
from hftransfer.strategies.freezing import transformers_model
from hftransfer.tasks.base import IGNORED, PLACES, Ragged
from hftransfer.training.padding import known_padding, without_padding

if TYPE_CHECKING:
    from hftransfer.training.loop import Training
    from hftransfer.training.stage_run import StageRun

Batch = Mapping[str, torch.Tensor]
Pass = Callable[[Batch, "float | torch.Tensor"], torch.Tensor]
"""Adds the gradient of a batch's loss times a share to what the parameters have, and returns the loss."""

# Lengths are rounded up to multiples of the first number, beyond the limit to multiples of the second.
SHORT_STEP, SHORT_LIMIT, LONG_STEP = 16, 128, 32
MOST_GRAPHS = 64
SWITCH = "HFTRANSFER_CUDA_GRAPHS"
"""Environment variable: 0 runs everything kernel by kernel, such as to look for a fault."""
# What the loss of a replayed pass may differ by from that of the pass that it repeats, relative to 1 + loss.
TOLERANCE = 1e-3
# Up to this size the rows of a split lie on the GPU, where each of them is one vector.
TABLE_BYTES = 256 << 20
ROWS = "rows"
"""Name of the numbers of rows in a batch that is looked up on the GPU."""


class Recorded(Protocol):
    """A pass that can be repeated."""

    def replay(self) -> None:
        """Repeat it on what its inputs hold now."""
        ...


class Recorder:
    """Records passes on a GPU. They share their memory: none needs what another has computed."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self.broken = False
        """Whether a recording has failed: what was recorded before is of no use then."""

    def record(self, run: Callable[[], torch.Tensor]) -> tuple[Recorded, torch.Tensor]:
        """The recorded pass, and the tensor in which it leaves its loss.

        Raises:
            RuntimeError: If it cannot be recorded.
        """
        graph, generator = torch.cuda.CUDAGraph(), _generator(self._device)
        before = generator.clone_state()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                loss = run()
        except RuntimeError:
            # A recording that breaks off leaves the generator believing that it goes on; the copy knows of none.
            generator.graphsafe_set_state(before)
            self.broken = True
            raise
        self._pool = graph.pool()
        return graph, loss


def _generator(device: torch.device) -> Any:
    """What dropout draws from on a GPU."""
    return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]


@dataclass(frozen=True)
class _Graph:
    """A recorded pass with the places of its inputs and its loss."""

    recorded: Recorded
    inputs: dict[str, torch.Tensor]
    share: torch.Tensor
    loss: torch.Tensor

    def run(self, batch: Batch, share: float, seed: int) -> torch.Tensor:
        """Repeat the pass on another batch of its shape; the loss stays until the next one."""
        for name, place in self.inputs.items():
            place.copy_(pinned(batch[name], place.device), non_blocking=True)
        self.share.fill_(share)
        seed_dropout(self.share.device, seed)
        self.recorded.replay()
        return self.loss


class Graphs:
    """Runs the micro-batches of a stage, those of a shape that comes again as a graph.

    A graph is compared with the pass that it repeats before it is used.

    Args:
        inputs: Where the batches come from.
        pad_values: What to pad each column with.
        device: Where they run.
        say: Tells the user.
        recorder: Records passes.
    """

    def __init__(
        self,
        inputs: Inputs,
        pad_values: Mapping[str, int],
        device: torch.device,
        say: Callable[[str], None],
        recorder: Any = None,
    ) -> None:
        self.inputs, self.device, self.say = inputs, device, say
        self.pad_values = {**pad_values, "labels": IGNORED, PLACES: -1}
        self.recorder = recorder or Recorder(device)
        self.table = _table(inputs, device)
        self.replayed = 0
        self._graphs: dict[tuple[Any, ...], _Graph] = {}
        self._seen: set[tuple[Any, ...]] = set()
        self._trouble = ""

    def collate(self, rows: NDArray[np.int64], seed: int) -> Batch:
        """The batch of these rows on the CPU; their numbers alone where the split lies on the device."""
        if self.table is None:
            return self.inputs.collate(rows, seed)
        assert isinstance(self.inputs, CachedInputs)
        self.inputs.served += len(rows)
        return {ROWS: torch.from_numpy(rows)}

    def run(self, run_pass: Pass, batch: Batch, share: float, seed: int) -> torch.Tensor:
        """Run a batch from `collate` with dropout from a seed, and return its loss, which stays until the next one."""
        batch = self.widened(batch)
        whole = without_padding(batch)
        shape = (whole, *((name, tuple(tensor.shape), tensor.dtype) for name, tensor in sorted(batch.items())))
        found = None if self.recorder.broken else self._graphs.get(shape)
        if found is not None:
            self.replayed += 1
            return found.run(batch, share, seed)
        looked_up = run_pass if self.table is None else _looking_up(run_pass, self.table)
        loss = run_once(looked_up, batch, share, seed, device=self.device)
        works = not self._trouble and not self.recorder.broken
        if shape in self._seen and works and len(self._graphs) < MOST_GRAPHS:
            # Recorded only now: a shape that never comes again, such as that of the last batch, is not worth it.
            with known_padding(whole):
                graph = self._record(looked_up, to_device(batch, self.device))
            if graph is not None and self._repeats(graph, batch, seed, loss):
                self._graphs[shape] = graph
        self._seen.add(shape)
        return loss

    def _record(self, run_pass: Pass, inputs: dict[str, torch.Tensor]) -> _Graph | None:
        """Record a pass over inputs in their places; nothing is computed. None where that is not possible."""
        share = torch.zeros((), device=self.device)
        try:
            recorded, loss = self.recorder.record(lambda: run_pass(inputs, share))
        except RuntimeError as error:
            # A model or a loss that waits for the GPU, or no memory left: the run goes on kernel by kernel.
            self._give_up(reason_of(error))
            return None
        return _Graph(recorded, inputs, share, loss)

    def _repeats(self, graph: _Graph, batch: Batch, seed: int, loss: torch.Tensor) -> bool:
        """Whether a graph gives the loss of the pass that it repeats; the share is 0, so no gradient is added."""
        expected, found = float(loss), float(graph.run(batch, 0.0, seed))
        if not math.isfinite(expected):
            return False
        if not abs(found - expected) <= TOLERANCE * (1 + abs(expected)):
            self._give_up(f"a replayed batch has a loss of {found:.6g} in the place of {expected:.6g}")
            return False
        return True

    def _give_up(self, reason: str) -> None:
        self._trouble = reason
        self._graphs.clear()
        self.say(f"No more CUDA graphs: {reason}")

    def widened(self, batch: Batch) -> dict[str, torch.Tensor]:
        """A batch padded to one of few lengths."""
        # Where a head reads one vector, texts have one token: that is one length already.
        if ROWS in batch or batch["attention_mask"].shape[1] == 1:
            return dict(batch)
        padded = {*model_inputs(batch), PLACES, STATES}
        if isinstance(self.inputs.features.labels, Ragged):
            padded.add("labels")
        found = dict(batch)
        for name in padded & batch.keys():
            missing = rounded_up(batch[name].shape[1]) - batch[name].shape[1]
            # The second dimension from the left is that of the tokens; `pad` counts from the right.
            behind = (0, 0) * (batch[name].ndim - 2)
            found[name] = functional.pad(batch[name], (*behind, 0, missing), value=self.pad_values.get(name, 0))
        return found


def _table(inputs: Inputs, device: torch.device) -> dict[str, torch.Tensor] | None:
    """A whole split on a device, (N, ...) each: one whose rows are single vectors, and which is small; else None."""
    batch = inputs.whole_batch(TABLE_BYTES) if isinstance(inputs, CachedInputs) else None
    return None if batch is None else {name: tensor.to(device) for name, tensor in batch.items()}


def _looking_up(run_pass: Pass, table: Batch) -> Pass:
    """The pass over rows that are looked up in a table."""

    def run(batch: Batch, share: float | torch.Tensor) -> torch.Tensor:
        return run_pass({name: tensor.index_select(0, batch[ROWS]) for name, tensor in table.items()}, share)

    return run


def reason_of(error: Exception) -> str:
    """The first line of what an error says."""
    return str(error).strip().partition("\n")[0]


def switched_off() -> bool:
    """Whether the user wants everything kernel by kernel."""
    return os.environ.get(SWITCH) == "0"


def run_once(run_pass: Pass, batch: Batch, share: float, seed: int, *, device: torch.device) -> torch.Tensor:
    """Run a batch from the CPU with dropout from a seed, kernel by kernel, and return its loss."""
    seed_dropout(device, seed)
    with known_padding(without_padding(batch)):
        return run_pass(to_device(batch, device), share)


def seed_dropout(device: torch.device, seed: int) -> None:
    """Seed what a pass draws from: what `torch.manual_seed` does, without the devices that it does not run on.

    That would format the stack for each kind of device that is not there.
    """
    if device.type not in ("cpu", "cuda"):
        torch.manual_seed(seed)
        return
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        _generator(device).manual_seed(seed)


def rounded_up(length: int) -> int:
    """The length to which batches of a length are padded."""
    step = SHORT_STEP if length <= SHORT_LIMIT else LONG_STEP
    return -(-length // step) * step


def pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on the CPU from where a GPU copies it by itself, while Python goes on."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def to_device(batch: Batch, device: torch.device) -> dict[str, torch.Tensor]:
    """A batch on its device."""
    return {name: pinned(tensor, device).to(device, non_blocking=True) for name, tensor in batch.items()}


def why_not(training: Training) -> str:
    """Why a training on a GPU does not run as graphs; "" where it does.

    What Python decides in a pass is recorded with it, so it must decide alike for all batches of a shape.
    """
    recipe, accelerator = training.recipe, training.accelerator
    config = transformers_model(training.model).config.to_dict()
    reasons = {
        f"${SWITCH} is 0": switched_off(),
        "the processes exchange gradients": accelerator.num_processes > 1,
        "a compiled model drops other values when it is recorded": recipe.optim.torch_compile,
        "activations are recomputed": recipe.optim.gradient_checkpointing,
        "gradients of fp16 are scaled": accelerator.scaler is not None,
        "mixout changes where the weights lie": recipe.optim.retain == "mixout",
        f"the loss of {training.task.type} reads a number of tokens that varies": not training.task.fixed_shapes,
        "the model leaves out layers at random": any(value for name, value in config.items() if "layerdrop" in name),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def graphs_of_stage(training: Training, now: StageRun) -> Graphs | None:
    """What runs the micro-batches of a stage as graphs; None where they run kernel by kernel."""
    if training.accelerator.device.type != "cuda" or now.current.stage.objective != "task":
        return None
    reason = why_not(training)
    if reason:
        now.log.say(f"Training on a GPU without CUDA graphs: {reason}")
        return None
    now.log.say("Training on a GPU: batches of a shape that comes again run as CUDA graphs")
    return Graphs(now.inputs.splits["train"], training.task.pad_values, training.accelerator.device, now.log.say)
