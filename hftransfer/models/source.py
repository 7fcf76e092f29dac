"""Where a checkpoint's files are: a local folder as it is, or the Hub's files at one commit, fetched and checked first.

Config, tokenizer and weights are then read from one folder, so that nothing can change between two reads.
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path

from hftransfer.errors import CheckpointError
from hftransfer.models.stored import ADAPTER_WEIGHTS, INDEX, WEIGHTS
from hftransfer.models.trust import ADAPTER_CONFIG, check_config
from hftransfer.safety.files import check_files
from hftransfer.setting_values import name_and_revision

TEXT_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
SAFE_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", ADAPTER_WEIGHTS[0])
PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model-*-of-*.bin", ADAPTER_WEIGHTS[1])
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Source:
    """The files of one checkpoint.

    Attributes:
        name: The folder or Hub id, without revision.
        revision: The part after "@", if any.
        folder: Where its files are.
        runs_code: Whether the code among them may run.
    """

    name: str
    revision: str | None
    folder: Path
    runs_code: bool = False


def open_source(checkpoint: str, trust_remote_code: str | None = None) -> Source:
    """Find a checkpoint's files, fetch them if need be, and check all but the weights.

    Args:
        checkpoint: Folder or Hub id, the latter with an optional "@revision".
        trust_remote_code: "ORG/NAME@COMMIT" of the checkpoint whose own code may run.

    Raises:
        CheckpointError: A file leads out of the folder or names code, or other code is trusted than would run.
        OSError: The Hub cannot be reached, or does not know it.
    """
    name, revision = split_revision(checkpoint)
    if trust_remote_code is not None:
        _check_trust(name, revision, trust_remote_code)
    runs_code = trust_remote_code is not None
    folder = Path(name) if os.path.isdir(name) else Path(_fetch(name, revision, runs_code))
    check_files(folder)
    check_config(folder, runs_code=runs_code)
    return Source(name, revision, folder, runs_code)


def check_no_adapter(source: Source) -> None:
    """Refuse a folder with an adapter, from which transformers would load another model than the one asked for."""
    if (source.folder / ADAPTER_CONFIG).exists():
        raise CheckpointError(
            "holds an adapter, not a model alone",
            where=source.name,
            fix="give the checkpoint that it was trained on, or train it with --strategy.merge",
        )


def split_revision(checkpoint: str) -> tuple[str, str | None]:
    """Split "org/name@revision" into its parts; an existing folder is never split.

    Raises:
        CheckpointError: The name or the revision is empty.
    """
    name, revision = name_and_revision(checkpoint)
    if not name or revision == "":
        raise CheckpointError(
            f"{checkpoint!r} is not a folder, a Hub id or a Hub id with @revision", where="checkpoint"
        )
    return name, revision


def _check_trust(name: str, revision: str | None, trusted: str) -> None:
    """Refuse to run code that is not the code that was read: another repository, a branch, or a folder."""
    repository, _, commit = trusted.rpartition("@")
    if not COMMIT.fullmatch(commit):
        raise CheckpointError(
            "names no commit of 40 hex digits", where="trust_remote_code", fix="write ORG/NAME@COMMIT"
        )
    if os.path.isdir(name):
        raise CheckpointError(
            f"{name} is a folder, whose code never runs", where="trust_remote_code", fix="give a Hub id and its commit"
        )
    if (repository, commit) != (name, revision):
        asked = name if revision is None else f"{name}@{revision}"
        raise CheckpointError(
            f"trusts {trusted}, but the checkpoint is {asked}",
            where="trust_remote_code",
            fix=f"give --checkpoint {trusted} if that is the code you read",
        )


@functools.lru_cache(maxsize=8)
def _fetch(name: str, revision: str | None, with_code: bool) -> str:
    """The folder of the Hub's cache with the files at one commit; pickled weights only for want of others."""
    from huggingface_hub import snapshot_download

    texts = (*TEXT_FILES, *(("*.py",) if with_code else ()))
    folder = snapshot_download(name, revision=revision, allow_patterns=[*texts, *SAFE_WEIGHTS], ignore_patterns=["*/*"])
    if not any((Path(folder) / file).exists() for file in (*WEIGHTS[:2], ADAPTER_WEIGHTS[0])):
        commit = Path(folder).name
        folder = snapshot_download(
            name, revision=commit, allow_patterns=[*PICKLED_WEIGHTS, f"*{INDEX}"], ignore_patterns=["*/*"]
        )
    return folder
