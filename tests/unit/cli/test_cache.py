"""`hftransfer cache`: it lists and prunes whatever the folder holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hftransfer.caching.store import StateStore, hash_rows
from tests.running import command

KEY = {"boundary": 3, "dtype": "fp32", "width": 4, "checkpoint": "some-model", "head_input": "tokens"}


def test_a_space_with_a_damaged_shard_is_listed_with_its_whole_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "states"
    space = StateStore(folder).space(KEY)
    hashes = hash_rows({"input_ids": np.arange(3, dtype=np.int32)}, np.asarray([0, 2, 3]))
    for _ in range(2):
        with space.writer() as writer:
            writer.append(hashes, np.asarray([2, 1]), torch.ones(3, 4))
    manifest = next(space.folder.glob("shard-*/meta.json"))
    manifest.write_text(manifest.read_text()[:9])
    assert command("cache", "list", "--folder", folder) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("some-model")]
    assert line.split()[4] == "2"
    assert command("cache", "prune", "--folder", folder) == 0
    assert "removed 1 of 1 entries" in capsys.readouterr().out
