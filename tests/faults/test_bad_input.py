"""A few cases of each campaign of bad input; `python -m tests.faults.bad_configs` and `bad_data` run a thousand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import bad_configs, bad_data
from tests.running import command


@pytest.mark.parametrize("seed", range(5000, 5030))
def test_bad_configs_are_refused_in_one_line(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad_configs.prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    kind, arguments = bad_configs.make(seed, tmp_path)
    assert command(*arguments) == 2, kind
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("seed", range(7000, 7020))
def test_bad_files_are_refused_in_one_line(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bad_data, "HEAVY_FAULTS", bad_data.FILE_FAULTS)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    kind, arguments = bad_data.make(seed, tmp_path)
    assert command(*arguments) == 2, kind
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()
