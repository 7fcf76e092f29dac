"""Where commands may write a page or a model, and where not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hftransfer.cli.inputs import _check_checkpoint
from hftransfer.errors import CheckpointError
from tests.running import command
from tests.tiny_runs import tiny_run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "later.jsonl"
    path.write_text('{"text": "a film"}\n' * 30)
    return path


@pytest.mark.parametrize("place", ["later.jsonl", "."])
def test_a_page_replaces_no_data_and_no_folder(
    place: str, data: Path, checkpoints: Path, tmp_path: Path, capsys
) -> None:
    before = data.read_bytes()
    sources = ["--train", data, "--deployment", data, "--output", tmp_path / place]
    assert command("diagnose", "domain", "--checkpoint", checkpoints / "bert", *sources) == 2
    assert command("report", tmp_path / "one", tmp_path / "two", "--output", tmp_path / place) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 2
    assert all("files; use .html" in line for line in errors)
    assert data.read_bytes() == before


def test_soften_replaces_what_soften_wrote_alone(
    checkpoints: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(checkpoints / "bert", tmp_path / "precious")
    before = (tmp_path / "precious" / "model.safetensors").read_bytes()
    run = tiny_run("text_classification", "bitfit", checkpoints / "bert", tmp_path / "run", preflight="off")
    for output in (tmp_path / "precious", run.model_folder):
        assert command("soften", run.folder, "--general", data, "--output", output) == 2
        assert "soften has not written it" in capsys.readouterr().err
    assert (tmp_path / "precious" / "model.safetensors").read_bytes() == before


def test_a_revision_may_have_slashes() -> None:
    _check_checkpoint("org/name@refs/pr/3")
    with pytest.raises(CheckpointError, match="no such folder"):
        _check_checkpoint("a/b/c")
