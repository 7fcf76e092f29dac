"""One run per output folder: a lock that the kernel lets go of when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from hftransfer.errors import RecipeError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"


class FolderLock:
    """The lock of a run's folder: taken by `acquire`, let go of at the end of its context."""

    def __init__(self) -> None:
        self.path = Path(LOCK_FILE)
        self._descriptor: int | None = None

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            # Removed while it is held: whoever opened it meanwhile sees that it is gone, and makes a new one.
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def acquire_if_locked(self, folder: str | Path) -> None:
        """Take the lock of a folder where another run may be writing; leave others untouched."""
        if (Path(folder) / LOCK_FILE).exists():
            self.acquire(folder)

    def acquire(self, folder: str | Path) -> None:
        """Take the lock, unless this object holds it already.

        Args:
            folder: The run's folder, which exists.

        Raises:
            RecipeError: If another run holds it.
        """
        if fcntl is None or self._descriptor is not None:
            return
        self.path = Path(folder) / LOCK_FILE
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 100).decode(errors="replace").strip() or "another process"
                os.close(descriptor)
                raise RecipeError(
                    f"another run writes there ({holder})",
                    where=str(self.path.parent),
                    fix="wait for it, or choose another --output_dir",
                ) from None
            except OSError:
                # A file system without locks.
                os.close(descriptor)
                return
            if self._is_current(descriptor):
                break
            os.close(descriptor)
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {os.uname().nodename}".encode())
        self._descriptor = descriptor

    def _is_current(self, descriptor: int) -> bool:
        """Whether the opened file is still the one of this name."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False
