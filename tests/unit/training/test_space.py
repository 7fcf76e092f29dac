"""Full disks: the same line whoever met them; other errors stay what they are."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from hftransfer.errors import TrainingError
from hftransfer.training.space import check_room, disk_errors

FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Quota exceeded"),
    SafetensorError("I/O error: No space left on device (os error 28)"),
    Exception("No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: f"{type(error).__name__} {error}")
def test_a_full_disk_is_one_line(error: Exception) -> None:
    with pytest.raises(TrainingError) as found, disk_errors("the model", Path("runs/a"), "free some space"):
        raise error
    assert str(found.value) == "runs/a: the model cannot be written: no space left; free some space"


@pytest.mark.parametrize(
    "error", [OSError(errno.EACCES, "Permission denied"), ValueError("os error"), TrainingError("x")]
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as found, disk_errors("the model", Path("runs/a"), "free some space"):
        raise error
    assert found.value is error


def test_room_is_that_of_the_nearest_folder_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def usage(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(free=2_000_000)

    monkeypatch.setattr("shutil.disk_usage", usage)
    check_room("this run", tmp_path / "new" / "deep", 1_900_000, "free some space")
    with pytest.raises(TrainingError, match=r"this run needs 2\.1 MB and 2\.0 MB are free; free some space"):
        check_room("this run", tmp_path, 2_000_000, "free some space")
    assert asked == [tmp_path, tmp_path]
