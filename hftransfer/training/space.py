"""Full disks: room is looked for before something is written, and what fails all the same becomes one line."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from hftransfer.errors import TrainingError

# The disk, the user's quota, or a limit of the process (RLIMIT_FSIZE) is reached.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Headers, JSON and the folder itself.
OVERHEAD_BYTES = 64 << 10


@contextmanager
def disk_errors(what: str, folder: Path, fix: str) -> Iterator[None]:
    """Turn a full disk into one line.

    Args:
        what: What is being written.
        folder: Where to.
        fix: What to do.

    Raises:
        TrainingError: If there was no room. Other errors pass through.
    """
    try:
        yield
    except Exception as error:  # safetensors and tokenizers have classes of their own for the system's errors
        if _number(error) not in FULL:
            raise
        reason = "a file is too large for this process" if _number(error) == errno.EFBIG else "no space left"
        raise TrainingError(f"{what} cannot be written: {reason}", where=str(folder), fix=fix) from error


def check_room(what: str, folder: Path, wanted: int, fix: str) -> None:
    """Look whether so many bytes fit.

    Raises:
        TrainingError: If they do not.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if wanted + OVERHEAD_BYTES > free:
        raise TrainingError(
            f"{what} needs {_megabytes(wanted + OVERHEAD_BYTES)} and {_megabytes(free)} are free",
            where=str(folder),
            fix=fix,
        )


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of all of them."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _number(error: BaseException) -> int | None:
    """The system's error number; libraries written in Rust have it in their text alone."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else None


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
