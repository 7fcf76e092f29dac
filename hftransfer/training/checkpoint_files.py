"""A checkpoint on disk: safetensors and JSON with a manifest of hashes, written aside, fsynced and renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hftransfer.errors import TrainingError
from hftransfer.safety.files import UNFINISHED

MANIFEST, STATE_FILE = "manifest.json", "state.json"
TENSOR_FILES = ("weights.safetensors", "best.safetensors", "optimizer.safetensors")
FILES = (*TENSOR_FILES, STATE_FILE)
# Names that no reader takes for a checkpoint.
REMOVING = ".removing-"

Tensors = Mapping[str, torch.Tensor]


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step-{step:08d}"


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, the newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def write(folder: Path, step: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any], keep: int) -> None:
    """Write a checkpoint beside the others, make it visible by a rename, then remove the oldest.

    Args:
        folder: Where the checkpoints are.
        step: Its step.
        tensors: The contents of `TENSOR_FILES`, by name.
        state: The content of state.json.
        keep: How many checkpoints stay.
    """
    final, temporary = step_folder(folder, step), folder / f"{UNFINISHED}{step:08d}"
    is_new = not folder.exists()
    _remove_leftovers(folder)
    temporary.mkdir(parents=True)
    try:
        for name in TENSOR_FILES:
            save_file(dict(tensors[name]), temporary / name)
        (temporary / STATE_FILE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        _seal(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if final.exists():
        _remove(final)
    os.replace(temporary, final)
    _fsync(folder)
    if is_new:
        _fsync(folder.parent)
    found = checkpoints(folder)
    here = found.index(final)
    # What is newer than this step was damaged and passed over: kept, it would push out the valid ones.
    for old in found[:here] + found[here + keep :]:
        _remove(old)


def verify(folder: Path) -> None:
    """Raise TrainingError if a file is missing or differs from the manifest, or the folder has another's name."""
    try:
        hashes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        damaged = [name for name in FILES if not (folder / name).is_file() or sha256(folder / name) != hashes[name]]
    except (OSError, ValueError, KeyError, TypeError):
        damaged = [MANIFEST]
    if not damaged and step_folder(folder.parent, read_state(folder)["progress"]["step"]) != folder:
        damaged = [STATE_FILE]
    if damaged:
        raise TrainingError(f"{', '.join(damaged)} damaged or missing", where=str(folder))


def read_state(folder: Path) -> dict[str, Any]:
    """The content of state.json."""
    found: dict[str, Any] = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    return found


def sha256(path: Path) -> str:
    """Hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(folder: Path) -> None:
    """Write the manifest of hashes and push everything to the disk."""
    hashes = {name: sha256(folder / name) for name in FILES}
    (folder / MANIFEST).write_text(json.dumps(hashes, indent=1), encoding="utf-8")
    for path in folder.iterdir():
        _fsync(path)
    _fsync(folder)


def _remove(folder: Path) -> None:
    """Remove a checkpoint, so that no half of it ever passes for one."""
    gone = folder.with_name(f"{REMOVING}{folder.name}")
    shutil.rmtree(gone, ignore_errors=True)
    os.replace(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written or half-removed."""
    for prefix in (UNFINISHED, REMOVING):
        for path in folder.glob(f"{prefix}*"):
            shutil.rmtree(path, ignore_errors=True)


def _fsync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
