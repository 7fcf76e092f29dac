"""`hftransfer copy`: an editable recipe that still runs and still finds its schema."""

from __future__ import annotations

from pathlib import Path

import pytest

from hftransfer.cli.main import main
from hftransfer.cli.recipes import recipes_folder


def copy(*arguments: object) -> object:
    with pytest.raises(SystemExit) as stop:
        main(["copy", *map(str, arguments)])
    return stop.value.code


def test_the_copy_is_laid_out_like_the_original(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "mine"
    assert copy("text_classification", "--to", to) == 0
    copied = sorted(path.relative_to(to) for path in to.rglob("*") if path.is_file())
    assert Path("text_classification.py") in copied
    assert Path("configs/text_classification/film_reviews.yaml") in copied
    for path in copied:
        assert (to / path).read_bytes() == (recipes_folder() / path).read_bytes()
    config = to / "configs" / "text_classification" / "film_reviews.yaml"
    schema = config.read_text(encoding="utf-8").splitlines()[0].partition("=")[2]
    assert (config.parent / schema).is_file()
    printed = capsys.readouterr().out
    assert str(config) in printed
    assert f"accelerate launch {to / 'text_classification.py'} --config" in printed


def test_files_are_not_replaced_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text_classification.py").write_text("mine")
    assert copy("text_classification", "--to", tmp_path) == 2
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["text_classification.py"]
    assert (tmp_path / "text_classification.py").read_text() == "mine"
    assert copy("text_classification", "--to", tmp_path, "--overwrite") == 0
    assert (tmp_path / "text_classification.py").read_text() != "mine"


def test_an_unknown_recipe_and_an_impossible_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert copy("text_clasification", "--to", tmp_path) == 2
    assert "did you mean text_classification?" in capsys.readouterr().err
    (tmp_path / "file").write_text("x")
    assert copy("text_classification", "--to", tmp_path / "file") == 2
    assert capsys.readouterr().err.count("\n") == 1
