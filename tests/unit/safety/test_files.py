"""Private folders, plain names, links, whole writes."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch

from hftransfer.caching.store import StateStore
from hftransfer.errors import CacheError, CheckpointError
from hftransfer.safety.files import check_files, check_private, make_private, plain_name, replacing
from hftransfer.training.precision import COMPILER_CACHE, keep_compiled_code_private


def test_what_the_cache_writes_is_for_its_user_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        space = StateStore(tmp_path / "new" / "states").space({"dtype": "fp32", "width": 4})
        with space.writer() as writer:
            writer.append(np.zeros((1, 2), np.uint64), np.asarray([1]), torch.zeros(1, 4))
    finally:
        os.umask(old)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").rglob("*")}
    assert len(modes) == 7
    assert {path: mode for path, mode in modes.items() if mode != (0o700 if path.is_dir() else 0o600)} == {}


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_private(tmp_path, "go")
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(CacheError, match="belongs to another user"):
        check_private(tmp_path, "go")
    with pytest.raises(CacheError, match="belongs to another user"):
        make_private(tmp_path, "go")


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(CacheError, match="other users may write"):
        check_private(tmp_path, "go")


def test_compiled_code_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HFTRANSFER_CACHE", str(tmp_path / "states"))
    monkeypatch.setenv(COMPILER_CACHE, "")
    monkeypatch.delenv(COMPILER_CACHE)
    keep_compiled_code_private()
    assert os.environ[COMPILER_CACHE] == str(tmp_path / "compiled")
    assert stat.S_IMODE((tmp_path / "compiled").stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "/a", "a\\b", "a\0b"])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="which is not a file of this folder"):
        plain_name(name, "index")


def test_links_inside_a_folder_and_into_the_blobs_of_the_hub_are_followed(tmp_path: Path) -> None:
    files, blobs = tmp_path / "models--a--b" / "snapshots" / "c", tmp_path / "models--a--b" / "blobs"
    files.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "hash").write_text("{}")
    (files / "config.json").symlink_to("../../blobs/hash")
    (files / "again.json").symlink_to("config.json")
    check_files(files)
    (files / "config.json").unlink()
    (files / "config.json").symlink_to(tmp_path / "models--a--b")
    with pytest.raises(CheckpointError, match="leads out"):
        check_files(files)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError), replacing(path) as temporary:
        temporary.write_text("new \udcff", encoding="utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]
    assert path.read_text() == "old"
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]
    assert path.read_text() == "new"
