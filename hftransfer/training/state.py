"""Training state: what a checkpoint holds, the newest valid one, and writing one while the training goes on.

No random-generator state is kept: every step seeds itself from (seed, step, rank). A checkpoint holds what learned, the
best weights so far (or what else is kept), the optimizer's moments and the counters. It is copied while the training
waits and written by a thread while the training goes on; the next one, and the end of the run, wait for that thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from hftransfer.errors import TrainingError
from hftransfer.recipe import Recipe
from hftransfer.training import checkpoint_files as files
from hftransfer.training import identity
from hftransfer.training.distributed import shard_like, whole_tensor
from hftransfer.training.space import check_room, disk_errors, tensor_bytes

if TYPE_CHECKING:
    from accelerate import Accelerator

FORMAT = 2
"""Counts up when an older state cannot be read any more."""

NO_ROOM = "free some space and continue with --resume auto"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each weight."""
ANEW = "start anew with --resume never --overwrite"

Weights = Mapping[str, torch.Tensor]


@dataclass
class Progress:
    """How far a training has come; all plain numbers."""

    step: int = 0
    best_score: float | None = None
    best_step: int = 0
    best_scores: dict[str, float] = field(default_factory=dict)
    evaluations_without_gain: int = 0
    stopped: bool = False
    evaluation_due: bool = False
    """Whether the evaluation that belongs to this step is still to be made."""
    loss_sum: float = 0.0
    """Of the steps since the last record of the log."""
    loss_count: int = 0
    ingredients: dict[str, float] = field(default_factory=dict)
    """Step -> validation score of the weights that a soup may be made of."""
    cache_facts: dict[str, float] = field(default_factory=dict)
    chunks_counted: int = 0
    """Of streamed data: chunks seen so far, and how many of their rows were truncated."""
    truncated_rows: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Batching:
    """How a global batch is made up."""

    global_batch: int
    micro_batch: int
    """Most rows that a process runs at once."""


@dataclass(frozen=True)
class Found:
    """The checkpoint to go on from.

    Attributes:
        folder: Where it is.
        state: Its state.json.
        changes: What has changed since it was written, as "name: old -> new"; the run says and records it.
    """

    folder: Path
    state: dict[str, Any]
    changes: list[str]

    @property
    def progress(self) -> Progress:
        """How far it had come."""
        return Progress(**self.state["progress"])

    @property
    def batching(self) -> Batching:
        """How its batches were made up."""
        return Batching(self.state["global_batch"], self.state["micro_batch"])

    @property
    def began_on(self) -> int:
        """The number of processes that the run began on."""
        return _began_on(self.state)

    def weights(self, name: str = "weights") -> dict[str, torch.Tensor]:
        """What learned, whole; or the "best" so far."""
        return dict(load_file(self.folder / f"{name}.safetensors"))


def began_on(recipe: Recipe) -> int | None:
    """The number of processes that a run began on, if there is a checkpoint that it goes on from."""
    if recipe.resume == "never":
        return None
    root = Path(recipe.output_dir or "")
    for folder in (root, *sorted(root.glob("seeds/*"))):
        for checkpoint in files.checkpoints(folder / "checkpoints"):
            # What is damaged is told of when the run looks for its checkpoint; all of a run's say the same here.
            with contextlib.suppress(OSError, ValueError, KeyError):
                return _began_on(files.read_state(checkpoint))
    return None


def _began_on(state: Mapping[str, Any]) -> int:
    # States of before it was written down: nobody else has continued them, as far as they know.
    return int(state.get("began_on", state["surroundings"]["processes"]))


class TrainingState:
    """Saves and finds the checkpoints of one run; the main process writes, every process reads.

    Args:
        folder: Where they are.
        recipe: The recipe.
        data: A hash of the data.
        weights: A hash of the weights that never learn.
        accelerator: Its processes save together.
    """

    def __init__(self, folder: Path, recipe: Recipe, data: str, weights: str, accelerator: Accelerator) -> None:
        self.folder, self.recipe, self.accelerator = folder, recipe, accelerator
        self.data, self.pretrained = data, weights
        self.damaged: list[str] = []
        self.found: Found | None = None
        self.last_step: int | None = None
        self._buffers: dict[str, torch.Tensor] = {}
        self._writing: Future[None] | None = None
        self._thread: ThreadPoolExecutor | None = None

    def find(self, batching: Batching) -> Found | None:
        """The newest valid checkpoint, which `found` is then; damaged ones are passed over and listed in `damaged`.

        Args:
            batching: What the recipe says of the batches on this number of processes.

        Raises:
            TrainingError: If it belongs to another recipe or other data and is not to be forced, or none is intact.
        """
        for folder in files.checkpoints(self.folder):
            try:
                files.verify(folder)
            except TrainingError as error:
                self.damaged.append(str(error))
                continue
            state = files.read_state(folder)
            self.found = Found(folder, state, self._compare(folder, state, batching))
            self.last_step = self.found.progress.step
            return self.found
        if self.damaged:
            raise TrainingError(f"no intact checkpoint: {'; '.join(self.damaged)}", fix=ANEW)
        return None

    def _compare(self, folder: Path, state: Mapping[str, Any], batching: Batching) -> list[str]:
        """What has changed that may change; refuse what may not, unless it is forced."""
        if state.get("format") != FORMAT:
            raise TrainingError("written by another version of hftransfer", where=str(folder), fix=ANEW)
        changes = identity.differences(state["surroundings"], identity.surroundings(self.accelerator))
        refused = identity.differences(state["recipe"], identity.recipe_values(self.recipe))
        for what, value in (("data", self.data), ("pretrained weights", self.pretrained)):
            if state[what] != value:
                refused.append(f"the {what}: other contents")
        same_processes = state["surroundings"]["processes"] == self.accelerator.num_processes
        if same_processes and state["global_batch"] != batching.global_batch:
            refused.append(f"examples per step: {state['global_batch']} -> {batching.global_batch}")
        if refused and self.recipe.resume != "force":
            raise TrainingError(
                f"the checkpoint was written with another recipe, seed or other data ({identity.listed(refused)})",
                where=str(folder),
                fix="give the same, or --resume force to go on from it all the same, or --resume never --overwrite",
            )
        return [*(f"forced: {change}" for change in refused), *changes]

    def save(
        self,
        progress: Progress,
        weights: Weights,
        best: Weights,
        optimizer: torch.optim.Optimizer | None,
        batching: Batching,
        *,
        owned: bool = False,
        **where: Any,
    ) -> None:
        """Copy the state; a thread of the main process writes it.

        Args:
            progress: How far the training has come.
            weights: What learned, whole; the main process alone needs it. Copied here.
            best: The best weights so far, likewise, but never changed afterwards.
            optimizer: Every process passes its own; sharded moments are put together. None after the last step.
            batching: How its batches are made up.
            owned: Whether all these are copies already, put together from shards.
            where: What else state.json should say: epoch, offset, stage.

        Raises:
            TrainingError: If there is no room, for this checkpoint or for the one before.
        """
        self.flush()
        self.last_step = progress.step
        moments, group_steps = _flatten(optimizer, keep=self.accelerator.is_main_process)
        if not self.accelerator.is_main_process:
            return
        sizes = sum(map(tensor_bytes, (weights.values(), best.values(), moments.values())))
        check_room("a checkpoint", self.folder, sizes, NO_ROOM)
        copied = (weights, moments) if owned else (self._copy("weights", weights), self._copy("moments", moments))
        contents = (copied[0], best, copied[1])
        scaler = self.accelerator.scaler
        state = {
            "format": FORMAT,
            **where,
            "seed": self.recipe.seed,
            **asdict(batching),
            "progress": asdict(progress),
            # The schedule was derived for so many, whatever has continued it since.
            "began_on": self.accelerator.num_processes if self.found is None else self.found.began_on,
            "recipe": identity.recipe_values(self.recipe),
            "recipe_sha256": identity.json_hash(identity.recipe_values(self.recipe)),
            "data": self.data,
            "pretrained weights": self.pretrained,
            "surroundings": identity.surroundings(self.accelerator),
            "optimizer_steps": group_steps,
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        self._submit(self._write, progress.step, dict(zip(files.TENSOR_FILES, contents, strict=True)), state)

    def _write(self, step: int, tensors: Mapping[str, Weights], state: Mapping[str, Any]) -> None:
        with disk_errors("a checkpoint", self.folder, NO_ROOM):
            files.write(self.folder, step, tensors, state, self.recipe.keep_checkpoints)

    def flush(self) -> None:
        """Wait until the last checkpoint is on the disk.

        Raises:
            TrainingError: If it could not be written; the one before is there.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Let go of thread and buffers; a checkpoint that is being written is written to its end."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
        self._thread, self._buffers = None, {}

    def restore_scaler(self) -> None:
        """Let the loss scaler go on from where it was."""
        assert self.found is not None
        if self.accelerator.scaler is not None and self.found.state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(self.found.state["scaler"])

    def load_optimizer(self, optimizer: torch.optim.Optimizer) -> str:
        """Put the moments of the checkpoint that was found into a new optimizer.

        Returns:
            What to say: nothing, or that they do not fit after a change that was forced, and start anew.
        """
        assert self.found is not None
        moments = self.found.weights("optimizer")
        # Numbered as in the optimizer's state: through all groups.
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        restored: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in moments.items():
            index, _, name = key.partition(".")
            if int(index) >= len(parameters) or parameters[int(index)].shape != tensor.shape:
                return "the optimizer's moments do not fit what learns now and start anew"
            restored.setdefault(int(index), {})[name] = shard_like(tensor, parameters[int(index)])
        for index, step in self.found.state["optimizer_steps"].items():
            restored[int(index)]["step"] = torch.tensor(step, dtype=torch.float32)
        optimizer.load_state_dict({"state": restored, "param_groups": optimizer.state_dict()["param_groups"]})
        return ""

    def prepare(self, weights: Weights, optimizer: torch.optim.Optimizer) -> None:
        """Make the memory of copies ready in the background: touching new pages takes longer than the copy itself.

        Args:
            weights: What will be saved.
            optimizer: AdamW over what learns now.
        """
        if self.accelerator.is_main_process:
            self.flush()
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            moments = {f"{index}.{name}": like for index, like in enumerate(parameters) for name in MOMENTS}
            self._submit(self._touch, {"weights": dict(weights), "moments": moments})

    def _touch(self, wanted: Mapping[str, Weights]) -> None:
        self._buffers = {}
        for kind, tensors in wanted.items():
            for name, tensor in tensors.items():
                self._buffers[f"{kind}/{name}"] = torch.empty(tensor.shape, dtype=tensor.dtype).fill_(0)

    def _submit(self, action: Callable[..., None], *arguments: Any) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="hftransfer-checkpoint")
        self._writing = self._thread.submit(action, *arguments)

    def _copy(self, kind: str, tensors: Weights) -> dict[str, torch.Tensor]:
        """Copies on the CPU, in memory that is used again for the next checkpoint."""
        copied = {}
        for name, tensor in tensors.items():
            key = f"{kind}/{name}"
            buffer = self._buffers.get(key)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = self._buffers[key] = torch.empty(tensor.shape, dtype=tensor.dtype)
            copied[name] = buffer.copy_(tensor)
        return copied


def _flatten(
    optimizer: torch.optim.Optimizer | None, *, keep: bool
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The optimizer's moments by "index.name", whole, and its step counters; nothing unless they are to be kept."""
    moments: dict[str, torch.Tensor] = {}
    steps: dict[str, float] = {}
    for index, values in ({} if optimizer is None else optimizer.state_dict()["state"]).items():
        for name, value in values.items():
            if name == "step":
                steps[str(index)] = float(value)
                continue
            moment = whole_tensor(value) if isinstance(value, DTensor) else value.detach()
            if keep:
                moments[f"{index}.{name}"] = moment
    return moments, steps
