"""One run per folder: a lock that another process cannot take, and that no dead one holds."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from hftransfer.errors import RecipeError
from hftransfer.locking import LOCK_FILE, FolderLock


def test_only_one_has_it_and_it_leaves_nothing_behind(tmp_path: Path) -> None:
    with FolderLock() as first, FolderLock() as second:
        first.acquire(tmp_path)
        first.acquire(tmp_path)
        with pytest.raises(RecipeError, match=f"another run writes there .process {os.getpid()}") as error:
            second.acquire(tmp_path)
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
    with FolderLock() as third:
        third.acquire(tmp_path)


def test_a_folder_without_a_lock_is_left_alone(tmp_path: Path) -> None:
    with FolderLock() as lock:
        lock.acquire_if_locked(tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_a_dead_process_holds_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        FolderLock().acquire(tmp_path)
        os.write(writing, b"x")
        signal.pause()
    os.read(reading, 1)
    with FolderLock() as lock:
        with pytest.raises(RecipeError, match=f"process {pid} on "):
            lock.acquire_if_locked(tmp_path)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert (tmp_path / LOCK_FILE).exists()
        lock.acquire_if_locked(tmp_path)
        assert f"process {os.getpid()}" in (tmp_path / LOCK_FILE).read_text()
    os.close(reading)
    os.close(writing)
