"""Verify: what a fresh process gets out of a folder or repository is what the trained model gave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from hftransfer.errors import CheckpointError, HubError
from hftransfer.hub.upload import explain
from hftransfer.models import probe
from hftransfer.models.source import split_revision

MODEL_FOLDER = "model"
"""Where a run has its model."""


@dataclass(frozen=True)
class Verification:
    """What a verification found.

    Attributes:
        problems: What is wrong, a line each; none for a model that is as it was trained.
        notes: What could not be looked at.
        difference: The largest difference of an output, as a share of the largest output.
        compared: How many outputs were compared.
    """

    problems: tuple[str, ...]
    notes: tuple[str, ...]
    difference: float
    compared: int


def verify(model: str | os.PathLike[str]) -> Verification:
    """Load a model with plain transformers and PEFT in a process of its own, and compare it with its probe.

    Args:
        model: A run's folder, a model folder, or a repository on the Hub (with an optional "@revision").

    Returns:
        What was found.

    Raises:
        HubError: If there is no such folder or repository, or it has no probe.
    """
    folder = Path(model)
    if not folder.is_dir():
        folder = pull(str(model))
    elif (folder / MODEL_FOLDER).is_dir():
        folder = folder / MODEL_FOLDER
    if not (folder / probe.PROBE_FILE).is_file():
        raise HubError(
            f"no {probe.PROBE_FILE}, so there is nothing to compare with",
            where=str(model),
            fix="only models that hftransfer has trained can be verified",
        )
    return check_in_fresh_process(folder)


def pull(repo: str) -> Path:
    """Download a repository, or find it in the Hub's cache on this machine.

    Args:
        repo: Its name, "user/model", with an optional "@revision".

    Returns:
        The folder.

    Raises:
        HubError: If it cannot be had.
    """
    try:
        name, revision = split_revision(repo)
        return Path(snapshot_download(name, revision=revision))
    except CheckpointError as error:
        raise HubError(error.what, where=repo) from error
    except Exception as error:
        raise explain(error, repo) from error


def check_in_fresh_process(folder: Path) -> Verification:
    """What `probe.py` finds in a folder, run as a program that knows nothing of hftransfer.

    Raises:
        HubError: If the process dies.
    """
    # -P: the folder of the program is not searched for modules.
    done = subprocess.run(
        [sys.executable, "-P", probe.__file__, str(folder)], capture_output=True, text=True, check=False
    )
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise HubError(f"the fresh process died ({last[:200]})", where=str(folder)) from None
    return Verification(tuple(found["problems"]), tuple(found["notes"]), found["difference"], found["compared"])
