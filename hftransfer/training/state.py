"""Training state on disk: safetensors and JSON with a manifest of hashes, written aside and renamed.

No random-generator state is kept: every step seeds itself from (seed, step, rank). A checkpoint holds what learned,
the best weights
so far, the optimizer's moments and the counters.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from hftransfer.errors import TrainingError
from hftransfer.recipe import Recipe
from hftransfer.tasks.base import Features
from hftransfer.training.distributed import shard_like, whole_tensor

if TYPE_CHECKING:
    from accelerate import Accelerator

MANIFEST = "manifest.json"
FILES = ("weights.safetensors", "best.safetensors", "optimizer.safetensors", "state.json")
# What may differ between a run and its continuation without changing a single weight.
NOT_PART_OF_THE_RESULT = {
    "output_dir",
    "overwrite",
    "resume",
    "preflight",
    "checkpoint_every",
    "keep_checkpoints",
    "trackers",
}


@dataclass
class Progress:
    """How far a training has come; all plain numbers."""

    step: int = 0
    best_score: float | None = None
    best_step: int = 0
    best_scores: dict[str, float] = field(default_factory=dict)
    evaluations_without_gain: int = 0
    stopped: bool = False
    seconds: float = 0.0


class TrainingState:
    """Saves and finds the checkpoints of one run; the main process writes, every process reads.

    Args:
        folder: Where they are.
        recipe: The recipe.
        features: The data, to recognise them by.
        accelerator: Its processes save together.
        rest: A hash of data that are not among the features, because they are streamed.
    """

    def __init__(
        self, folder: Path, recipe: Recipe, features: Sequence[Features], accelerator: Accelerator, rest: str = ""
    ) -> None:
        self.folder, self.recipe, self.accelerator = folder, recipe, accelerator
        # The number of processes decides the global batch, and with it what a step is.
        self.identity: dict[str, Any] = {
            "recipe": recipe_hash(recipe),
            "data": data_hash(features) + rest,
            "number of processes": accelerator.num_processes,
        }
        self._resumed_from: Path | None = None

    def save(
        self,
        progress: Progress,
        weights: dict[str, torch.Tensor],
        best: dict[str, torch.Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Write a checkpoint beside the others, make it visible by a rename, then remove the oldest.

        Args:
            progress: How far the training has come.
            weights: What learned, whole; the main process alone needs it.
            best: The best weights so far, likewise.
            optimizer: Every process passes its own; sharded moments are put together.
        """
        moments, group_steps = _flatten(optimizer, keep=self.accelerator.is_main_process)
        if self.accelerator.is_main_process:
            final = self.folder / f"step-{progress.step:08d}"
            temporary = self.folder / f".writing-{progress.step:08d}"
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            save_file(weights, temporary / "weights.safetensors")
            save_file(best, temporary / "best.safetensors")
            save_file(moments, temporary / "optimizer.safetensors")
            scaler = self.accelerator.scaler
            state = {
                "progress": asdict(progress),
                "identity": self.identity,
                "optimizer_steps": group_steps,
                "scaler": None if scaler is None else scaler.state_dict(),
            }
            (temporary / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
            _seal(temporary)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
            _fsync(self.folder)
            found = self.checkpoints()
            here = found.index(final)
            # What is newer than this step was damaged and passed over: kept, it would push out the valid ones.
            for old in found[:here] + found[here + self.recipe.keep_checkpoints :]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, the newest first."""
        return sorted(self.folder.glob("step-*"), reverse=True)

    def load(self) -> tuple[Progress, dict[str, torch.Tensor], dict[str, torch.Tensor]] | None:
        """Progress, weights and best weights of the newest valid checkpoint; the loss scaler goes on from there.

        Raises:
            TrainingError: If the checkpoint belongs to another recipe or other data, or none of them is intact.
        """
        damaged = []
        for folder in self.checkpoints():
            try:
                _verify(folder)
            except TrainingError as error:
                damaged.append(str(error))
                continue
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            for part, value in self.identity.items():
                if state["identity"].get(part) != value:
                    raise TrainingError(
                        f"the checkpoint was written with another {part}",
                        where=str(folder),
                        fix="start anew with --resume never --overwrite, or give the same recipe and data",
                    )
            self._resumed_from = folder
            if self.accelerator.scaler is not None and state["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            return (
                Progress(**state["progress"]),
                load_file(folder / "weights.safetensors"),
                load_file(folder / "best.safetensors"),
            )
        if damaged:
            raise TrainingError(
                f"no intact checkpoint: {'; '.join(damaged)}", fix="start anew with --resume never --overwrite"
            )
        return None

    def load_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Put the moments of the checkpoint that `load` found into a new optimizer."""
        assert self._resumed_from is not None
        state = json.loads((self._resumed_from / "state.json").read_text(encoding="utf-8"))
        moments = load_file(self._resumed_from / "optimizer.safetensors")
        # Numbered as in the optimizer's state: through all groups.
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        restored: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in moments.items():
            index, _, name = key.partition(".")
            restored.setdefault(int(index), {})[name] = shard_like(tensor, parameters[int(index)])
        for index, step in state["optimizer_steps"].items():
            restored[int(index)]["step"] = torch.tensor(step, dtype=torch.float32)
        optimizer.load_state_dict({"state": restored, "param_groups": optimizer.state_dict()["param_groups"]})


def recipe_hash(recipe: Recipe) -> str:
    """Hash of everything in a recipe that decides the result."""
    values = recipe.model_dump(mode="json", exclude=NOT_PART_OF_THE_RESULT)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def data_hash(splits: Sequence[Features]) -> str:
    """Hash of the encoded rows and labels: training data decide the weights, validation data which of them are best."""
    digest = hashlib.sha256()
    for features in splits:
        digest.update(features.offsets_N1.tobytes())
        for name in sorted(features.columns):
            digest.update(features.columns[name].tobytes())
        if features.labels is not None:
            digest.update(features.labels.tobytes())
    return digest.hexdigest()


def _flatten(optimizer: torch.optim.Optimizer, *, keep: bool) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The optimizer's moments by "index.name", whole, and its step counters; nothing unless they are to be kept."""
    moments, steps = {}, {}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if name == "step":
                steps[str(index)] = float(value)
                continue
            moment = whole_tensor(value)
            if keep:
                moments[f"{index}.{name}"] = moment
    return moments, steps


def _seal(folder: Path) -> None:
    """Write the manifest of hashes and push everything to the disk."""
    hashes = {name: _sha256(folder / name) for name in FILES}
    (folder / MANIFEST).write_text(json.dumps(hashes, indent=1), encoding="utf-8")
    for path in folder.iterdir():
        _fsync(path)
    _fsync(folder)


def _verify(folder: Path) -> None:
    """Raise TrainingError if a file is missing or differs from the manifest."""
    try:
        hashes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        damaged = [name for name in FILES if not (folder / name).is_file() or _sha256(folder / name) != hashes[name]]
    except (OSError, ValueError, KeyError, TypeError):
        damaged = [MANIFEST]
    if damaged:
        raise TrainingError(f"{', '.join(damaged)} damaged or missing", where=str(folder))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
